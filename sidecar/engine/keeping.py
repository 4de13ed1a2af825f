"""What is kept of a call that has ended: the answer, as a stored one, or the reason why it is not."""

from array import array

import msgspec

from sidecar.core.caching import Reason, unkept
from sidecar.core.entry import Entry, Known
from sidecar.core.headers import end_to_end
from sidecar.core.told import NEVER
from sidecar.core.types import Head
from sidecar.engine.pump import Keep, Live

_PRIVATE = frozenset({b"set-cookie", b"set-cookie2", b"age", b"slipstream-stream-id"})
"""What belonged to the request that an answer was made for, or is said anew."""


class Kept(msgspec.Struct, frozen=True):
    """An answer that is to be stored."""

    entry: Entry
    alias: bytes | None
    """Where those look for it who ask the same in the other mode; None where it is of no use to them."""
    seconds: float
    """For how long."""


def worth_keeping(live: Live, keep: Keep, now: float) -> Kept | Reason:
    """The answer of a call that has ended, if it is to be stored, else why it is not. `now`: unix seconds."""
    recording, answer = live.recording, live.answer
    small = recording.retained and recording.size <= keep.terms.largest
    body = recording.whole() if small else None
    live.learn(body)
    reason = unkept(recording.head, recording.end, answer, body, keep.terms, clean=live.clean)
    if reason is not None:
        return reason
    assert recording.head is not None
    assert body is not None
    # How old it was when it came counts (RFC 9111, 4.2.3).
    known = _known(live, keep, recording.head, now - _age(recording.head))
    entry = Entry(keep.keys.exact, known, body, array("Q", recording.events))
    return Kept(entry, keep.keys.alias, float(keep.terms.ttl + keep.terms.stale_if_error))


def _age(head: Head) -> int:
    said = head.fields.get(b"age", b"")
    return int(said[:9]) if said.isdigit() else 0


def _known(live: Live, keep: Keep, head: Head, now: float) -> Known:
    answer, facts, labels = live.answer, live.answer.facts, live.labels
    fields = [field for field in end_to_end(head.headers, head.fields) if field[0].lower() not in _PRIVATE]
    spoken = answer.last_at - answer.first_at
    return Known(
        status=head.status,
        reason=head.reason.decode("latin-1"),
        headers=tuple([(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]),
        stored=now,
        ttl=keep.terms.ttl,
        dialect=answer.dialect.name if answer.dialect is not None else "",
        path=keep.path,
        query=keep.query,
        stream=answer.streaming,
        upstream=labels.upstream,
        provider=labels.provider,
        operation=labels.operation,
        model=labels.model,
        tag=keep.tag,
        response_model=facts.model,
        finish=facts.finish,
        input_tokens=facts.input_tokens,
        output_tokens=facts.output_tokens,
        cached_input_tokens=facts.cached_input_tokens,
        reasoning_tokens=facts.reasoning_tokens,
        events=answer.events,
        deltas=answer.deltas,
        first_kind=answer.first_kind,
        ids_until=answer.ids_until if answer.ids_until != NEVER else None,
        took=max(live.arrived - live.timings.started, 0.0) if live.timings.started else 0.0,
        gap=spoken / (answer.deltas - 1) if answer.deltas > 1 and spoken > 0 else 0.0,
    )
