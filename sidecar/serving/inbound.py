"""Who may ask, and by which keys upstreams are asked: put together, and read again."""

from collections.abc import Callable

from sidecar.config import Config
from sidecar.core.values import ConfigError
from sidecar.engine.pump import Live
from sidecar.engine.source import Call
from sidecar.serving.backend import Upstreams
from sidecar.serving.clients import Clients, MakeShares
from sidecar.serving.keys import Keys
from sidecar.serving.routes import Routes


class Inbound:
    """Both, as configured. One per process."""

    def __init__(self, config: Config, secret: bytes, shares: MakeShares | None = None) -> None:
        """`shares`: the table of what clients of these names have used, where other processes have a part
        in it. Raises ConfigError."""
        self._config = config
        self._secret = secret
        self.keys = Keys(config.upstreams, secret)
        self.keys.read()
        try:
            self.clients = Clients(config, shares) if shares is not None else Clients(config)
        except OSError as error:
            raise ConfigError(f"clients: their limits cannot be kept: {error.strerror}") from None

    def upstreams(self, routes: Routes, send: Callable[[Live, Call], None]) -> Upstreams:
        """Where requests go. `send`: see `Upstreams`."""
        return Upstreams(
            routes,
            send,
            self._secret,
            self._config.limits.headers,
            keys=self.keys,
            guarded=lambda: bool(self.clients),
            public=self._config.server.allow_public,
        )

    def prepare(self, config: Config) -> Callable[[], None]:
        """Make ready to take the clients of that configuration, and the keys that are in the files now, in
        any thread. What is returned takes them, and does not fail. Which upstreams there are does not change.
        Raises ConfigError."""
        keys = self.keys.prepare()
        clients = self.clients.prepare(config)  # last: what it has opened is closed only if it is taken

        def take() -> None:
            keys()
            clients()

        return take

    def close(self) -> None:
        """Be done with them."""
        self.clients.close()
