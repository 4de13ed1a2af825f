"""What the proxy gives to a client, for the routes of an app: `app.add_middleware(SidecarMiddleware,
...)`."""

from collections.abc import Callable, Iterable
from pathlib import Path

from sidecar.core.values import ConfigError
from sidecar.engine.hub import Hub
from sidecar.serving.own import RESERVED
from sidecar_starlette.asgi import App, Receive, Scope, Send, below
from sidecar_starlette.backend import AppBackend
from sidecar_starlette.name import name_of
from sidecar_starlette.prompt import Prompt
from sidecar_starlette.runtime import Given, Runtime, settings
from sidecar_starlette.serve import serve
from sidecar_starlette.who import Credential, Who

_METHODS = ("GET", "POST")
"""Others change something, or have no answer that is worth coming back to."""


class SidecarMiddleware:
    """Pure ASGI. See README for what each of its parameters is for."""

    def __init__(
        self,
        app: App,
        paths: Iterable[str] | Callable[[Scope], bool] | None = None,
        prompt: str | Callable[[bytes], str | None] | None = None,
        credential: Credential | None = None,
        cache: str | None = None,
        data_dir: str | Path | None = None,
        config: Given = None,
    ) -> None:
        """`paths`: prefixes, below where the app is mounted, or a predicate of the ASGI scope; all paths
        when left out. `prompt`: a dotted path into the JSON body, or a callable of the body that returns the
        question. `credential`: a header's name, or a callable of the scope that names who asks. `cache`:
        off, exact, semantic or shadow. `data_dir`: where answers and jobs are kept. `config`: a TOML file's
        path, or a mapping like one.

        Raises ConfigError.
        """
        self.app = app
        if paths is not None and not callable(paths):
            paths = [paths] if isinstance(paths, str) else list(paths)
        self._takes = paths if callable(paths) else _below_any(paths)
        asked = Prompt(prompt) if prompt is not None else None
        who = Who(credential)
        name = name_of(app, paths, prompt, credential)
        given = settings(config, cache=cache, data_dir=data_dir, apart=name)
        if given.config.cache.share != "credential":
            raise ConfigError("cache.share: in an app it is `credential=` that says who shares; leave it out")
        self._timeout = given.config.timeouts.client

        def backend(hub: Hub, secret: bytes) -> AppBackend:
            made = AppBackend(app, hub, given.config, secret, who, asked, name)
            made.common = self._common
            return made

        self._common: dict[str, object] = {}
        self.runtime = Runtime(given, backend)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI 3 has it."""
        kind = scope["type"]
        if kind == "lifespan":
            self._common |= {name: scope[name] for name in ("app", "state") if name in scope}
            await self.runtime.lifespan(self.app, scope, receive, send)
        elif kind == "http" and self._is_ours(scope):
            made = self.runtime.here or await self.runtime.assembly()
            await serve(made.front, scope, receive, send, self._timeout, spelt=False)
        else:
            await self.app(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        if below(scope)[1].startswith(RESERVED):
            return True
        return scope["method"] in _METHODS and self._takes(scope)


def _below_any(paths: Iterable[str] | None) -> Callable[[Scope], bool]:
    """Raises ConfigError."""
    if paths is None:
        return lambda _scope: True
    for prefix in paths:
        if not isinstance(prefix, str) or not prefix.startswith("/"):
            raise ConfigError(f"paths: {prefix!r} is no path prefix; expected one such as /chat")
    whole = frozenset(prefix.rstrip("/") for prefix in paths)
    parts = tuple(f"{prefix}/" for prefix in whole)

    def takes(scope: Scope) -> bool:
        path = below(scope)[1]
        return path in whole or path.startswith(parts)

    return takes
