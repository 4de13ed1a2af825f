"""Requests to a model or to anything else upstream: read, and given their turn."""

from sidecar.config import Config
from sidecar.core import policy
from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import Caller
from sidecar.core.types import Request
from sidecar.engine.answers import Answers
from sidecar.engine.hub import Hub
from sidecar.serving import intake
from sidecar.serving.asks import Asks
from sidecar.serving.follow import Follow
from sidecar.serving.shell import Arriving
from sidecar.serving.turn import Turn
from sidecar.serving.visit import Visit


class Calls:
    """Serves them. One per process."""

    def __init__(self, config: Config, asks: Asks, hub: Hub, follow: Follow, answers: Answers) -> None:
        self._config = config
        self._asks = asks
        self._hub = hub
        self._follow = follow
        self._answers = answers

    async def serve(self, visit: Visit, raw: Arriving, request: Request, caller: Caller) -> None:
        """Serve one request to its end. Raises RefusedError, ClientGoneError."""
        back = self._follow.coming_back(request, caller)
        intake.patience(request.fields.get(b"slipstream-disconnect"))  # refused before anything is begun
        ids = policy.takes_ids(request.fields)
        asked = await self._asks.receive(visit, raw, request, whole=ids)
        if back is None and request.fields.get(b"last-event-id") and asked.dialect and asked.intent.stream:
            raise RefusedError("not_found", "no stream has such an event", close=False)
        ask = self._asks.ask(visit, asked, caller)
        if back is not None:
            live = self._follow.known(back[0])
            same = ask.identity and ask.identity == live.ask.identity
            if not same and (ask.key is None or ask.key != live.ask.key):
                raise RefusedError("not_found", "no stream has such an event", close=False)
            number = self._follow.after(live, back[1])
            await self._follow.follow(visit, live, request, caller, number, resumed=True)
            return
        await Turn(self._config, self._hub, self._follow, self._answers, visit, asked, ask, caller).serve()
