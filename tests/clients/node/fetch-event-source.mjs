// @microsoft/fetch-event-source: any method, comes back with the same request and Last-Event-ID.
//
// It is written for browsers and asks for `window` (fetch and timers) and `document` (is the page hidden?).
// `openWhenHidden` spares it most of the latter; removeEventListener it calls all the same.

import { fetchEventSource } from "@microsoft/fetch-event-source";

globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

export default async function run(ask, report) {
  const statuses = [];
  await fetchEventSource(ask.url, {
    method: ask.method,
    headers: ask.headers,
    body: ask.body,
    openWhenHidden: true,
    async onopen(response) {
      statuses.push(response.status);
      const type = response.headers.get("content-type") ?? "";
      if (!response.ok || !type.startsWith("text/event-stream")) throw new Error(`${response.status} ${type}`);
    },
    onmessage(event) {
      // It also hands out what the standard does not dispatch: blocks without data.
      if (event.data !== "") report(event);
    },
    onerror(error) {
      if (/^\d/.test(error.message)) throw error; // an answer, but no stream: not to be tried again
      return 1; // ms; its own second is for production
    },
  });
  return { statuses };
}
