"""Ollama: newline-delimited JSON, streamed unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.scripted.answers.base import JSON, Answer, Ask, Json, answer, dumps, listed, plain
from sidecar.scripted.answers.openai import vector
from sidecar.scripted.script import Script, content, produced, thoughts

UTF8 = (("Content-Type", "application/json; charset=utf-8"),)
LINES = (("Content-Type", "application/x-ndjson"),)
CREATED = "2023-11-14T22:13:20Z"


def ask(body: Mapping[str, object], path: str, query: str) -> Ask:
    given = body.get("input")
    inputs = listed(given) if isinstance(given, list) else [given]
    dims = body.get("dimensions")
    return plain(body, path, query)._replace(
        stream=body.get("stream") is not False,
        inputs=tuple(str(item) for item in inputs),
        dims=dims if isinstance(dims, int) else 0,
    )


def refuse(status: int, message: str, _ask: Ask) -> Answer:
    retry = (("Retry-After", "1"),) if status in (429, 529) else ()
    return answer({"error": message}, status, UTF8 + retry)


def chat(ask: Ask, script: Script) -> Answer:
    call = {"function": {"name": ask.tool, "arguments": {"city": "Paris", "days": 3}}}
    said: list[Json] = [{"role": "assistant", "content": "", "thinking": text} for text in thoughts(script)]
    if script.tool:
        said.append({"role": "assistant", "content": "", "tool_calls": [call]})
    else:
        said += [{"role": "assistant", "content": text} for text in content(script)]
    whole: dict[str, object] = {
        "role": "assistant",
        "content": "" if script.tool else "".join(content(script)),
    }
    if script.reasoning:
        whole["thinking"] = "".join(thoughts(script))
    if script.tool:
        whole["tool_calls"] = [call]
    last = {"message": {"role": "assistant", "content": ""}}
    return _lines(ask, script, [{"message": message} for message in said], {"message": whole}, last)


def generate(ask: Ask, script: Script) -> Answer:
    texts, thinking = content(script), thoughts(script)
    parts: list[Json] = [{"response": "", "thinking": text} for text in thinking]
    parts += [{"response": text} for text in texts]
    whole = {"response": "".join(texts), **({"thinking": "".join(thinking)} if thinking else {})}
    return _lines(ask, script, parts, whole, {"response": ""})


def _lines(ask: Ask, script: Script, parts: list[Json], whole: Json, last: Json) -> Answer:
    base = {"model": ask.model, "created_at": CREATED}
    end = {
        "done": True,
        "done_reason": "length" if script.finish == "length" else "stop",
        "total_duration": 5_000_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": script.prompt,
        "prompt_eval_duration": 2_000_000,
        "eval_count": script.reasoning + produced(script),
        "eval_duration": 4_000_000_000,
    }
    if not ask.stream:
        return answer({**base, **whole, **end}, headers=UTF8)
    lines = [dumps({**base, **part, "done": False}) + b"\n" for part in parts]
    lines.append(dumps({**base, **last, **end}) + b"\n")
    return Answer(
        tuple(lines), LINES, stream=True, error=b'{"error":"an error was encountered while running"}\n'
    )


def embed(ask: Ask, script: Script) -> Answer:
    vectors = [vector(text, ask.dims or script.dims) for text in ask.inputs]
    times = {"total_duration": 5_000_000, "load_duration": 1_000_000, "prompt_eval_count": script.prompt}
    return answer({"model": ask.model, "embeddings": vectors, **times}, headers=UTF8)


def tags(_ask: Ask, _script: Script) -> Answer:
    details = {"format": "gguf", "family": "scripted", "parameter_size": "1B", "quantization_level": "Q4_0"}
    model = {
        "name": "scripted:latest",
        "model": "scripted:latest",
        "modified_at": CREATED,
        "size": 1,
        "digest": "0" * 64,
    }
    return answer({"models": [{**model, "details": details}]}, headers=UTF8)


def version(_ask: Ask, _script: Script) -> Answer:
    return answer({"version": "0.12.0"}, headers=JSON)
