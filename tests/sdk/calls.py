"""The calls of the Python SDKs: each yields what the SDK gave, item by item, until it ends or raises.

A `Seen` is one item: its whole dump, and the text, thought or tool call that the SDK's own attributes show in it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import anthropic
import google.genai
import ollama
import openai
from google.genai import types

from .cases import STATUSES, STREAMS, TEXTS, VARIANTS, Case, Variant

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
FUNCTION: dict[str, Any] = {"name": "get_weather", "description": "The weather", "parameters": SCHEMA}
QUESTION = "What is the weather?"


class Seen(NamedTuple):
    dump: Any
    text: str | None = None
    thought: str | None = None
    tools: tuple[tuple[str, Any], ...] = ()


class Asked(NamedTuple):
    base: str
    model: str
    variant: Variant
    headers: dict[str, str]
    question: str = QUESTION
    key: str = "sk-test"
    heard: list[Any] | None = None
    """Takes the headers of every response, of calls that are not asynchronous."""

    @property
    def turns(self) -> Any:
        return [{"role": "user", "content": self.question}]

    @property
    def hooks(self) -> dict[str, Any]:
        """For the SDK's HTTP client, which need not read the system's certificates each time."""
        heard = self.heard
        if heard is None:
            return {}
        return {"event_hooks": {"response": [lambda got: heard.append(got.headers)]}, "verify": False}


Call = Callable[[Asked], Iterator[Seen] | AsyncIterator[Seen]]


def dump(item: Any) -> Any:
    return item.model_dump(mode="json", warnings=False)


def tool(name: str, arguments: Any) -> tuple[str, Any]:
    return name, json.loads(arguments) if isinstance(arguments, str) else arguments


# openai


def openai_options(asked: Asked) -> dict[str, Any]:
    return {
        "base_url": f"{asked.base}/v1",
        "api_key": asked.key,
        "max_retries": 0,
        "default_headers": asked.headers,
        "http_client": openai.DefaultHttpxClient(**asked.hooks) if asked.hooks else None,
    }


def chat_options(asked: Asked) -> dict[str, Any]:
    options: dict[str, Any] = {"model": asked.model, "messages": asked.turns}
    if asked.variant.tool:
        options["tools"] = [{"type": "function", "function": FUNCTION}]
    if asked.variant.stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    return options


class ChatChunks:
    """Puts the pieces of a tool call together, as an app has to."""

    def __init__(self) -> None:
        self._name = ""
        self._arguments = ""

    def see(self, chunk: Any) -> Seen:
        if not chunk.choices:
            return Seen(dump(chunk))
        choice = chunk.choices[0]
        for call in choice.delta.tool_calls or ():
            self._name += call.function.name or ""
            self._arguments += call.function.arguments or ""
        done = choice.finish_reason == "tool_calls"
        tools = (tool(self._name, self._arguments),) if done else ()
        thought = getattr(choice.delta, "reasoning_content", None)
        return Seen(dump(chunk), choice.delta.content, thought, tools)


def openai_chat(asked: Asked) -> Iterator[Seen]:
    with openai.OpenAI(**openai_options(asked)) as client:
        given = client.chat.completions.create(**chat_options(asked))
        if asked.variant.stream:
            chunks = ChatChunks()
            yield from map(chunks.see, given)
        else:
            message = given.choices[0].message
            tools = tuple(
                tool(call.function.name, call.function.arguments) for call in message.tool_calls or ()
            )
            yield Seen(dump(given), message.content, getattr(message, "reasoning_content", None), tools)


async def openai_chat_async(asked: Asked) -> AsyncIterator[Seen]:
    chunks = ChatChunks()
    async with openai.AsyncOpenAI(**openai_options(asked)) as client:
        async for chunk in await client.chat.completions.create(**chat_options(asked)):
            yield chunks.see(chunk)


def openai_completions(asked: Asked) -> Iterator[Seen]:
    with openai.OpenAI(**openai_options(asked)) as client:
        stream = asked.variant.stream
        given: Any = client.completions.create(model=asked.model, prompt=asked.question, stream=stream)
        for chunk in given if stream else (given,):
            yield Seen(dump(chunk), chunk.choices[0].text)


def openai_responses(asked: Asked) -> Iterator[Seen]:
    options: dict[str, Any] = {"model": asked.model, "input": asked.question}
    if asked.variant.tool:
        options["tools"] = [{"type": "function", **FUNCTION, "strict": False}]
    with openai.OpenAI(**openai_options(asked)) as client:
        if asked.variant.stream:
            with client.responses.stream(**options) as stream:
                for event in stream:
                    wanted = event.type == "response.output_text.delta"
                    yield Seen(dump(event), event.delta if wanted else None)  # type: ignore[union-attr]
                yield seen_response(stream.get_final_response())._replace(text=None)
        else:
            yield seen_response(client.responses.create(**options))


def seen_response(given: Any) -> Seen:
    thoughts = [part.text for item in given.output if item.type == "reasoning" for part in item.summary]
    tools = tuple(tool(item.name, item.arguments) for item in given.output if item.type == "function_call")
    return Seen(dump(given), given.output_text, "".join(thoughts), tools)


def openai_embeddings(asked: Asked) -> Iterator[Seen]:
    with openai.OpenAI(**openai_options(asked)) as client:
        packed = client.embeddings.create(model=asked.model, input=["one", "two"])  # base64 on the wire
        plain = client.embeddings.create(model=asked.model, input=["one", "two"], encoding_format="float")
        assert packed.data[0].embedding == plain.data[0].embedding
        yield Seen(dump(packed))


# anthropic


def anthropic_options(asked: Asked) -> dict[str, Any]:
    return {
        "base_url": asked.base,
        "api_key": asked.key,
        "max_retries": 0,
        "default_headers": asked.headers,
        "http_client": anthropic.DefaultHttpxClient(**asked.hooks) if asked.hooks else None,
    }


def message_options(asked: Asked) -> dict[str, Any]:
    options: dict[str, Any] = {"model": asked.model, "messages": asked.turns, "max_tokens": 100}
    if asked.variant.tool:
        options["tools"] = [{"name": "get_weather", "description": "The weather", "input_schema": SCHEMA}]
    return options


def seen_message(given: Any) -> Seen:
    parts = {
        kind: [part for part in given.content if part.type == kind]
        for kind in ("text", "thinking", "tool_use")
    }
    return Seen(
        dump(given),
        "".join(part.text for part in parts["text"]),
        "".join(part.thinking for part in parts["thinking"]),
        tuple(tool(part.name, part.input) for part in parts["tool_use"]),
    )


def anthropic_messages(asked: Asked) -> Iterator[Seen]:
    with anthropic.Anthropic(**anthropic_options(asked)) as client:
        if not asked.variant.stream:
            yield seen_message(client.messages.create(**message_options(asked)))
            return
        with client.messages.stream(**message_options(asked)) as stream:
            for event in stream:
                yield Seen(dump(event), event.text if event.type == "text" else None)
            yield seen_message(stream.get_final_message())._replace(text=None)


async def anthropic_messages_async(asked: Asked) -> AsyncIterator[Seen]:
    async with (
        anthropic.AsyncAnthropic(**anthropic_options(asked)) as client,
        client.messages.stream(**message_options(asked)) as stream,
    ):
        async for event in stream:
            yield Seen(dump(event), event.text if event.type == "text" else None)
        yield seen_message(await stream.get_final_message())._replace(text=None)


# google-genai


def gemini_options(asked: Asked) -> dict[str, Any]:
    config: dict[str, Any] = {"automatic_function_calling": {"disable": True}}
    if asked.variant.tool:
        config["tools"] = [
            {"function_declarations": [{**FUNCTION, "parameters": None, "parameters_json_schema": SCHEMA}]}
        ]
    return {"model": asked.model, "contents": asked.question, "config": config}


def gemini_client(asked: Asked) -> google.genai.Client:
    retry = types.HttpRetryOptions(attempts=1)
    options = types.HttpOptions(
        base_url=asked.base, headers=asked.headers, retry_options=retry, client_args=asked.hooks or None
    )
    return google.genai.Client(api_key=asked.key, vertexai=False, http_options=options)


def seen_content(given: Any) -> Seen:
    parts = given.candidates[0].content.parts or ()
    return Seen(
        given.model_dump(mode="json", exclude={"sdk_http_response"}),
        "".join(part.text for part in parts if part.text and not part.thought),
        "".join(part.text for part in parts if part.text and part.thought),
        tuple(tool(part.function_call.name, part.function_call.args) for part in parts if part.function_call),
    )


def gemini(asked: Asked) -> Iterator[Seen]:
    with gemini_client(asked) as client:
        if asked.variant.stream:
            yield from map(seen_content, client.models.generate_content_stream(**gemini_options(asked)))
        else:
            yield seen_content(client.models.generate_content(**gemini_options(asked)))


async def gemini_async(asked: Asked) -> AsyncIterator[Seen]:
    with gemini_client(asked) as client:
        async with client.aio as aio:
            async for chunk in await aio.models.generate_content_stream(**gemini_options(asked)):
                yield seen_content(chunk)


# ollama


def ollama_options(asked: Asked) -> dict[str, Any]:
    tools = [{"type": "function", "function": FUNCTION}] if asked.variant.tool else None
    return {"model": asked.model, "messages": asked.turns, "stream": asked.variant.stream, "tools": tools}


def seen_reply(given: Any) -> Seen:
    message = given.message
    tools = tuple(tool(call.function.name, call.function.arguments) for call in message.tool_calls or ())
    return Seen(dump(given), message.content, message.thinking, tools)


def ollama_chat(asked: Asked) -> Iterator[Seen]:
    with ollama.Client(asked.base, headers=asked.headers, **asked.hooks) as client:
        given: Any = client.chat(**ollama_options(asked))
        yield from map(seen_reply, given if asked.variant.stream else (given,))


async def ollama_chat_async(asked: Asked) -> AsyncIterator[Seen]:
    async with ollama.AsyncClient(asked.base, headers=asked.headers) as client:
        given: Any = await client.chat(**ollama_options(asked))
        async for part in given:
            yield seen_reply(part)


def ollama_generate(asked: Asked) -> Iterator[Seen]:
    with ollama.Client(asked.base, headers=asked.headers, **asked.hooks) as client:
        given: Any = client.generate(asked.model, asked.question, stream=asked.variant.stream)
        for part in given if asked.variant.stream else (given,):
            yield Seen(dump(part), part.response, part.thinking)


def ollama_embed(asked: Asked) -> Iterator[Seen]:
    with ollama.Client(asked.base, headers=asked.headers) as client:
        yield Seen(dump(client.embed(asked.model, ["one", "two"])))


CALLS: dict[str, tuple[Call, list[str]]] = {
    "openai.chat": (openai_chat, [*VARIANTS]),
    "openai.chat.async": (openai_chat_async, STREAMS),
    "openai.completions": (openai_completions, TEXTS),
    "openai.responses": (openai_responses, [*VARIANTS]),
    "openai.embeddings": (openai_embeddings, STATUSES),
    "anthropic": (anthropic_messages, [*VARIANTS]),
    "anthropic.async": (anthropic_messages_async, STREAMS),
    "gemini": (gemini, [*VARIANTS]),
    "gemini.async": (gemini_async, STREAMS),
    "ollama.chat": (ollama_chat, [*VARIANTS]),
    "ollama.chat.async": (ollama_chat_async, STREAMS),
    "ollama.generate": (ollama_generate, TEXTS),
    "ollama.embed": (ollama_embed, STATUSES),
}
CASES = [Case(name, VARIANTS[variant]) for name, (_, variants) in CALLS.items() for variant in variants]


def run(
    case: Case, base: str, *, paced: bool, extra: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """What the SDK made of the case, as JSON can hold it. An exception is part of the result. `more`: fields
    of `Asked`."""
    seen: list[Seen] = []
    error = None
    call, _ = CALLS[case.call]
    try:
        headers = case.variant.headers(paced=paced) | (extra or {})
        items = call(Asked(base, case.id, case.variant, headers, **more))
        if isinstance(items, AsyncIterator):
            asyncio.run(_drain(items, seen))
        else:
            seen.extend(items)
    except Exception as raised:  # what the SDK raises is what is looked at
        error = described(raised)
    return {
        "events": [item.dump for item in seen],
        "text": [item.text for item in seen if item.text],
        "thoughts": [item.thought for item in seen if item.thought],
        "tools": [{"name": name, "arguments": given} for item in seen for name, given in item.tools],
        "error": error,
    }


async def _drain(items: AsyncIterator[Seen], seen: list[Seen]) -> None:
    async for item in items:
        seen.append(item)  # what came before an exception counts


def described(error: BaseException) -> dict[str, Any]:
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    return {
        "kind": type(error).__name__,
        "status": status if isinstance(status, int) else None,
        "message": str(error),
    }
