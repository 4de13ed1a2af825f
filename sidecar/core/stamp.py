"""Event ids in a stream on its way to one client.

An id is the last field of its event: a client that adopts ids before it dispatches then never skips an
event that was cut in half. So it goes right before the blank line, and must be written when that line
begins. In streams with CR that can be a byte before the event is known to be over: a CR may be the whole
blank line or the first half of a CRLF one, and what came is forwarded either way.

Nothing else of the bytes changes: without the `id:` lines they are the upstream's.
"""

from array import array

from sidecar.core.answer import Answer


class Stamper:
    """Writes the ids of one client's copy. Fed with all bytes from its start on, in order."""

    __slots__ = ("_answer", "_early", "_events", "_next", "_prefix")

    def __init__(self, answer: Answer, events: "array[int]", stream_id: str, number: int) -> None:
        """`events`: the recording's event ends; `number`: that of the first event to come."""
        self._answer = answer
        self._events = events
        self._next = number
        self._prefix = b"id: %b:" % stream_id.encode()
        self._early = False
        """The next event has its id, though its end has not been seen."""

    def stamp(self, data: bytes, start: int) -> bytes:
        """`data` with ids. `start`: its offset in the recording, of which it holds all that followed."""
        events, number = self._events, self._next
        known = len(events)
        if known <= number and data[-1:] != b"\r":
            return data
        one = known == number + 1 and events[number] == start + len(data) and data[-2:] == b"\n\n"
        if one and not self._early and number < self._answer.ids_until:
            # What nearly always comes: the end of one event, and nothing after it.
            self._next = known
            return b"%b%b%d\n\n" % (data[:-1], self._prefix, number)
        return self._all(data, start, known)

    def _all(self, data: bytes, start: int, known: int) -> bytes:
        parts = []
        done = 0
        until = self._answer.ids_until
        for number in range(self._next, known):
            if self._early:
                self._early = False
            elif number < until:
                end = self._events[number] - start
                at = end - 2 if data[max(end - 2, 0) : end] == b"\r\n" else end - 1
                parts += [data[done:at], self._prefix, b"%d\n" % number]
                done = at
        self._next = max(self._next, known)
        if data[-1:] == b"\r" and not self._early and self._next < until and self._answer.blank_begun:
            parts += [data[done:-1], self._prefix, b"%d\n" % self._next]
            done = len(data) - 1
            self._early = True
        parts.append(data[done:])
        return b"".join(parts)
