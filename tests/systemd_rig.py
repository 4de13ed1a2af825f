"""Runs a command under the settings of a service unit, as far as that goes without systemd: namespaces, mounts, a
user without rights, and the system call filters that systemd would install.

`python systemd_rig.py UNIT SPEC`, as root; SPEC is JSON, see `main`. Each setting of the unit is looked up below: what
is neither applied, imitated nor known to be systemd's own business ends the rig, so that none is forgotten.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

APPLIED = {
    "AmbientCapabilities": "empty",
    "CapabilityBoundingSet": "empty",
    "LimitCORE": "set",
    "LimitNOFILE": "set",
    "LockPersonality": "filter",
    "MemoryDenyWriteExecute": "filter",
    "NoNewPrivileges": "set",
    "PrivateDevices": "a /dev with six devices",
    "PrivateIPC": "namespace",
    "PrivateMounts": "namespace",
    "PrivateTmp": "a /tmp of its own",
    "PrivateUsers": "namespace",
    "ProtectControlGroups": "read-only",
    "ProtectHome": "empty folders",
    "ProtectHostname": "namespace, filter",
    "ProtectKernelTunables": "read-only",
    "ProtectProc": "mount",
    "ProtectSystem": "read-only",
    "RestrictAddressFamilies": "filter",
    "RestrictNamespaces": "filter",
    "RestrictRealtime": "filter",
    "RestrictSUIDSGID": "filter",
    "RuntimeDirectory": "made",
    "RuntimeDirectoryMode": "made",
    "StateDirectory": "made",
    "StateDirectoryMode": "made",
    "SystemCallArchitectures": "filter",
    "SystemCallErrorNumber": "filter",
    "SystemCallFilter": "filter",
    "UMask": "set",
}
IMITATED = {
    "DynamicUser": "some user without rights, instead of one that is made for the service",
    "ExecStart": "run, with the program and the configuration at other paths",
    "LoadCredential": "a folder with files, instead of what systemd mounts",
    "NotifyAccess": "the test listens",
    "ProtectClock": "by the filter and the missing rights; there is no list of devices",
    "ProtectKernelLogs": "by the filter and the missing rights",
    "ProtectKernelModules": "by the filter and the missing rights",
    "Type": "the test listens",
    "WatchdogSec": "the test listens",
}
UNTRIED = {
    "EnvironmentFile",
    "ExecReload",
    "KillMode",
    "LogRateLimitIntervalSec",
    "OOMPolicy",
    "RemoveIPC",
    "Restart",
    "RestartSec",
    "SyslogIdentifier",
    "TasksMax",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "WatchdogSignal",
}
"""What only systemd itself can do."""

USER = 61234
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
_MOST_FAMILIES = 45
_LIBC = ctypes.CDLL(None, use_errno=True)
_SUID, _SGID = 0o4000, 0o2000
_SET_DUMPABLE, _CAPBSET_READ, _CAPBSET_DROP, _SET_NO_NEW_PRIVS = 4, 23, 24, 38
_NEWUSER = 0x10000000
_NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, _NEWUSER, 0x20000000, 0x40000000)


def settings(unit: Path, of: str = "Service") -> dict[str, list[str]]:
    """Of that section; all values of each key."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in map(str.strip, unit.read_text().splitlines()):
        if line.startswith("["):
            section = line
        elif section == f"[{of}]" and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def main() -> None:
    """SPEC: `shown`, folders that are seen elsewhere (target: source), below /opt; `written`, those of them that stay
    writable; `files`, below /opt as well (target: text); `command`; `environment`; `listen`, the descriptor of a
    socket to pass on. What comes on standard input are names of signals for the service; with its end all ends."""
    unit, spec = settings(Path(sys.argv[1])), json.loads(sys.argv[2])
    unknown = unit.keys() - APPLIED.keys() - IMITATED.keys() - UNTRIED
    assert not unknown, f"settings that the rig does not know: {sorted(unknown)}"
    if os.getpid() != 1:
        # All that is in the new namespaces ends with this process.
        flags = ["--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child=SIGKILL"]
        command = [sys.executable, __file__, *sys.argv[1:]]
        os.execvp("unshare", ["unshare", *flags, "--propagation", "private", *command])
    allowed = _names(unit["SystemCallFilter"])
    _mount(spec)
    child = os.fork()
    if not child:
        try:
            _become(unit, spec, allowed)
        except BaseException:  # it must not go on as a second rig
            traceback.print_exc()
            os._exit(126)
    threading.Thread(target=_relay, args=(child,), daemon=True).start()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(128 - code if code < 0 else code)


def _relay(child: int) -> None:
    for line in sys.stdin:
        os.kill(child, signal.Signals[line.strip()])
    os._exit(125)


# Mounts.


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _mount(spec: dict) -> None:
    _run("mount", "-t", "proc", "-o", "hidepid=invisible", "proc", "/proc")
    for place in ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"):
        if Path(place).exists():
            _run("mount", "--bind", place, place)
            _run("mount", "-o", "remount,bind,ro", place)
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/opt")
    for target, source in spec["shown"].items():
        Path(target).mkdir(parents=True)
        _run("mount", "--bind", source, target)
    for target, text in spec["files"].items():
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)
    _devices()
    with Path("/proc/self/mountinfo").open() as file:
        mounted = dict.fromkeys(line.split()[4] for line in file)
    for place in mounted:
        if place not in spec["written"] and not place.startswith(("/proc", "/dev", "/tmp")):
            _run("mount", "-o", "remount,bind,ro", place)
    for place in ("/home", str(Path("~root").expanduser()), "/run/user"):
        if Path(place).is_dir():
            _run("mount", "-t", "tmpfs", "-o", "mode=000,ro", "tmpfs", place)
    _run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp")


def _devices() -> None:
    made = Path("/opt/dev")
    made.mkdir()
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(made))
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        (made / name).touch()
        _run("mount", "--bind", f"/dev/{name}", str(made / name))
    _run("mount", "--move", str(made), "/dev")
    _run("mount", "-o", "remount,bind,ro", "/dev")


# The process itself.


def _become(unit: dict[str, list[str]], spec: dict, allowed: set[str]) -> None:
    """The service."""
    os.umask(int(unit["UMask"][0], 8))
    # Some machines do not let anybody raise it.
    files = min(int(unit["LimitNOFILE"][0]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for key, folder in zip(("StateDirectory", "RuntimeDirectory"), spec["written"], strict=True):
        _give(Path(folder), int(unit[f"{key}Mode"][0], 8))
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    _prctl(_SET_DUMPABLE, 1)  # or its files in /proc would be root's
    _call("unshare", _NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{USER} {USER} 1")
    Path("/proc/self/gid_map").write_text(f"{USER} {USER} 1")
    for capability in range(_capabilities()):
        _prctl(_CAPBSET_DROP, capability)
    _prctl(_SET_NO_NEW_PRIVS, 1)
    os.dup2(spec["listen"], 3)
    environment = {**spec["environment"], "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.chdir("/")
    Filters(unit).load(allowed)
    os.execve(spec["command"][0], spec["command"], environment)


def _give(folder: Path, mode: int) -> None:
    """It and what is in it is the user's."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER)
    folder.chmod(mode)


def _capabilities() -> int:
    """How many there are."""
    number = 0
    while _LIBC.prctl(_CAPBSET_READ, number, 0, 0, 0) >= 0:
        number += 1
    return number


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, value, 0, 0, 0)


def _call(name: str, *arguments: int) -> None:
    if getattr(_LIBC, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


# System call filters, as systemd makes them (src/shared/seccomp-util.c).


class _Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


_LT, _EQ, _GT, _MASKED = 2, 4, 6, 7
_ALLOW = 0x7FFF0000


def _error(number: int) -> int:
    return 0x00050000 | number


class Filters:
    """Those of one unit."""

    def __init__(self, unit: dict[str, list[str]]) -> None:
        self._unit = unit
        self._lib = ctypes.CDLL("libseccomp.so.2")
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._lib.seccomp_init.argtypes = [ctypes.c_uint32]
        rule = self._lib.seccomp_rule_add_array
        rule.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
        for name in ("seccomp_load", "seccomp_release"):
            getattr(self._lib, name).argtypes = [ctypes.c_void_p]
        self._lib.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]

    def load(self, allowed: set[str]) -> None:
        """Install them; the one with the list of calls comes last, as it may take away the call that does it."""
        for name in (
            "MemoryDenyWriteExecute",
            "RestrictNamespaces",
            "RestrictRealtime",
            "RestrictSUIDSGID",
            "LockPersonality",
            "ProtectHostname",
        ):
            assert self._unit[name] == ["yes"], name
        self._denied(self._memory())
        self._denied(self._families())
        self._denied(self._rest())
        assert self._unit["SystemCallErrorNumber"] == ["EPERM"]
        context = self._begin(_error(errno.EPERM))
        for name in allowed:
            self._add(context, _ALLOW, name)
        self._end(context)

    def _memory(self) -> list:
        write_and_execute, execute, shared_execute = 0x2 | 0x4, 0x4, 0o100000
        return [
            ("mmap", errno.EPERM, (2, _MASKED, write_and_execute, write_and_execute)),
            ("mprotect", errno.EPERM, (2, _MASKED, execute, execute)),
            ("pkey_mprotect", errno.EPERM, (2, _MASKED, execute, execute)),
            ("shmat", errno.EPERM, (2, _MASKED, shared_execute, shared_execute)),
        ]

    def _families(self) -> list:
        kept = {_FAMILIES[name] for name in self._unit["RestrictAddressFamilies"][0].split()}
        denied = [("socket", errno.EAFNOSUPPORT, (0, _GT, _MOST_FAMILIES, 0))]
        for family in set(range(_MOST_FAMILIES + 1)) - kept:
            denied.append(("socket", errno.EAFNOSUPPORT, (0, _EQ, family, 0)))
        return denied

    @staticmethod
    def _rest() -> list:
        denied: list = [("clone3", errno.ENOSYS), ("setns", errno.EPERM)]
        for flag in _NAMESPACES:
            denied += [(name, errno.EPERM, (0, _MASKED, flag, flag)) for name in ("unshare", "clone")]
        # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE.
        denied += [("sched_setscheduler", errno.EPERM, (1, _EQ, policy, 0)) for policy in (1, 2, 6)]
        for bit in (_SUID, _SGID):
            for name, argument in (
                ("chmod", 1),
                ("fchmod", 1),
                ("fchmodat", 2),
                ("mkdir", 1),
                ("mkdirat", 2),
            ):
                denied.append((name, errno.EPERM, (argument, _MASKED, bit, bit)))
        denied.append(("personality", errno.EPERM, (0, _GT, 0, 0)))
        denied += [("sethostname", errno.EPERM), ("setdomainname", errno.EPERM)]
        return denied

    def _denied(self, rules: list) -> None:
        context = self._begin(_ALLOW)
        for name, number, *compare in rules:
            self._add(context, _error(number), name, *compare)
        self._end(context)

    def _begin(self, default: int) -> int:
        context = self._lib.seccomp_init(default)
        assert context
        assert self._lib.seccomp_attr_set(context, 3, 0) == 0  # no_new_privs is set
        return context

    def _add(self, context: int, action: int, name: str, *compare: tuple[int, int, int, int]) -> None:
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # of another architecture
        array = (_Compare * len(compare))(*compare)
        code = self._lib.seccomp_rule_add_array(
            context, action, number, len(compare), ctypes.addressof(array)
        )
        assert code == 0, (name, code)

    def _end(self, context: int) -> None:
        code = self._lib.seccomp_load(context)
        assert code == 0, os.strerror(-code)
        self._lib.seccomp_release(context)


def _names(lines: list[str]) -> set[str]:
    """The calls that are allowed, by the settings in order."""
    found = _group("@default")
    for line in lines:
        names = {name for word in line.removeprefix("~").split() for name in _group(word)}
        found = found - names if line.startswith("~") else found | names
    return found


def _group(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    command = ["systemd-analyze", "syscall-filter", name]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    members = [line.strip() for line in said[1:] if line.strip() and not line.strip().startswith("#")]
    return {call for member in members for call in _group(member)}


if __name__ == "__main__":
    main()
