"""A chat over a few documents, in one file to copy from. No key and no network are needed:

    pip install '.[starlette]' uvicorn && python plugins/examples/chat.py

`POST /chat {"message": "..."}` searches, cites what it found and streams a model's answer. SidecarMiddleware
adds that an answer goes on after a cut connection, that a question asked before is answered from the cache,
that whoever cancels or leaves ends the model's call, and a line on stderr that says where the time went. The
page uses all of it with fetch() alone. The model is a scripted one in this process; `--upstream URL` takes an
OpenAI-compatible one, with the key in OPENAI_API_KEY. This app has no users: where yours has, `credential=`
says who asks, and keeps each one's answers and streams from the others.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import aiohttp

from sidecar.scripted import Script, ScriptedProvider

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    from sidecar_starlette import SidecarMiddleware, SidecarResponse, progress, span
except ImportError as missing:
    sys.exit(f"{missing.name} is not installed: pip install '.[starlette]' uvicorn")

DOCUMENTS = {
    "Cut connections": "When a connection is cut, its answer goes on being recorded. The page comes back "
    "with the id of the last event it has, and gets the rest: every event once, none twice.",
    "Cancelling": "A user who presses cancel, or leaves, stops the generator where it waits. The model's "
    "call is closed with it, so nobody pays for words that no one reads.",
    "Stored answers": "A whole answer is stored once its client has it. The same question gets it from the "
    "cache at once, for an hour, and the model is not called.",
    "Spans": "Every request leaves one line: time to the first token, gaps between tokens, and the phases "
    "that your own code has named with a span, such as retrieval.",
}


class Model(NamedTuple):
    session: aiohttp.ClientSession
    name: str
    scripted: bool


def words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]{5,}", text.lower())}


async def retrieve(question: str) -> list[tuple[int, str]]:
    """The documents that share most words with the question: how many, and the title."""
    asked, found = words(question), []
    for done, (title, text) in enumerate(DOCUMENTS.items(), 1):
        await asyncio.sleep(0.12)  # stands for your vector store
        await progress("Searching", done=done, total=len(DOCUMENTS))
        if shared := asked & words(f"{title} {text}"):
            found.append((len(shared), title))
    return sorted(found, reverse=True)[:3]


async def reply(model: Model, question: str) -> AsyncIterator[str | tuple[str, object]]:
    """The pieces of an answer. Cancelling stops this where it waits, and the model's call with it."""
    with span("retrieval"):
        found = await retrieve(question)
    for score, title in found:
        yield "citation", {"title": title, "score": score}
    await progress("Writing")
    facts = "\n\n".join(DOCUMENTS[title] for _, title in found) or "No document says anything about that."
    told = {"system": f"Answer from these documents:\n\n{facts}", "user": question}
    messages = [{"role": role, "content": content} for role, content in told.items()]
    ask = {"model": model.name, "stream": True, "messages": messages}
    headers = {"X-Scripted": json.dumps({"text": facts})} if model.scripted else None
    async with model.session.post("chat/completions", json=ask, headers=headers) as response:
        response.raise_for_status()
        async for line in response.content:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            for choice in json.loads(data).get("choices", ()) if data.startswith(b"{") else ():
                if text := choice["delta"].get("content"):
                    yield text
    raise RuntimeError("the model's answer ended before it was whole")


async def chat(request: Request) -> Response:
    try:
        message = (await request.json())["message"].strip()
    except (ValueError, LookupError, TypeError, AttributeError):
        return JSONResponse({"detail": 'expected {"message": "a question"}'}, status_code=400)
    return SidecarResponse(reply(request.state.model, message))


@asynccontextmanager
async def with_model(url: str | None, name: str, _app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """The app's lifespan: the model is there for as long as the app is."""
    scripted = url is None
    async with AsyncExitStack() as stack:
        if url is None:
            provider = ScriptedProvider(script=Script(first=0.3, interval=0.04), record=False)
            url = f"{(await stack.enter_async_context(provider)).url}/v1"
        bearer = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
        session = aiohttp.ClientSession(f"{url.rstrip('/')}/", headers=bearer, timeout=timeout)
        yield {"model": Model(await stack.enter_async_context(session), name, scripted)}


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat that survives cut connections.")
    parser.add_argument("--port", type=int, default=8000, help="0: one that is free")
    parser.add_argument("--data-dir", help="where answers are kept; else they go when this ends")
    parser.add_argument("--cache", default="exact", help="off, exact, shadow or semantic (loads 90 MB once)")
    parser.add_argument("--upstream", help="such as https://api.openai.com/v1")
    parser.add_argument("--model", default="any", help="the upstream's name of it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", given.port)) as bound:
        kept = {"cache": given.cache, "data_dir": given.data_dir or folder}
        app = Starlette(
            routes=[Route("/", HTMLResponse(PAGE)), Route("/chat", chat, methods=["POST"])],
            middleware=[Middleware(SidecarMiddleware, paths=["/chat"], prompt="message", **kept)],
            lifespan=partial(with_model, given.upstream, given.model),
        )
        print(f"http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[bound])


PAGE = r"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Chat</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>
  :root { color-scheme: light dark; --accent: light-dark(#0b57d0, #9cc3ff) }
  body { margin: 0 auto; padding: 0 1rem; max-width: 46rem; height: 100dvh; display: flex; flex-flow: column;
    font: 1rem/1.5 system-ui; background: light-dark(#fff, #14181f); color: light-dark(#1b2029, #e6eaf1) }
  #log { flex: 1; display: flex; flex-flow: column-reverse; overflow-y: auto; overflow-wrap: anywhere }
  h1 { font-size: 1.1rem } h2 { margin: 1rem 0 .5rem auto; max-width: 80%; width: fit-content; font: inherit }
  li, input, button { border: 1px solid #8889; background: none } li { padding: 0 .6rem }
  h2, input, button { padding: .5rem 1rem } h2, button { background: light-dark(#e8eefb, #243352) }
  p { margin: .5rem 0; white-space: pre-line } ul { margin: 0; padding: 0; list-style: none }
  ul, form { display: flex; flex-wrap: wrap; gap: .5rem } form { padding: .5rem 0 1rem }
  li, .facts, #state, label { color: light-dark(#596273, #a3adbd); font-size: .85rem }
  #state, label { flex-basis: 100% } progress { accent-color: var(--accent) }
  h2, li, input, button { border-radius: .75rem } input, button { font: inherit; color: inherit }
  input { flex: 1; min-width: 7rem } :disabled { opacity: .5 } :focus-visible { outline: solid var(--accent) }
</style><h1>Chat</h1><section id="log" role="log" aria-label="Conversation" tabindex="0"><div></div></section>
<form>
  <div id="state"><span role="status">Ready</span> <progress hidden aria-label="Search"></progress></div>
  <label for="message">Your question</label>
  <input id="message" required autofocus autocomplete="off" value="What happens when a connection is cut?">
  <button id="send">Send</button><button id="cancel" type="button" disabled>Cancel</button>
</form>
<template><h2></h2><ul aria-label="Sources"></ul><p class="answer"></p><p class="facts"></p></template>
<script type="module">
const $ = (selector) => document.querySelector(selector);
const EVENTS = { Accept: "text/event-stream" };  // who takes events gets an id with each
let stop;
// Server-sent events from bytes that are split anywhere. Lines end in CR LF, LF or CR; a CR at the end of
// what came may be half of a CR LF, and waits. Half an event at the end is dropped: it comes again.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", type = "message", data = [], id;
  for (let part; !(part = await reader.read()).done; ) {
    const lines = (rest + part.value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "event") type = value;
      if (field === "data") data.push(value);
      if (field === "id") id = value;
      if (line === "" && data.length) yield { type, id, data: JSON.parse(data.join("\n")) };
      if (line === "") [type, data] = ["message", []];
    }
  }
}
async function ask(message) {
  const [question, sources, answer, facts] = $("template").content.cloneNode(true).children;
  const begun = performance.now(), since = () => `${Math.round(performance.now() - begun)} ms`;
  const stopped = new AbortController(), signal = stopped.signal;
  let place, ended, last = "", tries = 0;
  const tell = (text, value = 0, max = 0) => {
    $("[role=status]").textContent = text;
    Object.assign($("progress"), { hidden: !max, max, value });
  };
  const show = ({ type, data }) => {
    if (type === "status") tell(data.message, data.done, data.total);
    if (type === "citation") sources.appendChild(document.createElement("li")).textContent = data.title;
    if (type === "token" && !answer.firstChild) facts.textContent += `\nFirst token after ${since()}`;
    if (type === "token") answer.append(data.text);  // as text, never as HTML
    if (type === "done") ended = "Done";
    if (type === "error") ended = "The answer could not be completed";
  };
  stop = () => {
    ended = "Cancelled";
    stopped.abort();
    fetch(place, { method: "DELETE", keepalive: true }).catch(console.warn);
  };
  question.textContent = message;
  $("#log div").append(question, sources, answer, facts);
  for (tell("Asking"); !ended; ) {
    try {
      const response = await (place
        ? fetch(place, { headers: { ...EVENTS, "Last-Event-ID": last }, signal })
        : fetch("/chat", { method: "POST", headers: EVENTS, body: JSON.stringify({ message }), signal }));
      const told = (name) => response.headers.get(name);
      if (!response.ok) ended = `The server said ${response.status}`;
      else if (!place) {
        place = `/_slipstream/streams/${told("Slipstream-Stream-Id")}`;
        const source = /; *hit\b/.test(told("Cache-Status")) ? "Cache hit" : "New answer";
        facts.textContent = `${source} (${told("Cache-Status")})\nServer-Timing: ${told("Server-Timing")}`;
        $("#cancel").disabled = false;
      }
      for await (const event of events(response.body)) {
        if (!ended) show(event);
        [last, tries] = [event.id ?? last, 0];
      }
    } catch (error) { signal.aborted || console.warn(error); }
    if (++tries > 8) ended ??= "The connection is lost";
    if (ended) break;
    tell("The connection was cut, coming back");
    await new Promise((done) => setTimeout(done, 2 ** tries * (50 + 50 * Math.random())));
  }
  facts.textContent += `\n${ended} after ${since()}`;
  tell(ended);
}
$("form").onsubmit = async (event) => {
  event.preventDefault();
  $("#message").focus();
  $("#log").ariaBusy = $("#send").disabled = true;  // busy: read aloud once it is whole
  await ask($("#message").value);
  $("#log").ariaBusy = $("#send").disabled = !($("#cancel").disabled = true);
};
$("#cancel").onclick = () => stop($("#message").focus());
onkeydown = ({ key }) => void (key === "Escape" && $("#cancel").click());
</script></html>
"""

if __name__ == "__main__":
    main()
