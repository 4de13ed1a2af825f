"""OpenAI Responses: the last event of a stream holds the whole answer, byte for byte.

The other way there is none: events number, name and time what the whole answer no longer tells apart.
"""

import msgspec

from sidecar.core.folding.base import events, only, require, typed

_ENDS = {"response.completed": "completed", "response.incomplete": "incomplete"}
_FAILURES = {*_ENDS, "error", "response.failed", "response.cancelled"}


class _End(msgspec.Struct):
    response: msgspec.Raw


_end = msgspec.json.Decoder(_End)


def fold(body: bytes) -> bytes:
    found = events(body)
    if found and found[-1] == (b"", b"[DONE]"):  # some compatible servers add it
        found.pop()
    *before, last = typed(found)
    only(last, {"type", "response", "sequence_number"})
    response = last["response"]
    require(response["object"] == "response" and response["status"] == _ENDS[last["type"]])
    require(not any(event["type"] in _FAILURES for event in before))
    # Some servers leave out of the last event what earlier ones have brought.
    items = {
        event["output_index"]: event["item"]
        for event in before
        if event["type"] == "response.output_item.done"
    }
    told = [(items[index]["type"], items[index].get("id")) for index in range(len(items))]
    require(told == [(item["type"], item.get("id")) for item in response["output"]])
    return bytes(_end.decode(found[-1][1]).response)
