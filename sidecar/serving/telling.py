"""Telling about a job's end: a POST to the URL its client named, as long as configuration allows it."""

import orjson
from structlog.typing import FilteringBoundLogger

from sidecar.core.errors import RefusedError
from sidecar.engine.jobs import Jobs
from sidecar.engine.jobstate import status_of
from sidecar.engine.source import Origin
from sidecar.serving.webhooks import Webhooks, target
from sidecar.stores.jobs import JobRecord


class Telling:
    """Does it, and notes what came of it."""

    def __init__(self, hooks: Webhooks, origins: frozenset[Origin], log: FilteringBoundLogger) -> None:
        """`origins`: those that may be told."""
        self._hooks = hooks
        self._origins = origins
        self._log = log

    async def tell(self, record: JobRecord, jobs: Jobs) -> None:
        """Tell of one job, as often as it takes."""
        tries = record.webhook_attempts

        async def on_attempt(number: int, delivered: bool) -> None:  # noqa: FBT001 - the deliverer's
            nonlocal tries
            tries = number
            await jobs.webhook_result(record, "delivered" if delivered else "pending", number)

        delivered = False
        try:
            where = target(record.webhook or "", self._origins)
            body = orjson.dumps({**status_of(record), "webhook": None})
            delivered = await self._hooks.deliver(
                where, record.id, body, attempts=record.webhook_attempts, on_attempt=on_attempt
            )
        except RefusedError:
            pass  # the configuration has changed: it is not allowed any more
        if not delivered:
            await jobs.webhook_result(record, "failed", tries)
            self._log.warning("webhook_failed", job_id=record.id, attempts=tries)
