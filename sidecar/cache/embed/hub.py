"""The default model from the Hugging Face hub, or a mirror of it."""

import http.client
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sidecar import __version__
from sidecar.cache.embed import model
from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.files import Report, take

T = TypeVar("T")

_ENDPOINT = "https://huggingface.co"
_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
"""The commit in which the files are the pinned ones."""
_PATIENCE = 10.0
"""Seconds for the first byte of anything: who reaches PyPI only has not long to wait for it."""
_GRACE = 30.0
"""Seconds after which a download has to have come at the least speed."""
_SLOWEST = 50 << 10
"""Bytes per second; at less the next way is tried."""
_OFF = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "true", "yes", "on")


def fetch(work: Path, report: Report) -> None:
    """All files into the working folder. Raises EmbedError, whose message is the reason only."""
    base = _base()
    total, done = sum(file.size for file in model.PINNED), 0
    begun = time.monotonic()

    def step(count: int) -> None:
        nonlocal done
        done += count
        seconds = time.monotonic() - begun
        if seconds > _GRACE and done < seconds * _SLOWEST:
            raise EmbedError(f"too slow ({done:,} bytes in {seconds:.0f} s)")
        report.progress("the Hugging Face hub", done, total)

    for file in model.PINNED:
        url = f"{base}/{_REPOSITORY}/resolve/{_REVISION}/{file.name}"
        try:
            with _within(_PATIENCE, lambda: _open(url)) as response:  # noqa: B023 - is called at once
                take(response, file, work, step)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EmbedError(_reason(error)) from None


def _base() -> str:
    off = next((name for name in _OFF if os.environ.get(name, "").strip().lower() in _TRUE), None)
    if off is not None:
        raise EmbedError(f"turned off by {off}")
    base = os.environ.get("HF_ENDPOINT") or _ENDPOINT
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise EmbedError("HF_ENDPOINT is no http(s) URL")
    return base.rstrip("/")


def _open(url: str) -> Any:
    """By the environment's proxies and certificates, and with nobody's token."""
    request = urllib.request.Request(url, headers={"User-Agent": f"slipstream/{__version__}"})  # noqa: S310 - see _base
    try:
        return urllib.request.build_opener().open(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        error.close()
        raise EmbedError(f"answered {error.code}") from None


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises; TimeoutError when that takes longer. A socket's timeout bounds neither
    the resolver nor the number of addresses that are tried one after the other."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - reason: it is raised where the result is wanted
            raised.append(error)

    thread = threading.Thread(target=run, name="slipstream-hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise TimeoutError
    return found[0]


def _reason(error: Exception) -> str:
    """In few words, and without the URL, which may have a proxy's password in it."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return f"no answer within {_PATIENCE:.0f} s"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return type(inner).__name__
