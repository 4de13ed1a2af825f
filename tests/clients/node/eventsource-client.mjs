// eventsource-client: any method and headers, comes back by itself until it is closed or gets 204.

import { createEventSource } from "eventsource-client";

export default function run(ask, report) {
  return new Promise((resolve) => {
    const source = createEventSource({
      url: ask.url,
      method: ask.method,
      headers: ask.headers,
      body: ask.body,
      onMessage(event) {
        report(event);
        // It takes every end for a disconnect. Of a POST only the app knows which event is the last one.
        if (event.data !== ask.last) return;
        source.close();
        resolve({ closed: "by the app" });
      },
      onDisconnect() {
        // At 204 it calls this right before it closes.
        queueMicrotask(() => source.readyState === "closed" && resolve({ closed: 204 }));
      },
    });
  });
}
