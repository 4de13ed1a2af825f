"""Background jobs on disk: what is to be sent until it is sent, and what came back of it.

A job is added with its order: the request, with prompt and credential. `begin` hands the order out once
and takes it off the disk before the call is made, so that no job is ever sent twice, whenever the process
dies. One thread at a time; bodies are bytes, all else is JSON.
"""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from sidecar.core.types import End, Fault, Head, Headers
from sidecar.stores.sqlite import PAGE, Database, FolderInUseError, StoreError

__all__ = ["FolderInUseError", "JobRecord", "JobStore", "Order", "Result", "Status", "StoreError"]

Status = Literal["queued", "running", "complete", "failed", "cancelled"]
WebhookState = Literal["none", "pending", "delivered", "failed"]

_encode = msgspec.json.encode

_VERSION = 1
_SCHEMA = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'complete', 'failed', 'cancelled')),
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    labels BLOB NOT NULL,
    details BLOB NOT NULL,
    error BLOB NOT NULL,
    webhook TEXT,
    webhook_state TEXT NOT NULL CHECK (webhook_state IN ('none', 'pending', 'delivered', 'failed')),
    webhook_attempts INTEGER NOT NULL
);
CREATE INDEX jobs_status ON jobs (status);
CREATE INDEX jobs_ended ON jobs (ended);
CREATE INDEX jobs_webhook ON jobs (webhook_state);
CREATE TABLE orders (
    seq INTEGER PRIMARY KEY,
    filler BLOB NOT NULL,
    head BLOB NOT NULL,
    body BLOB NOT NULL CHECK (typeof(body) = 'blob')
);
CREATE TABLE results (
    seq INTEGER PRIMARY KEY,
    head BLOB NOT NULL,
    outcome BLOB NOT NULL,
    events BLOB NOT NULL,
    body BLOB NOT NULL CHECK (typeof(body) = 'blob')
)
"""
# `filler` is a page of zeros. SQLite keeps the start of a row in a page that it shares with other rows, and
# leaves copies behind when it moves rows between such pages: deleting a row does not wipe those. What
# comes after the filler has pages of its own, which are never copied, and are zeroed when they are freed.

_JSON = ("labels", "details", "error")
_ORDER_GONE = "DELETE FROM orders WHERE seq = (SELECT seq FROM jobs WHERE id = ?)"

_STEP = 16 << 20
"""Bytes deleted in one transaction."""
_MOST = 128 << 20
"""Bytes deleted in one call of `expire`: a second or two."""


class Order(msgspec.Struct, frozen=True):
    """What is to be sent. On disk only until the call begins: it holds prompt and credential."""

    method: str
    target: bytes
    headers: Headers
    body: bytes
    http10: bool = False


class JobRecord(msgspec.Struct, frozen=True):
    """What is known of a job, without what was asked or answered. Times are unix seconds."""

    id: str
    status: Status
    created: float
    started: float | None
    ended: float | None
    labels: dict[str, str | bool | None]
    """Model, upstream, path and the like: for the status page and the log."""
    details: dict[str, int | float | str | None]
    """What is known of the answer at its end."""
    error: Fault | None
    webhook: str | None
    webhook_state: WebhookState
    webhook_attempts: int


class Result(msgspec.Struct, frozen=True):
    """An answer that is over."""

    head: Head
    body: bytes
    events: "array[int]"
    """The offset just past each event; type code Q."""
    end: End


class JobStore:
    """The jobs in one folder. Methods raise StoreError when the disk fails; they then did nothing, and may
    be called again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, folder: Path) -> "JobStore":
        """The store in `folder`, which is made with mode 0700 if it is missing.

        Reads all of it once, to see that it is whole. Raises FolderInUseError when another process has it
        open, OSError when the folder cannot be used.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(Database.open(folder / "jobs.sqlite3", _SCHEMA, _VERSION))

    @property
    def set_aside(self) -> Path | None:
        """Where a store went that could not be used; it may hold orders, and nobody removes it."""
        return self._database.set_aside

    def add(self, record: JobRecord, order: Order) -> None:
        """Keep a new job; it is on the disk when this returns."""
        head = _encode(msgspec.structs.replace(order, body=b""))
        values = msgspec.structs.asdict(record)
        values |= {name: _encode(values[name]) for name in _JSON}
        with self._database.transaction():
            self._database.change(
                "INSERT INTO jobs (id, status, created, started, ended, labels, details, error, webhook,"
                " webhook_state, webhook_attempts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *[values[name] for name in JobRecord.__struct_fields__],
            )
            self._database.change(
                "INSERT INTO orders SELECT seq, zeroblob(?), ?, ? FROM jobs WHERE id = ?",
                *(PAGE, head, order.body, record.id),
            )

    def begin(self, job: str, started: float) -> Order | None:
        """From queued to running: the order, which is no longer on disk; None when it is not queued.

        After a StoreError the job may be running already; it is never handed out again then.
        """
        with self._database.transaction():
            found = self._database.rows(
                "SELECT head, body FROM jobs LEFT JOIN orders USING (seq)"
                " WHERE jobs.id = ? AND jobs.status = 'queued'",
                job,
            )
            if not found:
                return None
            self._database.change(
                "UPDATE jobs SET status = 'running', started = ? WHERE id = ?", started, job
            )
            self._database.delete(_ORDER_GONE, job)
        head, body = found[0]
        with _readable():
            return msgspec.structs.replace(msgspec.json.decode(head, type=Order), body=body)

    def finish(
        self,
        job: str,
        status: Status,
        ended: float,
        details: dict[str, int | float | str | None],
        error: Fault | None,
        result: Result | None,
    ) -> None:
        """The end of a job, running or still queued. One that has ended stays as it is."""
        with self._database.transaction():
            ended_now = self._database.change(
                "UPDATE jobs SET status = ?, ended = ?, details = ?, error = ?"
                " WHERE id = ? AND status IN ('queued', 'running')",
                *(status, ended, _encode(details), _encode(error), job),
            )
            self._database.delete(_ORDER_GONE, job)
            if ended_now and result is not None:
                self._database.change(
                    "INSERT INTO results SELECT seq, ?, ?, ?, ? FROM jobs WHERE id = ?",
                    *(_encode(result.head), _encode(result.end), result.events.tobytes(), result.body, job),
                )

    def cancel(self, job: str, ended: float) -> bool:
        """End a job that is still queued, and take its order off the disk; False when it is not queued."""
        with self._database.transaction():
            cancelled = self._database.change(
                "UPDATE jobs SET status = 'cancelled', ended = ? WHERE id = ? AND status = 'queued'",
                *(ended, job),
            )
            self._database.delete(_ORDER_GONE, job)
        return cancelled > 0

    def get(self, job: str) -> JobRecord | None:
        found = self._records("SELECT * FROM jobs WHERE id = ?", job)
        return found[0] if found else None

    def result(self, job: str) -> Result | None:
        """What came back, if the job has ended and anything did."""
        found = self._database.rows(
            "SELECT head, outcome, events, body FROM results JOIN jobs USING (seq) WHERE id = ?", job
        )
        if not found:
            return None
        head, end, offsets, body = found[0]
        with _readable():
            events = array("Q")
            events.frombytes(offsets)
            return Result(
                msgspec.json.decode(head, type=Head), body, events, msgspec.json.decode(end, type=End)
            )

    def queued(self) -> list[str]:
        """Ids, in the order in which they were added."""
        found = self._database.rows("SELECT id FROM jobs WHERE status = 'queued' ORDER BY seq")
        return [row[0] for row in found]

    def interrupt(self, now: float, fault: Fault) -> list[str]:
        """At the start: what an earlier process was at has failed, with that fault. Their ids."""
        with self._database.transaction():
            found = self._database.rows("SELECT id FROM jobs WHERE status = 'running' ORDER BY seq")
            self._database.change(
                "UPDATE jobs SET status = 'failed', ended = ?, error = ? WHERE status = 'running'",
                *(now, _encode(fault)),
            )
        return [row[0] for row in found]

    def expire(self, before: float) -> int:
        """Delete jobs that ended before that time, first those that ended first; how many.

        Space goes back to the file system. After 128 MiB it stops, so that others need not wait for long:
        whoever wants to be rid of more calls again until there are none.
        """
        count, size = 0, 0
        while size < _MOST:
            batch = 0
            with self._database.transaction():
                found = self._database.rows(
                    "SELECT seq, ifnull(length(body), 0) FROM jobs LEFT JOIN results USING (seq)"
                    " WHERE jobs.ended < ? ORDER BY jobs.ended LIMIT 100",
                    before,
                )
                for seq, body in found:
                    if batch >= _STEP:
                        break
                    self._database.delete("DELETE FROM jobs WHERE seq = ?", seq)
                    self._database.delete("DELETE FROM results WHERE seq = ?", seq)
                    batch += body + PAGE
                    count += 1
            # Twice as much: orders have left room too.
            self._database.shrink(2 * _STEP // PAGE)
            if not found:
                break
            size += batch
        return count

    def webhooks(self) -> list[JobRecord]:
        """Ended jobs that somebody has yet to be told of."""
        return self._records(
            "SELECT * FROM jobs WHERE webhook_state = 'pending' AND ended IS NOT NULL ORDER BY seq"
        )

    def webhook_result(self, job: str, state: WebhookState, attempts: int) -> None:
        with self._database.transaction():
            self._database.change(
                "UPDATE jobs SET webhook_state = ?, webhook_attempts = ? WHERE id = ?", state, attempts, job
            )

    def close(self) -> None:
        """Another process may open it then."""
        self._database.close()

    def _records(self, statement: str, *values: object) -> list[JobRecord]:
        with _readable():
            return [_record(row[1:]) for row in self._database.rows(statement, *values)]


def _record(row: tuple[Any, ...]) -> JobRecord:
    values = dict(zip(JobRecord.__struct_fields__, row, strict=True))
    values |= {name: msgspec.json.decode(values[name]) for name in _JSON}
    return msgspec.convert(values, JobRecord)


@contextmanager
def _readable() -> Iterator[None]:
    """A disk may change bytes without SQLite noticing."""
    try:
        yield
    except (msgspec.MsgspecError, TypeError, ValueError):
        raise StoreError("jobs.sqlite3: what is kept of a job is damaged") from None
