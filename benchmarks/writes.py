"""How often a process writes: by strace, or as the kernel counts it for every thread."""

import asyncio
import re
import signal
from pathlib import Path

from benchmarks.wire import Parsed

CALLS = "write,writev,sendto,sendmsg,sendmmsg,sendfile"


def calls_so_far(pid: int) -> int:
    """Write calls of the main thread, which is the sidecar's event loop, whatever they wrote to; 0 where the
    kernel does not count them."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/io").read_text()
    except OSError:
        return 0
    return int(text.partition("syscw:")[2].split(maxsplit=1)[0])


async def traced(
    program: str, folder: str, pid: int, client: Parsed, request: bytes, count: int
) -> float | None:
    """Write calls on this client's connection, per request; None where tracing is not allowed."""
    out = Path(folder) / "strace"
    command = [program, "-f", "-yy", "-e", f"trace={CALLS}", "-o", str(out), "-p", str(pid)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    if b" attached" not in await process.stderr.readline():
        await process.wait()
        return None
    try:
        for _ in range(count):
            await client.fetch(request)
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()
    _, port = client.transport.get_extra_info("sockname")
    wrote = re.compile(rf"^\d+ +\w+\(\d+<TCP:\[[^]]*->[^]]*:{port}\]>", re.MULTILINE)
    return len(wrote.findall(out.read_text())) / count
