"""`/cache` of the supervisor's admin port: asked of a worker, since it is the workers that have the store."""

from collections.abc import Callable, Mapping
from pathlib import Path

import orjson

from sidecar.core.types import Request
from sidecar.stores.base import StoreError
from sidecar.web.admin import query
from sidecar.web.admin.answer import NEVER_KEPT, Answer, as_json
from sidecar.web.admin.private import CACHE
from sidecar.web.admin.stored import Handler, unavailable
from sidecar.workers.asking import AskError, Told, ask

_PATIENCE = 65.0
"""Seconds: more than a worker takes to give up a disk that hangs."""
_LARGEST = 16 << 20
"""Bytes of an answer."""
_PASSED_ON = (b"retry-after", b"slipstream-error")


class Forwarded:
    """See `Cache`."""

    def __init__(self, sockets: Callable[[], Mapping[int, Path]], shared: Callable[[], bool]) -> None:
        """`sockets`: where workers can be asked, by number. `shared`: whether all of them have the same
        stored answers; where they have not, each of them is told to purge its own."""
        self._sockets = sockets
        self._shared = shared
        self.handlers: Mapping[str, Handler] = {"GET": self._list, "DELETE": self._purge}

    def close(self) -> None:
        """Nothing is kept."""

    async def _list(self, request: Request) -> Answer:
        query.listed(request.query)  # what is no query is not passed on
        return await self._ask_one(request)

    async def _ask_one(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        why = "no worker runs"
        for number, path in sorted(self._sockets().items()):
            try:
                return _answer(await _ask(path, method, request.query))
            except AskError as error:
                why = f"worker {number}: {error}"
                if error.reached and method != "GET":
                    break  # it may be doing it
        raise unavailable(StoreError(why))

    async def _purge(self, request: Request) -> Answer:
        query.purged(request.query)
        if self._shared():
            return await self._ask_one(request)
        removed = 0
        for number, path in sorted(self._sockets().items()):
            try:
                told = await _ask(path, request.method, request.query)
            except AskError as error:
                if not error.reached:
                    continue  # it is being started, and has nothing
                raise unavailable(StoreError(f"worker {number}: {error}")) from None
            if told.status != 200:
                return _answer(told)
            removed += _removed(told)
        return as_json({"removed": removed})


async def _ask(path: Path, method: str, asked: str) -> Told:
    target = f"{CACHE}?{asked}" if asked else CACHE
    return await ask(path, target, _PATIENCE, _LARGEST, method=method)


def _answer(told: Told) -> Answer:
    kind = told.get(b"content-type") or b"application/json"
    more = [(name, value) for name in _PASSED_ON if (value := told.get(name)) is not None]
    return Answer(told.status, kind, told.body, (*more, *NEVER_KEPT))


def _removed(told: Told) -> int:
    try:
        return int(orjson.loads(told.body)["removed"])
    except (ValueError, TypeError, KeyError) as error:
        raise unavailable(StoreError("what a worker says is no answer")) from error
