"""The tables of the configuration: names, types and defaults. How they are read is `config`'s business."""

from typing import Annotated, Literal

import msgspec

from sidecar.core.values import Duration, Patience, Size

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables."""


class Server(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8400
    workers: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    upstream: str | None = None
    """Where everything goes; the same as the flag --upstream."""
    data_dir: str | None = None


class Admin(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8401


class UpstreamTable(Section, frozen=True):
    """One entry of `[[upstreams]]`."""

    name: str
    url: str
    paths: list[str] = msgspec.field(default_factory=lambda: ["/"])
    """Path prefixes that go to it. The longest prefix of all upstreams wins."""
    header: str | None = None
    """Only requests that carry this header; goes before upstreams with the same prefix without it."""
    strip: bool = False
    """Whether the prefix is for choosing only and is cut off before forwarding."""
    disconnect: Patience | None = None
    """As `disconnect.default`, for what goes here."""


class Timeouts(Section, frozen=True):
    connect: Duration = Duration(10)
    head: Duration = Duration(600)
    stall: Duration = Duration(300)
    client: Duration = Duration(60)
    """For a client to send its headers or the next part of its body, or to take what it is sent."""


class Limits(Section, frozen=True):
    body: Size = Size(32 << 20)
    headers: Size = Size(64 << 10)
    connections: Positive = 10_000
    requests: Positive = 10_000


class Keepalive(Section, frozen=True):
    interval: Duration = Duration(15)
    early: Duration = Duration(0)
    """Seconds of waiting for the upstream's head after which a 200 is committed; 0 is off."""


class Disconnect(Section, frozen=True):
    default: Patience = Patience(0)
    """What becomes of an upstream call when its client leaves: cancel, finish, or grace=N."""
    paths: dict[str, Patience] = {}
    """The same by path prefix; the longest wins, and goes before the upstream's own."""


class Resume(Section, frozen=True):
    keep: Duration = Duration(600)
    """For how long a client may come back to a stream that has ended."""
    memory: Size = Size(256 << 20)
    """Bytes for all streams together; what does not fit is gone."""
    grace: Duration = Duration(15)
    """How long an upstream call waits for a client that knows how to come back."""


class Jobs(Section, frozen=True):
    keep: Duration = Duration(86400)
    """For how long a result can be fetched."""
    concurrency: Positive = 16
    queue: Positive = 1000
    webhooks: list[str] = []
    """Origins that clients may have told when a job ends, such as https://hooks.example.com."""


class Cache(Section, frozen=True):
    mode: Literal["off", "exact", "semantic", "shadow"] = "exact"
    collapse: bool = True
    """Whether identical requests that run at the same time share one upstream call."""


class Shutdown(Section, frozen=True):
    grace: Duration = Duration(30)


class Log(Section, frozen=True):
    format: Literal["json", "console", "auto"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(msgspec.Struct, frozen=True):
    """The whole configuration. Field names are the names of the TOML tables."""

    server: Server = Server()
    admin: Admin = Admin()
    upstreams: list[UpstreamTable] = []
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    keepalive: Keepalive = Keepalive()
    disconnect: Disconnect = Disconnect()
    resume: Resume = Resume()
    jobs: Jobs = Jobs()
    cache: Cache = Cache()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()
