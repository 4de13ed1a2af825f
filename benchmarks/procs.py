"""What the kernel says of a process: CPU time used, memory of its own. Linux only."""

import time
from pathlib import Path

import psutil

KB = 1000
MB = 1000 * KB


def family(pid: int) -> list[int]:
    """A process and its descendants, as they are now: nginx's work is done by a child."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes so far, their threads included.

    Read from the process's CPU clock, which counts nanoseconds; the ticks of /proc/PID/stat are 10 ms.
    The clock's number is the one clock_getcpuclockid(3) makes: the pid's complement, and the scheduler's
    clock (2).
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def busy_seconds() -> float:
    """CPU time that the whole machine has used."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def private_bytes(pids: list[int]) -> int:
    """Memory that would be free if the processes ended: private pages, shared libraries not counted."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total
