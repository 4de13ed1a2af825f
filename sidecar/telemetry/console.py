"""Log lines for people: one line per request, the wait first."""

import re
from collections.abc import Mapping
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MARK = {
    "complete": "✓",
    "cancelled": "–",
    "refused": "!",
    "truncated": "✗",
    "upstream_error": "✗",
    "timeout": "✗",
}


_LATE = {"ttft_ms": "first token by", "total_ms": "end by"}


def console_line(fields: Mapping[str, Any]) -> str:
    """Render an event. Control characters never reach the terminal."""
    clock = str(fields.get("timestamp", ""))[11:19]
    text = _request(fields) if fields.get("event") == "request" else _other(fields)
    return _CONTROL.sub("?", f"{clock}  {text}")


def _request(line: Mapping[str, Any]) -> str:
    outcome = line["outcome"]
    parts = [f"{_MARK.get(outcome, '?')} {line['status'] or '---'} {line['method']} {line['path']}"]
    if line["model"]:
        parts.append(f"{line['model']}{' (stream)' if line['stream'] else ''}")
    if line["resumed_from"] is not None:
        parts.append(f"resumed at event {line['resumed_from']}")
    elif line["cache"] == "collapsed":
        parts.append("shared")
    if outcome != "complete":
        parts.append(outcome + (f" ({line['error']})" if line["error"] else ""))
    if line["ttft_ms"] is not None:
        parts.append(f"first {line['ttft_kind']} {_time(line['ttft_ms'])}")
    if line["itl_p50_ms"] is not None:
        gaps = (line["itl_p50_ms"], line["itl_p99_ms"], line["itl_max_ms"])
        parts.append("gaps " + "/".join(_time(gap) for gap in gaps))
    parts.append(f"total {_time(line['total_ms'])}")
    if line["overhead_ms"] is not None:
        parts.append(f"own {_time(line['overhead_ms'])}")
    if line["output_tokens"] is not None:
        rate = f" at {line['tokens_per_second']:g}/s" if line["tokens_per_second"] else ""
        parts.append(f"tokens {line['input_tokens'] or 0}+{line['output_tokens']}{rate}")
    over = line["budget_exceeded"]
    if over is not None:
        told = [f"{what} {_time(over[name])}" for name, what in _LATE.items() if over[name] is not None]
        parts.append(f"late: {', '.join(told)}, most of it {over['phase']} (budget {over['budget']})")
    if line["keepalives"]:
        parts.append(f"keepalives {line['keepalives']}")
    return "  ".join(parts)


def _other(fields: Mapping[str, Any]) -> str:
    rest = (f"{key}={value}" for key, value in fields.items() if key not in ("event", "timestamp", "level"))
    level = fields.get("level", "info")
    mark = "" if level == "info" else f"{level}: "
    return "  ".join([f"{mark}{fields.get('event', '')}", *rest])


def _time(milliseconds: float) -> str:
    if milliseconds >= 10_000:
        return f"{milliseconds / 1000:.1f}s"
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2f}s"
    return f"{milliseconds:.0f}ms" if milliseconds >= 10 else f"{milliseconds:.2g}ms"
