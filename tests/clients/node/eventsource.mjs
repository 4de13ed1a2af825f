// eventsource, the WHATWG EventSource for Node: GET only, no headers, comes back by itself until it gets 204.

import { EventSource } from "eventsource";

export default function run(ask, report) {
  return new Promise((resolve) => {
    const source = new EventSource(ask.url);
    for (const type of ask.types)
      source.addEventListener(type, (event) => report({ id: event.lastEventId, event: event.type, data: event.data }));
    source.addEventListener("error", (error) => {
      if (source.readyState === EventSource.CLOSED) resolve({ closed: error.code });
    });
  });
}
