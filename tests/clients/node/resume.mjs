// What an app writes by itself around fetch, in a page as in Node: read the stream, and when it breaks off, go on at
// its own URL from where one is.

const BLANK = /\r\n\r\n|\n\n/;

function parsed(block) {
  const event = { id: null, event: "message", data: null };
  for (const line of block.split(/\r\n|\n/)) {
    const [, name, value] = /^([^:]*)(?:: ?(.*))?$/.exec(line);
    if (name === "data") event.data = event.data === null ? (value ?? "") : `${event.data}\n${value ?? ""}`;
    else if (name === "id" || name === "event") event[name] = value;
  }
  return event.data === null ? null : event;
}

/** The events of a body, each once it is whole. */
async function* events(body, lines) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += decoder.decode(value, { stream: true });
    for (let at; (at = (lines ? /\n/ : BLANK).exec(held)); ) {
      const block = held.slice(0, at.index);
      held = held.slice(at.index + at[0].length);
      const event = lines ? { id: null, event: "message", data: block } : parsed(block);
      if (event !== null) yield event;
    }
  }
}

/** Calls `report` with every event of the answer; returns how it went. */
export async function follow(ask, report) {
  const credentials = ask.headers.Authorization ? { Authorization: ask.headers.Authorization } : {};
  const statuses = [];
  let [url, init] = [ask.url, { method: ask.method, headers: ask.headers, body: ask.body }];
  let stream = null;
  let id = null;
  let count = 0;
  for (;;) {
    try {
      const response = await fetch(url, init);
      statuses.push(response.status);
      stream ??= response.headers.get("slipstream-stream-id");
      if (response.status !== 200) return { statuses, stream };
      for await (const event of events(response.body, ask.lines)) {
        id = event.id ?? id;
        count += 1;
        await report(event);
      }
      return { statuses, stream };
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // what fetch throws, and a body that breaks off
    }
    if (stream === null) continue;
    url = new URL(`/_slipstream/streams/${stream}`, ask.url).href;
    init = { headers: { ...credentials } };
    if (ask.accept) init.headers.Accept = ask.accept;
    if (id !== null) init.headers["Last-Event-ID"] = id;
    else if (count > 0) url += `?after=${count}`;
  }
}
