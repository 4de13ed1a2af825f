// The sidecar's own names, in words.

export const PHASES = {
  read: "reading the request",
  upstream: "waiting for the upstream",
  first_token: "waiting for the first token",
  stream: "streaming",
  body: "receiving the answer",
};

export const OUTCOMES = {
  complete: "complete",
  cancelled: "client left",
  truncated: "cut off",
  upstream_error: "upstream error",
  timeout: "timed out",
  refused: "refused here",
};

export const PIECES = {
  read: "Reading the request",
  lookup: "Looking in the cache",
  embed: "Embedding the question",
  search: "Searching for one like it",
  connect: "Connecting",
  upstream: "Waiting for the upstream",
  sidecar: "In the sidecar",
  first_token: "To the first token",
  stream: "Streaming",
  body: "Receiving the answer",
};

export const BUDGETS = { ttft_ms: "first token", total_ms: "total time" };

/** Phases of a latency line that are no spans of an app's own. */
export const OWN_PHASES = new Set([
  "read_ms",
  "lookup_ms",
  "embed_ms",
  "search_ms",
  "connect_ms",
  "upstream_ms",
  "store_ms",
]);

export const named = (words, name) => words[name] ?? String(name ?? "").replaceAll("_", " ");
