"""The Unix socket on which a worker takes what the others hand over to it; see `handover`."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from sidecar.config import Config
from sidecar.web.handover import Place
from sidecar.web.proxy import Proxy
from sidecar.web.server import Server

_BACKLOG = 1024


class Handed:
    """One worker's."""

    def __init__(
        self, config: Config, place: Place, proxy: Proxy, on_fault: Callable[[BaseException], None]
    ) -> None:
        self._path = place.socket(place.number)
        self._server = Server(
            proxy.handle_handed,
            refuse=proxy.refuse,
            reject=proxy.reject,
            again=lambda _protocol, _data: False,
            on_fault=on_fault,
            timeouts=config.timeouts,
            limits=config.limits,
            most=config.limits.connections,
        )
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises OSError."""
        with suppress(FileNotFoundError):
            self._path.unlink()  # of one that was killed
        self._listener = await asyncio.get_running_loop().create_unix_server(
            self._server, str(self._path), backlog=_BACKLOG
        )

    async def stop(self) -> None:
        """Take no more, and end what there is."""
        if self._listener is not None:
            self._listener.close()
            await self._server.shutdown(0.1)
            await self._listener.wait_closed()
            with suppress(FileNotFoundError):
                self._path.unlink()
