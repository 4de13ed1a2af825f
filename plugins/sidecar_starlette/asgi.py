"""The words of ASGI that this package uses."""

import functools
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def below(scope: Scope) -> tuple[str, str]:
    """Where the app is mounted, and the path below that; with `root_path` as Starlette and uvicorn have it,
    which is part of `path`."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return root, path[len(root) :] or "/"
    return "", path


def send_raises(scope: Scope) -> bool:
    """Whether a server's `send` raises OSError when the client has left: it does from ASGI 2.4 on."""
    return _raises(scope.get("asgi", {}).get("spec_version", "2.0"))


@functools.lru_cache(maxsize=16)
def _raises(version: str) -> bool:
    return tuple(int(part) for part in version.split(".")[:2]) >= (2, 4)
