"""Event ids in a stream on its way to one client.

An id is the last field of its event: a client that adopts ids before it dispatches then never skips an
event that was cut in half. So it goes right before the blank line, and must be written when that line
begins. In streams with CR that can be a byte before the event is known to be over: a CR may be the whole
blank line or the first half of a CRLF one, and what came is forwarded either way.

Its line ends as the one before it does: some parsers look for the blank line as LF LF or CRLF CRLF only.

Nothing else of the bytes changes: without the `id:` lines they are the upstream's.
"""

from array import array

from sidecar.core.answer import Answer


class Stamper:
    """Writes the ids of one client's copy. Fed with all bytes from its start on, in order."""

    __slots__ = ("_answer", "_early", "_events", "_next", "_prefix", "_tail")

    def __init__(self, answer: Answer, events: "array[int]", stream_id: str, number: int) -> None:
        """`events`: the recording's event ends; `number`: that of the first event to come."""
        self._answer = answer
        self._events = events
        self._next = number
        self._prefix = b"id: %b:" % stream_id.encode()
        self._tail = b"\n"
        """The last bytes so far, where an event may go on."""
        self._early = False
        """The next event has its id, though its end has not been seen."""

    def stamp(self, data: bytes, start: int) -> bytes:
        """`data` with ids. `start`: its offset in the recording. It ends with the recording so far, or with
        an event."""
        events, number = self._events, self._next
        known = len(events)
        if known <= number and data[-1:] != b"\r":
            self._tail = (self._tail + data[-2:])[-2:]
            return data
        one = known == number + 1 and events[number] == start + len(data) and data[-2:] == b"\n\n"
        if one and data[-3:] != b"\r\n\n" and not self._early and number < self._answer.ids_until:
            # What nearly always comes: the end of one event, and nothing after it.
            self._next = known
            return b"%b%b%d\n\n" % (data[:-1], self._prefix, number)
        return self._all(data, start, known)

    def _all(self, data: bytes, start: int, known: int) -> bytes:
        until, last = self._answer.ids_until, start + len(data)
        parts: list[bytes] = []
        done = 0
        plain = b"\r" not in data and not self._early and b"\r" not in self._tail
        number = self._next
        while number < known and (end := self._events[number]) <= last:
            if self._early:
                self._early = False
            elif number < until:
                end -= start
                at = end - 2 if not plain and data[max(end - 2, 0) : end] == b"\r\n" else end - 1
                line = b"%b%d\n" % (self._prefix, number) if plain else self._line(number, data, at)
                parts += (data[done:at], line)
                done = at
            number += 1
        self._next = max(self._next, number)
        # All that is known has been passed on, so what ends here is what came last.
        open_end = number == known and data[-1:] == b"\r" and not self._early and number < until
        if open_end and self._answer.blank_begun:
            at = len(data) - 1
            parts += (data[done:at], self._line(self._next, data, at))
            done = at
            self._early = True
        self._tail = (self._tail + data[-2:])[-2:]
        parts.append(data[done:])
        return b"".join(parts)

    def closing(self, frame: bytes) -> bytes:
        """A frame of our own as the last event, with the id after the last one: who comes back with it has
        been told everything. As it is, where events of this stream get no more ids."""
        number = len(self._events)
        if number >= self._answer.ids_until or number < self._next:
            return frame
        return b"%b%b%d\n\n" % (frame[:-1], self._prefix, number)

    def _line(self, number: int, data: bytes, at: int) -> bytes:
        """The field that goes in at this place."""
        before = (self._tail + data[max(at - 2, 0) : at])[-2:]
        end = before if before == b"\r\n" else before[-1:]
        return b"%b%d%b" % (self._prefix, number, end)
