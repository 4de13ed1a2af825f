"""The client's request body: kept up to a limit, streamed past beyond it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from sidecar.core.errors import RefusedError
from sidecar.core.types import Request
from sidecar.serving.shell import Body

if TYPE_CHECKING:
    from sidecar.web.incoming import Incoming


async def receive(raw: "Incoming", request: Request, *, keep: int, timeout: float) -> Body:  # noqa: ASYNC109
    """Read up to `keep` bytes. A body that goes on after that is left to be streamed.

    Raises RefusedError when the client is too slow or its body is not valid HTTP.
    """
    if not raw.body_exists:
        return Body(b"", None, 0.0)
    expected = not request.http10 and request.fields.get(b"expect", b"").lower() == b"100-continue"
    if expected and raw.transport is not None:
        raw.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if keep <= 0:
        return Body(b"", _rest(raw, timeout), 0.0)
    content = raw.content
    if content.is_eof() and content.exception() is None and content.total_bytes <= keep:
        return Body(content.read_nowait(), None, 0.0)
    parts: list[bytes] = []
    size = 0
    waited = 0.0
    while True:
        if raw.content.is_eof():
            part = await _part(raw, timeout)  # does not wait: all of it is there
        else:
            begun = time.perf_counter()
            part = await _part(raw, timeout)
            waited += time.perf_counter() - begun
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > keep:
            return Body(b"".join(parts), _rest(raw, timeout), waited)
    return Body(parts[0] if len(parts) == 1 else b"".join(parts), None, waited)


async def _rest(raw: "Incoming", timeout: float) -> AsyncIterator[bytes]:  # noqa: ASYNC109
    while part := await _part(raw, timeout):
        yield part


async def _part(raw: "Incoming", timeout: float) -> bytes:  # noqa: ASYNC109
    """The next bytes; b"" at the end."""
    content = raw.content
    try:
        if content.is_eof() and content.exception() is None:
            return content.read_nowait()
        async with asyncio.timeout(timeout):
            return await content.readany()
    except TimeoutError:
        raise RefusedError("request_timeout", f"no part of the body came for {timeout:g} s") from None
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError) as error:
        raise RefusedError("bad_request", f"the body is not valid HTTP: {type(error).__name__}") from None
