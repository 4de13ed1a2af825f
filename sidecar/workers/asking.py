"""Asking a worker process on its Unix socket. It may be gone, hang, or say anything: nobody waits for it for
long, or takes more of it than is bounded."""

from pathlib import Path

import aiohttp
import msgspec
from yarl import URL

_CHUNK = 256 << 10


class Told(msgspec.Struct, frozen=True):
    """What it has answered."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def get(self, name: bytes) -> bytes | None:
        """A header field, by its name in lower case."""
        return next((value for field, value in self.headers if field.lower() == name), None)


class AskError(Exception):
    """There is no answer; the message says why."""

    def __init__(self, reason: str, *, reached: bool) -> None:
        super().__init__(reason)
        self.reached = reached
        """Whether the request may have come to it."""


async def ask(path: Path, target: str, timeout: float, most: int, *, method: str = "GET") -> Told:  # noqa: ASYNC109
    """Its answer at a path and query. `timeout`: seconds for all of it; `most`: bytes of body. Raises
    AskError."""
    where, _, query = target.partition("?")
    url = URL.build(scheme="http", host="worker", path=where, query_string=query, encoded=True)
    # A connection of its own each time: none is left over that a process which has ended once had.
    connector = aiohttp.UnixConnector(path=str(path), force_close=True)
    limit = aiohttp.ClientTimeout(total=timeout)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=limit,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            ) as session,
            session.request(method, url, allow_redirects=False) as answer,
        ):
            body = bytearray()
            async for chunk in answer.content.iter_chunked(_CHUNK):
                body += chunk
                if len(body) > most:
                    raise AskError(f"it says more than {most} bytes", reached=True)
            return Told(answer.status, answer.raw_headers, bytes(body))
    except aiohttp.ClientConnectorError as error:
        raise AskError(f"it takes no connection: {error.strerror}", reached=False) from None
    except TimeoutError:
        raise AskError(f"it has not answered within {timeout:g} s", reached=True) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise AskError(f"what it says is no answer: {type(error).__name__}", reached=True) from None
