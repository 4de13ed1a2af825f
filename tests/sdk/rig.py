"""What the SDK tests run against: a scripted provider in a thread, the sidecar as a process, Node as processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sidecar.scripted import ScriptedProvider

from .cases import STATUSES, TEXTS, VARIANTS, Case

T = TypeVar("T")
NODE = Path(__file__).parent / "node"
HANG = 60
"""Seconds after which something has hung. Nothing is measured with it."""
_PLAIN = [name for name in VARIANTS if not name.endswith("-reasoning")]
NODE_CALLS: dict[str, dict[str, list[str]]] = {
    "openai": {
        "openai.chat": [*VARIANTS],
        "openai.completions": TEXTS,
        "openai.responses": [*VARIANTS],
        "openai.embeddings": STATUSES,
    },
    "anthropic": {"anthropic": [*VARIANTS]},
    "gemini": {"gemini": [*VARIANTS]},
    "ollama": {"ollama.chat": [*VARIANTS], "ollama.generate": TEXTS, "ollama.embed": STATUSES},
    # Its chat API knows no reasoning.
    "ai": {"ai.openai": [*VARIANTS], "ai.openai.chat": _PLAIN, "ai.anthropic": [*VARIANTS]},
}
NODE_CASES = [
    (sdk, Case(call, VARIANTS[variant], "node."))
    for sdk, calls in NODE_CALLS.items()
    for call, variants in calls.items()
    for variant in variants
]


class Provider:
    """A `ScriptedProvider` on a loop of its own, for tests that block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="provider")
        self.scripted = ScriptedProvider()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(HANG)

    @property
    def url(self) -> str:
        return self.scripted.url

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self.scripted.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self.scripted.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class Sidecar:
    """The sidecar as users start it, or mounted in an app. Its log is read in a thread; `wait` looks at it."""

    def __init__(
        self, upstream: str, data: Path, cache: str = "off", *, shell: str = "proxy", **variables: str
    ) -> None:
        self._stopped = 0 if shell == "proxy" else -signal.SIGTERM  # which uvicorn passes on when it is done
        where = f"--upstream {upstream} --host 127.0.0.1 --port 0 --admin-port 0"
        command = {
            "proxy": f"sidecar serve {where} --cache {cache} --log-format json",
            "asgi": f"tests.sdk.served {upstream} {cache}",
        }[shell]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SLIPSTREAM_")
        }
        environment |= {"SLIPSTREAM_KEEPALIVE__INTERVAL": "0.02", "SLIPSTREAM_LOG__FORMAT": "json"}
        environment |= {"XDG_CACHE_HOME": str(data), **variables}
        self.lines: list[dict[str, Any]] = []
        self.text: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        self._thread = threading.Thread(target=self._read, name="sidecar log")
        self._thread.start()
        self.url = self._serving()

    def _serving(self) -> str:
        try:
            return str(self.wait(lambda: self.find(event="serving"))[0]["url"])
        except BaseException:
            self.stop()
            raise

    def _read(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        with stream:
            for raw in stream:
                with self._news:
                    self._take(raw.decode())
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _take(self, line: str) -> None:
        self.text.append(line)
        try:
            parsed = json.loads(line)
        except ValueError:
            return
        if isinstance(parsed, dict):
            self.lines.append(parsed)

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        """The log lines that have these values."""
        return [line for line in self.lines if all(line.get(key) == value for key, value in fields.items())]

    def wait(self, look: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """What `look` finds, once it finds something."""
        with self._news:
            self._news.wait_for(lambda: look() or self._ended, HANG)
            if not (found := look()):
                raise AssertionError(f"the sidecar did not log that; it said:\n{''.join(self.text[-30:])}")
            return found

    def request(self, model: str) -> dict[str, Any]:
        """The latency line of the request for that model."""
        return self.wait(lambda: self.find(event="request", model=model))[0]

    def stop(self) -> bool:
        """Returns whether it ended as it should."""
        self._process.terminate()
        try:
            return self._process.wait(HANG) == self._stopped
        finally:
            self._process.kill()
            self._thread.join()


def install_node() -> None:
    """`npm ci`, unless what is installed is what the lock file says."""
    lock = hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()
    stamp = NODE / "node_modules" / ".lock-sha256"
    if stamp.is_file() and stamp.read_text() == lock:
        return
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=NODE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stamp.write_text(lock)


def run_node(
    sdk: str,
    base: str,
    cases: Iterable[Case],
    *,
    paced: bool,
    extra: dict[str, str] | None = None,
    **more: str,
) -> dict[str, Any]:
    """What a JavaScript SDK makes of the cases, by id. `more`: `question` and `key`; with them the results have
    the `cache-status` of the last response, too."""
    asked = [
        {
            "id": case.id,
            "call": case.call,
            "stream": case.variant.stream,
            "tool": case.variant.tool,
            "headers": case.variant.headers(paced=paced) | (extra or {}),
            **more,
        }
        for case in cases
    ]
    done = subprocess.run(
        ["node", str(NODE / "run.mjs")],
        input=json.dumps({"sdk": sdk, "base": base, "cases": asked}),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def at_once(run: Callable[[T], Any], work: Iterable[T]) -> list[Any]:
    """Streams mostly wait, so they wait together."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(run, work))
