// What a request's latency line says, in words.

import { FORMATS } from "./format.js";
import { OUTCOMES, named } from "./words.js";

export const key = (line) => line.request_id;

export const model = (line) => line.model ?? line.response_model;

export const target = (line) => `${line.method} ${line.path}`;

/** What went wrong, if anything did: as `/requests` has its errors, and metrics their `error_type`. */
export function failure(line) {
  if (line.outcome === "cancelled") return null;
  if (line.error != null) return line.error;
  if (line.status >= 400) return String(line.status);
  return line.outcome === "complete" ? null : line.outcome;
}

export function outcome(line) {
  const said = named(OUTCOMES, line.outcome);
  return line.status == null || (line.outcome === "complete" && line.status < 400)
    ? said
    : `${said} (${line.status})`;
}

export function result(line) {
  return [line.cache, line.cache_kind].filter(Boolean).join(", ");
}

export function tokens(line) {
  if (line.input_tokens == null && line.output_tokens == null) return null;
  return [line.input_tokens, line.output_tokens]
    .map((count) => (count == null ? "?" : FORMATS.count(count)))
    .join(" + ");
}

/** By how much it was over its budget. */
export function over(line) {
  const most = Math.max(line.budget_exceeded?.ttft_ms ?? 0, line.budget_exceeded?.total_ms ?? 0);
  return most > 0 ? `+${FORMATS.ms(most)}` : "";
}
