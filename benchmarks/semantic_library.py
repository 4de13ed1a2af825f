"""A folder with very many stored answers, the sidecars that are started on it, and when they have come to
rest.

It is filled once per run, and only if some part wants it: see `semantic_fill`.
"""

import gzip
import http.client
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import search
from benchmarks.measure import Bench, LoadFailedError
from benchmarks.peers import HOST, ROOT, Peer, sidecar
from benchmarks.procs import cpu_seconds, private_bytes
from benchmarks.semantic_fill import ROOM, Filled, Order
from benchmarks.semantic_load import SEMANTIC
from benchmarks.semantic_questions import asking, pairs

PATIENCE = 60.0
"""Seconds that a sidecar may take to find something, and to come to rest."""
LONGEST = 600.0
"""Seconds that filling may take."""
POLL = 0.005
GLANCE = 0.1
"""Seconds for which a sidecar is looked at, to see whether it works at something."""
IDLE = 0.1
"""Share of a core that one at rest may use."""
GLANCES = 3
"""So many in which it was at rest are enough."""
ONLY_STORED = b"Cache-Control: only-if-cached"
SETTINGS = """
[cache]
ttl = 86400
size = {room}
[semantic]
entries = {entries}
"""
SOME = 8000
"""Pairs of the file whose questions are the vectors' origin; all of them would take a minute to embed."""


class Library:
    """One per run."""

    def __init__(self, bench: Bench, data: Path, lines: Path, *, size: int, known: int, fresh: int) -> None:
        """`data`: a data folder in which the model is ready. `lines`: the pairs of questions, if they are
        there. The rest is as in `Order`."""
        self.size = size
        self.single = 0
        """Bytes of memory of a sidecar with one question."""
        self._bench = bench
        self._data = data
        self._lines = lines
        self._known = known
        self._fresh = fresh
        self._folder = bench.folder / "questions"
        self._filled: Filled | None = None
        self._source: Path | None = None

    @property
    def filled(self) -> Filled:
        if self._filled is None:
            self._filled = self._fill()
        return self._filled

    @property
    def source(self) -> Path:
        """A folder with what `search` makes vectors of."""
        if self._source is None:
            folder = self._bench.folder / "vectors"
            folder.mkdir()
            self._bench.note("vectors of questions")
            source = self._vectors(folder)
            for name in search.Source.__struct_fields__:
                np.save(folder / f"{name}.npy", getattr(source, name))
            self._source = folder
        return self._source

    @property
    def origin(self) -> str:
        return "real questions" if self._real else "made-up vectors"

    @property
    def _real(self) -> bool:
        return self._lines.exists() and self._bench.size.rounds > 1

    def _vectors(self, folder: Path) -> search.Source:
        if not self._real:
            return search.made_up()
        some = folder / "pairs.jsonl"
        with (gzip.open if self._lines.suffix == ".gz" else open)(self._lines, "rb") as lines:
            some.write_bytes(b"".join(itertools.islice(lines, SOME)))
        return search.real(some, self._data)

    def sidecar(self) -> Peer:
        """One on that folder."""
        port = self._bench.provider.port
        settings = self._bench.folder / "questions.toml"
        settings.write_text(SETTINGS.format(room=ROOM, entries=self.size * 2))
        options = ("--cache", "semantic", "--config", str(settings))
        return sidecar(self._bench.folder, port, *options, data=self._folder)

    def _fill(self) -> Filled:
        self._folder.mkdir(mode=0o700)
        (self._folder / "model").symlink_to((self._data / "model").absolute())
        stored, again = next(pairs(seed=0))
        with self.sidecar() as peer:
            said = fetch(peer, asking(stored))
            if b"fwd=miss; stored" not in said:
                raise LoadFailedError(f"the first question was not stored: {said!r}")
            first_hit(peer, [again])
            at_rest(peer, again)
            self.single = private_bytes(peer.pids)
        order = Order(str(self._folder), str(self.source), self.size, self._known, self._fresh)
        self._bench.note(f"storing {self.size:,} answers")
        return msgspec.json.decode(run("benchmarks.semantic_fill", order), type=Filled)


class Phases(msgspec.Struct):
    """Milliseconds, as a line of the log has them."""

    lookup_ms: float | None = None
    embed_ms: float | None = None
    search_ms: float | None = None


class Line(msgspec.Struct):
    """A line of the log, as far as it is wanted."""

    cache_kind: str | None = None
    phases: Phases = msgspec.field(default_factory=Phases)


def phases(bench: Bench, peer: Peer) -> list[Phases]:
    """Of all hits by questions in other words. For a sidecar that has ended."""
    log = bench.folder / f"{peer.name}-{peer.port}.log"
    lines = [msgspec.json.decode(line, type=Line) for line in log.read_bytes().splitlines()]
    return [line.phases for line in lines if line.cache_kind == "semantic"]


def run(module: str, order: object) -> bytes:
    """Have a process of ours do something. Raises LoadFailedError."""
    ran = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        input=msgspec.json.encode(order),
        capture_output=True,
        timeout=LONGEST,
        check=False,
    )
    if ran.returncode:
        raise LoadFailedError(f"{module}: {ran.stderr.decode(errors='replace')[-2000:]}")
    return ran.stdout


def fetch(peer: Peer, request: bytes) -> bytes:
    """`Cache-Status` of the answer."""
    with socket.create_connection((HOST, peer.port), PATIENCE) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.read()
        return (answer.getheader("Cache-Status") or "").encode()


def first_hit(peer: Peer, texts: Iterable[str]) -> float:
    """Ask until something is answered that was stored to another question; nothing goes upstream. Returns
    when that was. Raises LoadFailedError."""
    until = time.perf_counter() + PATIENCE
    for text in itertools.cycle(texts):
        if SEMANTIC in fetch(peer, asking(text, ONLY_STORED)):
            break
        if time.perf_counter() > until:
            raise LoadFailedError("nothing is found by questions in other words")
        time.sleep(POLL)
    return time.perf_counter()


def at_rest(peer: Peer, text: str) -> float:
    """Wait until it works at nothing any more, such as an index. Returns when that began. Raises
    LoadFailedError. `text`: a question that is asked now and then, because an index that was made is taken
    into use, and found to be too small, by the next who asks."""
    until = time.perf_counter() + PATIENCE
    since, idle = 0.0, 0
    while idle < GLANCES:
        fetch(peer, asking(text, ONLY_STORED))
        begun, used = time.perf_counter(), cpu_seconds(peer.pids)
        time.sleep(GLANCE)
        now = time.perf_counter()
        busy = cpu_seconds(peer.pids) - used > (now - begun) * IDLE
        idle = 0 if busy else idle + 1
        since = now if busy else since or begun
        if now > until:
            raise LoadFailedError("a sidecar that nobody asks does not come to rest")
    return since
