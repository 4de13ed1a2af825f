"""What is left to the garbage collector."""

import gc
from collections import Counter
from collections.abc import Awaitable, Callable


async def left_by(once: Callable[[], Awaitable[None]]) -> Counter[str]:
    """Names of types, of all that ten times of this leave in reference cycles; the first three do not count."""
    for _ in range(3):
        await once()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(10):
            await once()
        gc.collect()
        return Counter(type(found).__name__ for found in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
