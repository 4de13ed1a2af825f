// One request's time, piece by piece, in a dialog of its own.

import { $, figure, make, write } from "./dom.js";
import { FORMATS, counted, moment, short } from "./format.js";
import { model, outcome, result, target, tokens } from "./line.js";
import { BUDGETS, OWN_PHASES, PIECES, named } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000;

function facts(line) {
  const over = line.budget_exceeded;
  const beyond = ["ttft_ms", "total_ms"]
    .filter((name) => over?.[name] != null)
    .map((name) => `${BUDGETS[name]} by ${FORMATS.ms(over[name])}`);
  const time = (value) => (value == null ? null : FORMATS.ms(value));
  return [
    ["Ended", moment(line.timestamp)],
    ["Outcome", outcome(line)],
    ["Error", line.error],
    ["Model", model(line)],
    ["Request", target(line)],
    ["Upstream", line.upstream],
    ["Feature", line.feature],
    ["Cache", result(line)],
    ["First token", time(line.ttft_ms)],
    ["Total", time(line.total_ms)],
    ["Own overhead", time(line.overhead_ms)],
    [
      "Gaps p50, p99, max",
      line.itl_max_ms == null
        ? null
        : [line.itl_p50_ms, line.itl_p99_ms, line.itl_max_ms].map(time).join(", "),
    ],
    ["Tokens in + out", tokens(line)],
    ["Tokens per second", line.tokens_per_second == null ? null : FORMATS.perSecond(line.tokens_per_second)],
    ["Stored within", time(line.phases?.store_ms)],
    ["Retries", line.retries > 0 ? String(line.retries) : null],
    [
      "Over its budget",
      over == null
        ? null
        : `${over.budget}: ${beyond.join(", ")}; most of it: ${named(PIECES, over.phase).toLowerCase()}`,
    ],
    ["Request id", line.request_id],
    ["Trace id", line.trace_id],
  ].filter(([, value]) => value != null && value !== "");
}

/** A bar on the scale of the whole request. */
function bar(start, took, whole, kind) {
  const svg = document.createElementNS(SVG, "svg");
  const rect = document.createElementNS(SVG, "rect");
  const box = {
    viewBox: `0 0 ${WIDTH} 10`,
    preserveAspectRatio: "none",
    "aria-hidden": "true",
    focusable: "false",
  };
  for (const [name, value] of Object.entries(box)) svg.setAttribute(name, value);
  const scale = whole > 0 ? WIDTH / whole : 0;
  const width = Math.max(took * scale, 3);
  const place = { x: Math.min(start * scale, WIDTH - width), y: 0, width, height: 10, class: kind };
  for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
  svg.append(rect);
  return svg;
}

function row(name, start, took, whole, kind) {
  const cells = [
    [took, "ms"],
    [whole > 0 && took !== null ? took / whole : null, "share"],
    [start, "ms"],
  ].map(([value, as]) => {
    const cell = make("td", { class: "number" });
    figure(cell, value, as);
    return cell;
  });
  const picture = make("td", { class: "picture" });
  if (start !== null) picture.append(bar(start, took, whole, kind));
  return make(
    "tr",
    { "data-piece": name },
    make("th", { scope: "row", class: "text" }, named(PIECES, name)),
    picture,
    ...cells,
  );
}

export class Waterfall {
  #dialog = $("#waterfall");
  #asked = null;
  #opener = null;
  #done = () => {};

  constructor() {
    $(".close", this.#dialog).addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("close", () => {
      if (this.#dialog.open) return; // for another request, before this was told
      this.#done();
      (this.#opener.isConnected ? this.#opener : $("#recent h2")).focus();
    });
  }

  /** Resolves when it is closed. */
  open(line, opener) {
    this.#done();
    this.#asked = line.request_id;
    this.#opener = opener;
    this.#head(line);
    this.#pieces([], line);
    this.#say("Asking for its pieces…");
    this.#dialog.showModal();
    this.#load(line.request_id);
    return new Promise((resolve) => (this.#done = resolve));
  }

  async #load(id) {
    let answer, found;
    try {
      answer = await fetch(`requests/${encodeURIComponent(id)}`);
      found = await answer.json();
    } catch {
      answer = null;
    }
    if (this.#asked !== id) return; // another one was opened
    if (answer === null) return this.#say("Not connected: its pieces cannot be had now.");
    if (!answer.ok)
      return this.#say(`${found.title ?? answer.status}${found.detail ? `: ${found.detail}` : ""}`);
    this.#head(found.line);
    this.#pieces(found.pieces, found.line);
    this.#say(found.pieces.length > 0 ? "" : "It took no time that could be measured.");
  }

  #say(text) {
    write($(".said", this.#dialog), text);
  }

  #head(line) {
    write($("h2", this.#dialog), short(target(line)));
    $("dl", this.#dialog).replaceChildren(
      ...facts(line).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    );
  }

  #pieces(pieces, line) {
    const whole = line.total_ms ?? 0;
    const spans = Object.entries(line.phases ?? {}).filter(
      ([name, ms]) => !OWN_PHASES.has(name) && ms !== null,
    );
    $("tbody", this.#dialog).replaceChildren(
      ...pieces.map(({ name, start_ms, ms }) => row(name, start_ms, ms, whole, name)),
      // An app's own spans: how long is known, since when is not.
      ...(pieces.length > 0
        ? spans.map(([name, ms]) => row(`app: ${name.replace(/_ms$/, "")}`, null, ms, whole, "app"))
        : []),
    );
    $(".scroll", this.#dialog).hidden = pieces.length === 0;
    write(
      $("caption", this.#dialog),
      `Where the ${FORMATS.ms(whole)} went: ${counted(pieces.length, "piece")}`,
    );
  }
}
