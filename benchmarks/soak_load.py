"""The load generator of a soak, a process of its own: thousands of streams that say nothing, or clients that
do whatever clients do. A job as JSON on stdin, a line of JSON on stdout every few seconds, the last one with
all figures.
"""

import asyncio
import random
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
import uvloop
from websockets.exceptions import WebSocketException

from benchmarks import soak_websocket
from benchmarks.soak_judge import due, overdue
from benchmarks.soak_words import IDS, KEEPALIVE, PATH, Spec, ask, bare, events, whole

HOST = "127.0.0.1"
_PATIENCE = 30.0
"""Seconds for one thing that a client does."""
_TOLD = 5.0
_NOW = struct.pack("ii", 1, 0)
WEIGHTS = {
    "stream": 20,
    "left": 20,
    "resumed": 12,
    "again": 15,
    "whole": 10,
    "slow": 4,
    "job": 6,
    "broken": 5,
    "refused": 5,
    "unfinished": 3,
    "websocket": 6,
}
"""What clients do (`Churn` has a method for each), by how often they do it."""


class Job(msgspec.Struct):
    """What is to be done."""

    kind: Literal["idle", "churn"]
    port: int
    count: int
    """Streams, or clients."""
    seconds: float
    interval: float = 0.0
    """Of keepalives."""
    seed: int = 1


class Told(msgspec.Struct):
    """What came of it until now."""

    open: int = 0
    done: dict[str, int] = {}
    failed: dict[str, int] = {}
    first: list[str] = []
    """What the first failures were."""
    late: dict[str, float] = {}
    """Seconds by which keepalives were late, by percentile; the last time only."""
    starved: int = 0
    """Streams that had fewer keepalives than were due; the last time only."""
    lag: float = 0.0
    """Seconds by which this process's own timers were late, 99 of 100."""
    last: bool = False


def tell(told: Told) -> None:
    """To whoever started it."""
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


def request(method: str, path: str, body: bytes = b"", *fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", "Authorization: Bearer sk-soak", *fields]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Lag:
    """How late timers of this process are: what it measures cannot be better."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            due = time.perf_counter() + 0.05
            await asyncio.sleep(0.05)
            self._late.append(time.perf_counter() - due)

    def stop(self) -> float:
        self._task.cancel()
        return percentile(self._late, 0.99)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0


# Streams that say nothing.


class Idle(asyncio.Protocol):
    """One of them: takes the time of each sign of life."""

    def __init__(self, lot: "Lot") -> None:
        self._lot = lot
        self.head = 0.0
        """When its head came; 0 if it did not."""
        self.last = 0.0
        self.keepalives = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(request("POST", PATH, ask(Spec(f"idle {id(self)}", end="held"))))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self.head:
            if not data.startswith(b"HTTP/1.1 200"):
                self._lot.lost(data[:80].decode("latin-1"))
                return
            self._lot.open += 1
            self.head = now
        elif data.count(KEEPALIVE) == 1:
            self._lot.late.append(now - self.last - self._lot.interval)
            self.keepalives += 1
        elif KEEPALIVE in data:
            self._lot.lost("two keepalives at once")
        self.last = now

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._lot.closing:
            self._lot.lost(f"closed: {exc}")

    def close(self) -> None:
        self._transport.close()


class Lot:
    """All of them."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.open = 0
        self.late: list[float] = []
        self.failed: Counter[str] = Counter()
        self.closing = False

    def lost(self, why: str) -> None:
        self.failed[why] += 1


async def idle(job: Job) -> None:
    loop, lot, lag = asyncio.get_running_loop(), Lot(job.interval), Lag()
    made: list[Idle] = []
    begun = time.perf_counter()
    told = begun
    while time.perf_counter() - begun < job.seconds:
        for _ in range(min(25, job.count - len(made))):
            _, protocol = await loop.create_connection(lambda: Idle(lot), HOST, job.port)
            made.append(protocol)
        await asyncio.sleep(0.02)
        if time.perf_counter() - told >= _TOLD:
            told = time.perf_counter()
            tell(Told(lot.open, {"keepalives": len(lot.late)}, dict(lot.failed)))
    lot.closing = True
    end = time.perf_counter()
    for one in made:
        one.close()
    done = {"streams": lot.open, "keepalives": len(lot.late)}
    headed = [one for one in made if one.head]
    starved = sum(one.keepalives < due(one.head, end, job.interval) for one in headed)
    # A stream that gets none is late as well.
    lot.late += [more for one in headed if (more := overdue(one.last, end, job.interval)) is not None]
    shares = (("min", 0), ("p50", 0.5), ("p99", 0.99), ("max", 1))
    late = {name: percentile(lot.late, share) for name, share in shares}
    failed = dict(lot.failed)
    tell(Told(lot.open, done, failed, list(failed)[:5], late, starved, lag.stop(), last=True))


# Clients that do whatever clients do.


class SoakError(Exception):
    """An answer that is not what it should be."""


class Client:
    """One connection."""

    def __init__(self, port: int, buffer: int = 0) -> None:
        self._port = port
        self._buffer = buffer
        self.status = 0
        self._head = b""
        self.ended = False

    async def ask(self, data: bytes) -> None:
        """Send a request on a new connection, and read the head of its answer."""
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - the standard library's
        if self._buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (HOST, self._port))
        except BaseException:
            sock.close()
            raise
        limit = self._buffer or 1 << 20
        self._reader, self._writer = await asyncio.open_connection(sock=sock, limit=max(limit, 1 << 16))
        self._writer.write(data)
        self._head = await self._reader.readuntil(b"\r\n\r\n")
        self.status = int(self._head[9:12])

    async def more(self) -> bytes:
        """The next piece of the body; nothing at its end. Raises where it breaks off."""
        if self.ended:
            return b""
        if self.field("transfer-encoding"):
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            data = (await self._reader.readexactly(size + 2))[:-2]
            self.ended = not size
            return data
        length = self.field("content-length")
        self.ended = True
        return await self._reader.readexactly(int(length)) if length else b""

    async def rest(self) -> bytes:
        parts = []
        while part := await self.more():
            parts.append(part)
        return b"".join(parts)

    def field(self, name: str) -> str:
        """The value of a header field."""
        at = self._head.lower().find(f"\r\n{name}: ".encode())
        return self._head[at + len(name) + 4 :].partition(b"\r\n")[0].decode() if at >= 0 else ""

    def close(self, *, reset: bool = False) -> None:
        if hasattr(self, "_writer"):
            if reset:
                found: socket.socket = self._writer.get_extra_info("socket")
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
                self._writer.transport.abort()
            self._writer.close()


class Churn:
    """What clients do, one after the other."""

    def __init__(self, job: Job, number: int) -> None:
        self._port = job.port
        self._random = random.Random(job.seed * 1000 + number)  # the same every time
        self._number = number
        self._count = 0

    def choose(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        """Something to do, by how often clients do it."""
        name = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        way: Callable[[], Awaitable[None]] = getattr(self, name)
        return name, way

    def spec(self, **more: object) -> Spec:
        """An answer that nobody has asked for before."""
        self._count += 1
        name = f"{self._number} {self._count} {self._random.random()}"
        some = {"events": self._random.randint(1, 40), "gap": self._random.choice([0, 0.002, 0.02])}
        return msgspec.convert(
            {"name": name, **some, "pad": self._random.choice([0, 100, 2000]), **more}, Spec
        )

    async def _begun(self, spec: Spec, *fields: str, status: int = 200, buffer: int = 0) -> Client:
        client = Client(self._port, buffer)
        try:
            await client.ask(request("POST", PATH, ask(spec), *fields))
            if client.status != status:
                said = (await client.rest())[:200].decode()
                raise SoakError(f"status {client.status}: {said}")  # noqa: TRY301 - it closes the connection
        except BaseException:
            client.close()
            raise
        return client

    async def stream(self) -> None:
        spec = self.spec()
        client = await self._begun(spec)
        try:
            same(bare(await client.rest()), b"".join(events(spec)))
        finally:
            client.close()

    async def left(self) -> None:
        """Leaves at any point, also before the head."""
        spec = self.spec(gap=0.01)
        client = Client(self._port)
        asking = asyncio.ensure_future(client.ask(request("POST", PATH, ask(spec))))
        try:
            async with asyncio.timeout(self._random.random() * 0.3):
                await asyncio.shield(asking)
                if client.status == 200:
                    same(bare(await client.rest()), b"".join(events(spec)))
        except TimeoutError:
            pass
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            client.close(reset=self._random.random() < 0.5)
        if client.status not in (0, 200):  # 0: it left before the head
            raise SoakError(f"status {client.status}")

    async def resumed(self) -> None:
        """Is cut at any event, comes back, and has all of it, once."""
        spec = self.spec(gap=0.005)
        expected = b"".join(events(spec))
        client = await self._begun(spec, "Accept: text/event-stream")
        got = b""
        try:
            until = self._random.randint(1, spec.events)
            while got.count(b"\nid: ") < until and (part := await client.more()):
                got += part
        finally:
            client.close(reset=True)
        end = got.rfind(b"\n\n") + 2
        got = got[:end]
        last = IDS.findall(got)[-1][4:-1].decode()
        back = Client(self._port)
        path = f"/_slipstream/streams/{last.partition(':')[0]}"
        try:
            await back.ask(request("GET", path, b"", "Accept: text/event-stream", f"Last-Event-ID: {last}"))
            if back.status not in (200, 204):
                raise SoakError(f"back: status {back.status}")
            same(bare(got) + bare(await back.rest()), expected)
        finally:
            back.close()

    async def again(self) -> None:
        """What others have asked for, too: a hit, or a shared call."""
        spec = Spec(f"again {self._random.randint(1, 200)}", events=20, gap=0.001, pad=500)
        client = await self._begun(spec)
        try:
            same(bare(await client.rest()), b"".join(events(spec)))
        finally:
            client.close()

    async def whole(self) -> None:
        spec = self.spec(stream=False)
        client = await self._begun(spec)
        try:
            same(await client.rest(), whole(spec))
        finally:
            client.close()

    async def slow(self) -> None:
        """Reads more slowly than the upstream writes."""
        spec = self.spec(events=100, gap=0, pad=8000)
        client = await self._begun(spec, buffer=8192)
        got = []
        try:
            while part := await client.more():
                got.append(part)
                await asyncio.sleep(0.01)
            same(bare(b"".join(got)), b"".join(events(spec)))
        finally:
            client.close()

    async def job(self) -> None:
        spec = self.spec(stream=False, gap=0.05)
        client = await self._begun(spec, "Prefer: respond-async", status=202)
        place = client.field("location")
        client.close()
        while b'"status":"complete"' not in await self._get(place):  # noqa: ASYNC110 - it is asked for
            await asyncio.sleep(0.05)
        same(await self._get(f"{place}/result"), whole(spec))

    async def _get(self, path: str) -> bytes:
        client = Client(self._port)
        try:
            await client.ask(request("GET", path))
            if client.status != 200:
                raise SoakError(f"{path.rpartition('/')[2]}: status {client.status}")
            return await client.rest()
        finally:
            client.close()

    async def broken(self) -> None:
        """The upstream breaks off: an error frame, and no clean end."""
        spec = self.spec(end="cut")
        client = await self._begun(spec)
        try:
            got, clean = b"", False
            try:
                while part := await client.more():
                    got += part
                clean = True
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
        finally:
            client.close()
        said, frame, _ = bare(got).partition(b'data: {"error":')
        # What was on its way when the reset came may be gone; what is there is as it was sent.
        if clean or not frame or not b"".join(events(spec)).startswith(said):
            raise SoakError("a broken answer that does not end as one")

    async def refused(self) -> None:
        client = await self._begun(self.spec(end="refused"), status=500)
        try:
            if b"too much" not in await client.rest():
                raise SoakError("another error than the upstream's")
        finally:
            client.close()

    async def unfinished(self) -> None:
        """Sends half a request, and leaves."""
        _, writer = await asyncio.open_connection(HOST, self._port)
        sent = request("POST", PATH, ask(self.spec()))
        writer.write(sent[: self._random.randint(1, len(sent) - 1)])
        await asyncio.sleep(self._random.random() * 0.1)
        writer.close()

    async def websocket(self) -> None:
        """Talks both ways; either side, both or nobody closes."""
        await soak_websocket.talk(self._port, self._random)


_FAILURES = (
    SoakError,
    soak_websocket.WebSocketError,
    WebSocketException,
    OSError,
    asyncio.IncompleteReadError,
    ValueError,
)


def same(got: bytes, expected: bytes) -> None:
    if got != expected:
        raise SoakError(f"{len(got)} bytes of {len(expected)}, or others")


async def churn(job: Job) -> None:
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    first: list[str] = []
    end = time.perf_counter() + job.seconds
    lag = Lag()

    async def client(number: int) -> None:
        does = Churn(job, number)
        while time.perf_counter() < end:
            name, way = does.choose()
            try:
                async with asyncio.timeout(_PATIENCE):
                    await way()
            except _FAILURES as error:
                failed[name] += 1
                if len(first) < 10:
                    first.append(f"{name}: {type(error).__name__}: {error}"[:300])
            else:
                done[name] += 1

    async def progress() -> None:
        while True:
            await asyncio.sleep(_TOLD)
            tell(Told(job.count, dict(done), dict(failed), first))

    telling = asyncio.ensure_future(progress())
    await asyncio.gather(*(client(number) for number in range(job.count)))
    telling.cancel()
    tell(Told(0, dict(done), dict(failed), first, lag=lag.stop(), last=True))


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(idle(job) if job.kind == "idle" else churn(job))


if __name__ == "__main__":
    main()
