// Requests: those that run, those that have ended, those that went wrong. Ended ones open their waterfall.

import { $, write } from "./dom.js";
import { counted, moment } from "./format.js";
import { failure, key, model, outcome, over, result, target, tokens } from "./line.js";
import { Table } from "./table.js";
import { PHASES, named } from "./words.js";

const KEPT = { recent: 200, errors: 50 };
/** Of each kind, in a tick and in a table. */
const MOST = 50;
/** Errors are asked for again at most so often, where more ended than a tick brings. */
const PAUSE = 10000;

const ACTIVE = [
  { head: "Phase", of: (row) => named(PHASES, row.phase) },
  { head: "Model", of: model, kind: "name" },
  { head: "Path", of: target, kind: "name" },
  { head: "Upstream", of: (row) => row.upstream, kind: "name" },
  { head: "Feature", of: (row) => row.feature, kind: "name" },
  { head: "Cache", of: (row) => row.cache },
  { head: "Age", of: (row) => row.age_ms, as: "ms", kind: "number" },
  { head: "TTFT", of: (row) => row.ttft_ms, as: "ms", kind: "number" },
  { head: "Events", of: (row) => row.events, as: "count", kind: "number" },
  { head: "Tokens", of: (row) => row.output_tokens, as: "count", kind: "number" },
  { head: "Tokens/s", of: (row) => row.tokens_per_second, as: "rate", kind: "number" },
];

const RECENT = [
  { head: "Outcome", of: outcome, tone: (line) => (failure(line) === null ? "" : "bad") },
  { head: "Model", of: model, kind: "name" },
  { head: "Path", of: target, kind: "name" },
  { head: "Upstream", of: (line) => line.upstream, kind: "name" },
  { head: "Cache", of: result },
  { head: "TTFT", of: (line) => line.ttft_ms, as: "ms", kind: "number" },
  { head: "Gap p99", of: (line) => line.itl_p99_ms, as: "ms", kind: "number" },
  { head: "Total", of: (line) => line.total_ms, as: "ms", kind: "number" },
  { head: "Own", of: (line) => line.overhead_ms, as: "ms", kind: "number" },
  { head: "Tokens in + out", of: tokens, kind: "number" },
  { head: "Over by", of: over, kind: "number" },
];

const ERRORS = [
  { head: "Upstream", of: (line) => line.upstream, kind: "name" },
  { head: "Kind", of: failure, tone: () => "bad" },
  { head: "Status", of: (line) => line.status, as: "plain", kind: "number" },
  { head: "Model", of: model, kind: "name" },
  { head: "Path", of: target, kind: "name" },
];

function newest(one, other) {
  if (one.timestamp === other.timestamp) return 0;
  return one.timestamp < other.timestamp ? 1 : -1;
}

export class Requests {
  #lines = { recent: [], errors: [] };
  #shown = { recent: [], errors: [] };
  #tables = {};
  #asked = 0;
  #terms = [];
  #opener = null;

  /** `open(line, button)` shows one of them. */
  constructor(open) {
    const press = (line, button) => {
      this.#opener = button;
      open(line, button).then(() => {
        if (this.#opener === button) this.#opener = null;
        this.draw();
      });
    };
    const when = { head: "Ended", of: (line) => moment(line.timestamp), press, label: () => "waterfall" };
    this.active = new Table($("#active table"), ACTIVE, key);
    this.#tables.recent = new Table(
      $("#recent table"),
      [{ ...when, label: (line) => `waterfall of ${model(line) ?? line.path}` }, ...RECENT],
      key,
    );
    this.#tables.errors = new Table(
      $("#errors table"),
      [{ ...when, label: (line) => `waterfall of ${failure(line)}` }, ...ERRORS],
      key,
    );
    for (const table of Object.values(this.#tables))
      for (const event of ["focusout", "pointerleave"])
        table.body.addEventListener(event, () => setTimeout(() => this.draw()));
    $("#filter").addEventListener("input", (event) => {
      this.#terms = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.draw(true);
    });
  }

  clear() {
    this.#lines = { recent: [], errors: [] };
  }

  get none() {
    return this.#lines.recent.length === 0;
  }

  /** Lines that have ended, from a tick. */
  add(lines) {
    this.#merge({ recent: lines, errors: lines.filter((line) => failure(line) !== null) });
    if (lines.length >= MOST && Date.now() - this.#asked > PAUSE) this.ask();
  }

  /** What the server remembers. */
  async ask() {
    this.#asked = Date.now();
    try {
      const answer = await fetch("requests");
      if (answer.ok) this.#merge(await answer.json());
    } catch {
      return; // the connection's state says it
    }
    this.draw();
  }

  #merge(more) {
    for (const name of ["recent", "errors"]) {
      const known = new Map([...more[name], ...this.#lines[name]].map((line) => [key(line), line]));
      this.#lines[name] = [...known.values()].sort(newest).slice(0, KEPT[name]);
    }
  }

  running(rows, count) {
    const shown = this.active.show(rows);
    write($("#active .note"), count > shown ? `The oldest ${shown} of ${counted(count, "request")}` : "");
  }

  /** `now`: also where it is held. */
  draw(now = false) {
    const matching = this.#lines.recent.filter((line) => this.#matches(line));
    this.#show("errors", this.#lines.errors, false);
    const all = this.#lines.recent.length;
    write($("#recent .none"), all > 0 ? "None of the recent requests matches." : "None has ended yet.");
    if (!this.#show("recent", matching, now)) return;
    const count = Math.min(matching.length, MOST);
    const kept = this.#terms.length > 0 ? `that match, of ${all} kept` : "kept";
    write($("#recent .note"), all === 0 ? "" : `The newest ${count} of ${matching.length} ${kept}`);
  }

  /** Nobody can choose from a list that runs away: it stands still while the focus or the pointer is in it. */
  #show(name, lines, now) {
    const { body } = this.#tables[name];
    const within = [document.activeElement, this.#opener].some((node) => body.contains(node));
    const held = !now && (within || body.matches(":hover"));
    const shown = new Set(this.#shown[name]);
    const newer = held ? lines.slice(0, MOST).filter((line) => !shown.has(key(line))).length : 0;
    const some = newer === MOST ? `${MOST} or more` : newer;
    write($(`#${name} .held`), newer > 0 ? `Held while you are in the list; ${some} newer` : "");
    if (held) return false;
    this.#tables[name].show(lines);
    this.#shown[name] = lines.slice(0, MOST).map(key);
    return true;
  }

  #matches(line) {
    if (this.#terms.length === 0) return true;
    const {
      model: asked,
      response_model,
      path,
      method,
      upstream,
      feature,
      status,
      error,
      request_id,
      tenant,
    } = line;
    const words = [
      asked,
      response_model,
      path,
      method,
      upstream,
      feature,
      status,
      error,
      request_id,
      tenant,
      outcome(line),
      result(line),
    ];
    const text = words.join(" ").toLowerCase();
    return this.#terms.every((term) => text.includes(term));
  }
}
