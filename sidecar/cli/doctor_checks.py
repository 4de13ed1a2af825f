"""What can be told of this machine without asking anybody: configuration, descriptors, model, keys, clock."""

import ssl
import stat
import sys
import time
from collections.abc import Sequence

from sidecar.checks_inbound import find, load_pair, read_key
from sidecar.cli.doctor_cert import SOON, first_of, lasts, not_after
from sidecar.cli.doctor_folder import ahead
from sidecar.cli.doctor_show import Finding, fail, ok, plural, warn
from sidecar.config import Config, Loaded
from sidecar.core.values import ConfigError, is_loopback
from sidecar.serving.folder import data_dir
from sidecar.web.descriptors import clients_for, descriptors_for

_FEW = 64
"""Clients at once that a machine of any size has to be able to serve."""
_SKEW = 60.0
"""Seconds that the clock may be wrong before certificates, `Age` and logs suffer."""
_JUMP = 0.5
"""Seconds that the two clocks may come apart while this command runs."""
_EARLIEST = 1_750_000_000
"""Unix time before which this was not written."""


def configuration(found: Loaded) -> Finding:
    """Where it came from. That it is valid is known: else there is no further finding."""
    sources: dict[str, int] = {}
    for origin in found.origins.values():
        kind = "flags" if origin.startswith("--") else origin if _is_file(origin) else "the environment"
        sources[kind] = sources.get(kind, 0) + 1
    parts = [f"{plural(count, 'key')} from {source}" for source, count in sources.items()]
    fact = f"valid; {', '.join(parts)}" if parts else "valid; nothing but defaults"
    return ok("configuration", fact, origins=found.origins)


def _is_file(origin: str) -> bool:
    return not (origin.isupper() and origin.isascii())


def who_may_ask(config: Config) -> Finding:
    """How far it can be reached, and by whom."""
    host, count = config.server.host, len(config.clients)
    if count:
        return ok("clients", f"{plural(count, 'client')} with a token may ask")
    if is_loopback(host):
        return ok("clients", f"everybody on this machine may ask, and nobody else ({host})")
    remedy = "add [[clients]], or see to it that only the right ones reach that address"
    return warn("clients", f"everybody who reaches {host} may ask", remedy)


def descriptors(config: Config) -> Finding:
    """How many clients the limit of open files allows."""
    if sys.platform == "win32":
        return ok("descriptors", "no limit on this system")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = config.limits.connections
    if hard == resource.RLIM_INFINITY:
        return ok("descriptors", "no limit", soft=None, hard=None)
    possible, needed = clients_for(hard), descriptors_for(most)
    data = {"soft": None if soft == resource.RLIM_INFINITY else soft, "hard": hard, "clients": possible}
    each = " of each worker" if config.server.workers > 1 else ""
    fact = f"at most {hard:,}, enough for {plural(possible, 'client')} at once{each}"
    remedy = f"LimitNOFILE={needed} in the systemd unit, or `ulimit -Hn {needed}` as root before the start"
    if possible < _FEW:
        return fail("descriptors", fact, remedy, **data)
    if possible < most:
        lower = f"; or limits.connections = {possible}"
        return warn("descriptors", f"{fact}; limits.connections is {most:,}", remedy + lower, **data)
    return ok("descriptors", fact, **data)


def model(config: Config) -> Finding:
    """Whether what questions are compared with is there, and whole."""
    from sidecar.cache.embed import model as models

    mode, semantic = config.cache.mode, config.semantic
    if mode not in ("semantic", "shadow"):
        return ok("model", f"not needed: cache.mode is {mode}")
    if not models.is_local(semantic):
        return ok("model", f"elsewhere: {semantic.embedder}")
    pull = f"slipstream model pull --data-dir {data_dir(config)}"
    try:
        place = models.find(semantic, data_dir(config))
    except ValueError as error:
        return fail("model", str(error), "correct semantic.model")
    if place is None:
        fact = f"{semantic.model} is not there: only identical requests are answered from the cache"
        return fail("model", fact, pull)
    files = {models.GRAPH: place.built.graph, models.TOKENIZER: place.built.tokenizer}
    if semantic.model == models.DEFAULT:
        files |= {file.name: file.sha256 for file in models.PINNED if (place.folder / file.name).exists()}
    try:
        wrong = [name for name, known in files.items() if models.digest(place.folder / name) != known]
    except OSError as error:
        return fail("model", f"{place.folder} cannot be read: {error.strerror}", pull)
    if wrong:
        fact = f"{place.folder}: {', '.join(wrong)} is not what was put there (SHA-256)"
        return fail("model", fact, pull)
    return ok("model", f"{semantic.model}, {plural(len(files), 'file')} with the right SHA-256")


def keys(config: Config) -> list[Finding]:
    """The files with keys of upstreams and of the embedder."""
    named = [
        (f"key of {table.name}", f"upstreams[{number}].key_file", table.key_file)
        for number, table in enumerate(config.upstreams)
    ]
    named.append(("key of embedder", "semantic.key_file", config.semantic.key_file))
    return [_key(check, key, file) for check, key, file in named if file is not None]


def _key(check: str, key: str, file: str) -> Finding:
    try:
        read_key(key, file)
        mode = stat.S_IMODE(find(file).stat().st_mode)
    except ConfigError as error:
        return fail(check, str(error), "put the key there, readable for the user of the sidecar alone")
    except OSError as error:
        return fail(check, f"{key}: {error.strerror}", "put the key there")
    if mode & 0o077:
        return warn(check, f"{find(file)} ({mode:03o}): others may read it", f"chmod 600 {find(file)}")
    return ok(check, f"{find(file)} ({mode:03o})")


def certificate(config: Config) -> Finding | None:
    """Of the proxy port; None where it speaks no TLS."""
    name, key = config.tls.certificate, config.tls.key
    if name is None or key is None:
        return None
    try:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), name, key)
        expires = not_after(first_of(find(name)))
    except ConfigError as error:
        return fail("certificate", str(error), "correct [tls]; both are PEM files")
    except (OSError, ValueError) as error:
        return fail("certificate", f"{name}: {error}", "tls.certificate is to be a PEM file")
    left = expires - time.time()
    if left <= 0:
        return fail("certificate", f"{name} {lasts(expires)}", "renew it, and reload", expires=expires)
    if left < SOON:
        return warn("certificate", f"{name} is {lasts(expires)}", "renew it, and reload", expires=expires)
    return ok("certificate", f"{name} is {lasts(expires)}", expires=expires)


class Clock:
    """The machine's clock: against itself while this command runs, against files, against others."""

    def __init__(self) -> None:
        self._apart = time.time() - time.monotonic()

    def judge(self, config: Config, skews: Sequence[tuple[str, float]]) -> Finding:
        """`skews`: seconds that others' clocks are ahead of ours, and whose; those may be wrong, too."""
        synchronise = "let it be set from the network: timedatectl set-ntp true"
        if time.time() < _EARLIEST:
            day = time.strftime("%Y-%m-%d", time.gmtime(time.time()))
            return fail("clock", f"it says {day}: no certificate is valid then", synchronise)
        jumped = time.time() - time.monotonic() - self._apart
        if abs(jumped) > _JUMP:
            return warn("clock", f"it was set by {jumped:+.1f} s while this command ran", synchronise)
        off = [(who, skew) for who, skew in skews if abs(skew) > _SKEW]
        # One server may be wrong; when most of them say the same, it is us.
        if off and len(off) * 2 > len(skews):
            who, skew = min(off, key=lambda each: abs(each[1]))
            way = "behind" if skew > 0 else "ahead of"
            fact = f"{abs(skew):,.0f} s {way} that of {who}"
            return warn("clock", fact, synchronise, skew_s=round(skew, 1))
        if (late := ahead(config)) is not None:
            return warn("clock", late, f"{synchronise}; or correct the date of that file: touch")
        if not skews:
            return ok("clock", "runs evenly; nobody was there to compare it with")
        who, skew = max(skews, key=lambda each: abs(each[1]))
        fact = f"runs evenly; within {max(abs(skew), 1):.0f} s of {plural(len(skews), 'server')}"
        return ok("clock", fact, skew_s=round(skew, 1))
