"""Telling those who wait for an answer how far it is: `await progress("reading", done=3, total=12)`."""

from sidecar.core.events import event
from sidecar_starlette.context import HERE


async def progress(message: str, *, done: float | None = None, total: float | None = None) -> None:
    """Sends a `status` event on the stream of the request that the code runs for. From any of its tasks, any
    number at once. Outside of a request, without a stream and after its end it does nothing."""
    channel = HERE.get().channel
    if channel is None:
        return
    status: dict[str, object] = {"message": message}
    if done is not None:
        status["done"] = done
    if total is not None:
        status["total"] = total
    await channel.event(event("status", status))
