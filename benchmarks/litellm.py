"""LiteLLM's proxy with its cache in memory, beside the sidecar: the same requests, the same provider.

It lives in a virtual environment of its own, in the user's cache folder, made when it is first needed.
"""

import os
import secrets
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from benchmarks.asks import ANOTHER, CREDENTIAL, WHOLE
from benchmarks.cached import HIT, calls_made
from benchmarks.jobs import Requests
from benchmarks.measure import Bench, Values
from benchmarks.peers import HOST, Peer, free_port, sidecar
from benchmarks.procs import cpu_seconds

# Those two were malicious: https://github.com/BerriAI/litellm/issues/24518
PACKAGE = "litellm[proxy]!=1.82.7,!=1.82.8"
PATIENCE = 120.0
"""Seconds it may take to start."""
LONGEST = 1800.0
"""Seconds that pip may take."""
PAUSE = 0.3
IDLE = 0.05
"""Share of a core that is nothing."""
LONGEST_WORK = 20.0
CONNECTIONS = 32
FOUND = r"\r\n(?i:x-litellm-cache-key): "
CONFIG = """
model_list:
  - model_name: scripted
    litellm_params:
      model: openai/scripted
      api_base: http://{upstream}/v1
      api_key: none
      extra_headers: {{X-Scripted: '{{"tokens": 150}}'}}
general_settings:
  master_key: {key}
litellm_settings:
  cache: true
  cache_params: {{type: local}}
  num_retries: 0
"""
# It asks the network for nothing at its start, and logs as little as it can.
ENVIRONMENT = ("LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR", "NO_DOCS=True", "NO_REDOC=True")


class UnavailableError(Exception):
    """It could not be installed."""


class Beside(NamedTuple):
    """Microseconds of CPU per request."""

    hit: Values
    miss: Values
    version: str


def beside(bench: Bench) -> Beside:
    """Whole answers: the same one again and again, and another one each time. Raises UnavailableError and
    PeerError."""
    program, version = _installed(bench)
    key = f"sk-{secrets.token_hex(32)}"  # without one it does not start
    requests = [
        request.replace(CREDENTIAL, b"Authorization: Bearer %b" % key.encode())
        for request in (WHOLE, ANOTHER)
    ]
    found = Beside(defaultdict(list), defaultdict(list), version)
    bench.note(f"starting LiteLLM {version}")
    with (
        _started(bench, program, key) as theirs,
        sidecar(bench.folder, bench.provider.port, "--cache", "exact") as ours,
    ):
        rounds = bench.size.rounds
        for number in range(-1, rounds):
            bench.note(f"beside LiteLLM, round {number + 1} of {rounds}" if number >= 0 else "warming up")
            for peer in (theirs, ours) if number % 2 else (ours, theirs):
                pattern = FOUND if peer is theirs else HIT
                hit, miss = _round(bench, peer, number + 1, requests, pattern)
                if number >= 0:
                    found.hit[peer.name].append(hit)
                    found.miss[peer.name].append(miss)
    return found


def _round(bench: Bench, peer: Peer, number: int, requests: list[bytes], pattern: str) -> tuple[float, float]:
    same, another = requests
    # It takes two milliseconds or more for a request.
    count = bench.size.requests // (10 if peer.name == "LiteLLM" else 2)

    def cpu(request: bytes, *, hit: bool) -> float:
        before = cpu_seconds(peer.pids)
        bench.load(
            peer,
            Requests,
            request=request,
            count=count,
            concurrent=CONNECTIONS,
            number=1 + number * bench.size.requests,
            expected=pattern if hit else "",
        )
        _settle(peer)
        return (cpu_seconds(peer.pids) - before) / count * 1e6

    with calls_made(bench, count):
        missed = cpu(another, hit=False)
    # It keeps no more than two hundred answers: the one may be gone.
    bench.load(peer, Requests, request=same, count=1, concurrent=1)
    _settle(peer)
    with calls_made(bench, 0):
        found = cpu(same, hit=True)
    return found, missed


def _settle(peer: Peer) -> None:
    """Wait until it has done what there is to do once the clients have their answers: storing, logging."""
    until = time.monotonic() + LONGEST_WORK
    busy = True
    while busy and time.monotonic() < until:
        before = cpu_seconds(peer.pids)
        time.sleep(PAUSE)
        busy = cpu_seconds(peer.pids) - before > IDLE * PAUSE


def _started(bench: Bench, program: Path, key: str) -> Peer:
    port = free_port()
    config = bench.folder / "litellm.yaml"
    config.write_text(CONFIG.format(upstream=f"{HOST}:{bench.provider.port}", key=key))
    options = f"--config {config} --host {HOST} --port {port} --num_workers 1 --telemetry False"
    command = ["/usr/bin/env", *ENVIRONMENT, str(program), *options.split()]
    return Peer("LiteLLM", command, port, bench.folder, "/health/liveliness", PATIENCE)


def _installed(bench: Bench) -> tuple[Path, str]:
    """The program, and its version."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "slipstream-benchmarks" / "litellm"
    python, program = folder / "bin" / "python", folder / "bin" / "litellm"
    if not program.exists():
        bench.note(f"installing {PACKAGE} in {folder}; that takes minutes")
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", PACKAGE])
    said = "from importlib.metadata import version; print(version('litellm'))"
    return program, _run([str(python), "-c", said]).strip()


def _run(command: list[str]) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{type(error).__name__} in {command[:4]}") from None
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"]
        raise UnavailableError(lines[-1][:300])
    return ran.stdout
