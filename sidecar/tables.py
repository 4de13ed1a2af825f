"""The tables of the configuration: names, types and defaults. How they are read is `config`'s business."""

from typing import Annotated, Literal

import msgspec

from sidecar.core.values import Duration, Patience, Size

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Temperature = Annotated[float, msgspec.Meta(ge=0)]
Similarity = Annotated[float, msgspec.Meta(gt=0, le=1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables."""


class Server(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8400
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Processes that serve, each with an event loop of its own."""
    upstream: str | None = None
    """Where everything goes; the same as the flag --upstream."""
    data_dir: str | None = None
    allow_public: bool = False
    """Listen beyond loopback though anybody there could use it."""


class Tls(Section, frozen=True):
    """Of the proxy port."""

    certificate: str | None = None
    """PEM file with the certificate and those between it and the root."""
    key: str | None = None
    """PEM file with its key."""


class ClientTable(Section, frozen=True):
    """One entry of `[[clients]]`: who may ask. Without any, everybody may."""

    name: str
    token_sha256: str
    """SHA-256, in hexadecimal, of its bearer token."""
    namespace: str | None = None
    """A further split of what is stored, as `Slipstream-Namespace` makes one."""
    requests: Positive | None = None
    """At once."""
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Requests per second."""


class Admin(Section, frozen=True):
    """Of the port for operators: metrics, figures, dashboard."""

    host: str = "127.0.0.1"
    port: Port = 8401
    hosts: list[str] = []
    """Further names under which it may be called, as `Host` has them."""
    token_sha256: str | None = None
    """SHA-256, in hexadecimal, of the token that changes of state need, and everything beyond loopback."""


class Metrics(Section, frozen=True):
    enabled: bool = True
    """Whether figures are kept of requests; without them there are only log lines."""


class Otel(Section, frozen=True):
    """Of export to an OpenTelemetry collector."""

    endpoint: str | None = None
    """Its OTLP/HTTP address, such as http://127.0.0.1:4318."""
    interval: Duration = Duration(60)
    """Between two times that metrics are sent."""


class Budget(Section, frozen=True):
    """One of `[budgets.NAME]`: milliseconds that 95 of 100 requests stay within; 0 or none: no such
    budget."""

    ttft_ms: Milliseconds | None = None
    total_ms: Milliseconds | None = None


BUDGETS = {
    "chat": Budget(1500, 15_000),
    "completion": Budget(1000, 10_000),
    "summarization": Budget(3000, 30_000),
    "batch": Budget(None, 600_000),
}
"""What goes for features of these names, unless the configuration says otherwise."""


class CacheRule(Section, frozen=True):
    """What goes for some of the cached answers, where it is not what goes for all."""

    ttl: Duration | None = None
    stale_if_error: Duration | None = None
    largest: Size | None = None
    max_temperature: Temperature | None = None
    finish: list[str] | None = None
    tools: bool | None = None


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
    cache: CacheRule | None = None
    """As in `[cache]`, for what comes from here."""
    threshold: Similarity | None = None
    """As `semantic.threshold`, for what goes here."""
    key_file: str | None = None
    """A file with the upstream's key, so that apps need none."""
    key_header: str | None = None
    """The field that carries it, where it is not the provider's own; the value is the key alone."""


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
    """Of each worker."""
    requests: Positive = 10_000
    """At once, of each worker."""
    memory: Size = Size(0)
    """Bytes of this process from which on nothing new is kept; 0: most of what it may have."""


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
    ttl: Duration = Duration(3600)
    """For how long an answer is fresh; 0 stores none."""
    size: Size = Size(1 << 30)
    """Bytes on disk; what was used longest ago makes room."""
    memory: Size = Size(64 << 20)
    """Bytes of answers that are at hand without the disk."""
    largest: Size = Size(4 << 20)
    """Bytes of the largest answer that is stored."""
    share: Literal["credential", "upstream"] = "credential"
    """Who gets an answer: the credential that it was made for, or all that have one."""
    replay: Literal["instant", "paced"] = "instant"
    """Whether a stream out of the cache comes at once, or about as it first came."""
    fresh_ids: bool = False
    """Whether a hit gets a response id and a creation time of its own."""
    uncompressed: bool = False
    """Whether upstreams are asked for answers that are not compressed, because others cannot be stored."""
    stale_if_error: Duration = Duration(0)
    """For how long after its time an answer may stand in for an upstream that is down."""
    max_temperature: Temperature | None = None
    """Requests that ask for more are neither answered from the cache nor stored."""
    finish: list[str] = []
    """Finish reasons, beside the ordinary ones, with which answers are stored; also `refusal`."""
    tools: bool = True
    """Whether answers that call tools are stored."""
    ignore: list[str] = []
    """Fields of request bodies that make no difference, with dots for those inside of others."""
    paths: dict[str, CacheRule] = {}
    """Other terms by path prefix; the longest wins, and goes before the upstream's own."""


class Semantic(Section, frozen=True):
    """Of answers to the same question in other words; `cache.mode` turns it on."""

    threshold: Similarity = 0.92
    """Cosine of two questions from which on they may be the same one."""
    paths: dict[str, Similarity] = {}
    """Other thresholds by path prefix; the longest wins, and goes before the upstream's own."""
    namespaces: dict[str, Similarity] = {}
    """Other thresholds by `Slipstream-Namespace`; they go before those of paths."""
    deadline: Duration = Duration(0.05)
    """For the whole lookup; a request that would wait for longer goes upstream."""
    embedder: str = "local"
    """`local`, or the URL of an OpenAI-compatible endpoint such as http://127.0.0.1:11434/v1/embeddings."""
    model: str = "all-MiniLM-L6-v2"
    """Of the embedder: a name; for the local one also a folder with another BERT."""
    key_file: str | None = None
    """A file with the endpoint's API key."""
    timeout: Duration = Duration(5)
    """For one call of the endpoint."""
    entries: Positive = 100_000
    """Questions that are remembered; the oldest make room."""
    longest: Positive = 2000
    """Characters of the longest question that is compared with others."""
    skip_guards: list[str] = []
    """Guards that are not asked."""
    verify: Share = 0.0
    """Share of hits that are also sent upstream, to see whether they were right."""
    agree: Similarity = 0.85
    """Cosine of two answers from which on they say the same."""
    false_hits: Share = 0.05
    """Share of false hits beyond which questions of the same kind are no longer matched."""
    record_texts: bool = False
    """Whether the records of shadow and verified hits hold questions and answers, not only hashes."""


class Shutdown(Section, frozen=True):
    grace: Duration = Duration(30)


class Log(Section, frozen=True):
    format: Literal["json", "console", "auto"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(msgspec.Struct, frozen=True):
    """The whole configuration. Field names are the names of the TOML tables."""

    server: Server = Server()
    tls: Tls = Tls()
    clients: list[ClientTable] = []
    admin: Admin = Admin()
    upstreams: list[UpstreamTable] = []
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    keepalive: Keepalive = Keepalive()
    disconnect: Disconnect = Disconnect()
    resume: Resume = Resume()
    jobs: Jobs = Jobs()
    cache: Cache = Cache()
    semantic: Semantic = Semantic()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()
    metrics: Metrics = Metrics()
    otel: Otel = Otel()
    budgets: dict[str, Budget] = msgspec.field(default_factory=BUDGETS.copy)
