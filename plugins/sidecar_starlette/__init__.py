"""Slipstream inside Starlette apps: the same engine as the proxy's, behind middleware or a mounted app."""

from sidecar_starlette.middleware import SidecarMiddleware
from sidecar_starlette.progress import progress
from sidecar_starlette.response import SidecarResponse
from sidecar_starlette.sidecar import Sidecar
from sidecar_starlette.spans import span

__all__ = ["Sidecar", "SidecarMiddleware", "SidecarResponse", "progress", "span"]
