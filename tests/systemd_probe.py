"""Tries, as the service, what the unit allows and what it does not; see test_systemd."""

import ctypes
import json
import mmap
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)


def written(path: str) -> Callable[[], str]:
    def write() -> str:
        (Path(path) / "probe").write_text("x")
        return "written"

    return write


def system(name: str, *arguments: object) -> Callable[[], str]:
    def call() -> str:
        if getattr(LIBC, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)
        return "done"

    return call


def executable() -> str:
    """Memory that is written and executed."""
    mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    return "mapped"


def made_executable() -> str:
    address = ctypes.c_void_p(ctypes.addressof(ctypes.create_string_buffer(8192)) & ~4095)
    return system("mprotect", address, 4096, 5)()


def family(number: int) -> Callable[[], str]:
    def make() -> str:
        socket.socket(number, socket.SOCK_DGRAM).close()
        return "made"

    return make


def status(name: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))


def capabilities() -> str:
    sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    return "none" if all(int(status(name), 16) == 0 for name in sets) else "some"


def suid() -> str:
    (Path(os.environ["STATE_DIRECTORY"]) / "probe").chmod(0o4700)
    return "set"


def names(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


TRIES: dict[str, Callable[[], object]] = {
    "a credential": lambda: (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "keys_openai").read_text().strip(),
    "state": written(os.environ["STATE_DIRECTORY"]),
    "runtime": written(os.environ["RUNTIME_DIRECTORY"]),
    "/tmp": written("/tmp"),
    "the configuration": written("/opt/etc/slipstream"),
    "/etc": written("/etc"),
    "/var": written("/var"),
    "/usr": written("/usr"),
    "/sys": written("/sys"),
    "/dev": written("/dev"),
    "a disk": lambda: Path("/dev/vda").read_bytes(),
    "the machine's memory": lambda: Path("/proc/kcore").read_bytes(),
    "a setting of the kernel": lambda: Path("/proc/sys/kernel/ns_last_pid").write_text("1"),
    "the first process": lambda: Path("/proc/1/status").read_text(),
    "memory to write and execute": executable,
    "memory made executable": made_executable,
    "a raw network": family(socket.AF_PACKET),
    "a netlink": family(socket.AF_NETLINK),
    "an address": family(socket.AF_INET6),
    "a namespace": system("unshare", 0x20000),
    "a mount": system("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None),
    "a hostname": system("sethostname", b"x", 1),
    "a clock": system("settimeofday", ctypes.create_string_buffer(16), None),
    "another process": system("ptrace", 0, 0, 0, 0),
    "another personality": system("personality", 0x0040000),
    "a real-time schedule": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "a priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
    "another user": lambda: os.setuid(0),
    "a suid file": suid,
    "the kernel's log": system("klogctl", 3, ctypes.create_string_buffer(64), 64),
    "capabilities": capabilities,
    "no new privileges": lambda: status("NoNewPrivs"),
    "filters": lambda: status("Seccomp_filters"),
    "/proc": lambda: [name for name in names("/proc") if name.isdecimal() and int(name) != os.getpid()],
    "/home": lambda: names("/home"),
    "open files": lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    "core": lambda: resource.getrlimit(resource.RLIMIT_CORE)[1],
    "mask": lambda: oct(os.umask(0o077)),
    "user": os.getuid,
}


def main() -> None:
    """One line of JSON: what became of each try."""
    found: dict[str, object] = {}
    for name, attempt in TRIES.items():
        try:
            found[name] = attempt()
        except OSError:
            found[name] = "refused"
    json.dump(found, sys.stdout)
