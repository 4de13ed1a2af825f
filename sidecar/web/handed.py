"""The Unix socket on which a worker takes what the others hand over to it; see `handover`."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace

from sidecar.config import Config
from sidecar.serving.siblings import HEADROOM
from sidecar.web.descriptors import clients_possible
from sidecar.web.handover import Place
from sidecar.web.listen import Listener
from sidecar.web.proxy import Proxy
from sidecar.web.server import FIELDS, Server

_MORE_FIELDS = 3
"""`Connection`, `Transfer-Encoding` and `Host`, which a head may get as it is handed over."""


class Handed:
    """One worker's."""

    def __init__(
        self,
        config: Config,
        place: Place,
        proxy: Proxy,
        on_fault: Callable[[BaseException], None],
        exhausted: Callable[[], None],
    ) -> None:
        """`exhausted` is told of each connection for which there is no descriptor."""
        self._path = place.socket(place.number)
        self._server = Server(
            proxy.handle_handed,
            refuse=proxy.refuse,
            reject=proxy.reject,
            again=lambda _protocol, _data: False,
            on_fault=on_fault,
            timeouts=config.timeouts,
            limits=replace(config.limits, headers=config.limits.headers + HEADROOM),
            most=config.limits.connections,
            fields=FIELDS + _MORE_FIELDS,
        )
        self._refusal = proxy.refusal
        self._exhausted = exhausted
        self._on_fault = on_fault
        self._listener: Listener | None = None

    async def start(self) -> None:
        """Listen. Raises OSError."""
        with suppress(FileNotFoundError):
            self._path.unlink()  # of one that was killed
        self._server.most = min(self._server.most, clients_possible())
        bound = await asyncio.get_running_loop().create_unix_server(
            self._server, str(self._path), start_serving=False
        )
        self._listener = Listener(
            bound,
            self._server,
            refusal=self._refusal,
            exhausted=self._exhausted,
            on_fault=self._on_fault,
        )
        await self._listener.start_serving()

    async def stop(self) -> None:
        """Take no more, and end what there is."""
        if self._listener is not None:
            self._listener.close()
            await self._server.shutdown(0.1)
            await self._listener.wait_closed()
            with suppress(FileNotFoundError):
                self._path.unlink()
