// Latency budgets: how fast each is used up, and which are in alert. The only news that is read out unasked.

import { $, path, write } from "./dom.js";
import { Table } from "./table.js";
import { BUDGETS, named } from "./words.js";

const WINDOWS = ["1m", "5m", "60m"];
const HEADS = { "1m": "Burn, 1 min", "5m": "5 min", "60m": "60 min" };

const used = (item) => Object.values(item.windows).some(({ requests }) => requests > 0);
const title = (item) => `${item.feature} (${named(BUDGETS, item.budget)})`;

export class Budgets {
  #window = "5m";
  #burning = new Set();
  #table;

  constructor() {
    const at = (window, name) => ({
      of: (item) => item.windows[window()]?.[name],
      stat: (item) => path("budgets", item.place, "windows", window(), name),
      kind: "number",
    });
    const shown = () => this.#window;
    const columns = [
      { head: "Feature", of: (item) => item.feature, kind: "name" },
      { head: "Of", of: (item) => named(BUDGETS, item.budget) },
      {
        head: "State",
        of: (item) => (item.alert ? "burning" : used(item) ? "within" : "unused"),
        tone: (item) => (item.alert ? "bad" : ""),
      },
      {
        head: "Target",
        of: (item) => item.target_ms,
        stat: (item) => path("budgets", item.place, "target_ms"),
        as: "ms",
        kind: "number",
      },
      { head: "p95", ...at(shown, "p95_ms"), as: "ms" },
      ...WINDOWS.map((window) => ({ head: HEADS[window], ...at(() => window, "burn"), as: "factor" })),
    ];
    this.#table = new Table($("#budgets table"), columns, ({ feature, budget }) => `${feature} ${budget}`);
  }

  show(budgets, window) {
    this.#window = window;
    const items = budgets.map((item, place) => ({ ...item, place }));
    // What is in use first; an installation has budgets that nothing counts against.
    this.#table.show([...items].sort((a, b) => b.alert - a.alert || used(b) - used(a)));
    this.#tell(items);
  }

  #tell(items) {
    const burning = new Set(items.filter(({ alert }) => alert).map(title));
    const ended = [...this.#burning].filter((name) => !burning.has(name));
    const begun = [...burning].filter((name) => !this.#burning.has(name));
    if (begun.length + ended.length === 0) return;
    const said = [];
    if (burning.size > 0) said.push(`Latency budget burning: ${[...burning].join(", ")}.`);
    if (ended.length > 0) said.push(`Within its budget again: ${ended.join(", ")}.`);
    write($("#alerts"), said.join(" "));
    $("#alerts").dataset.tone = burning.size > 0 ? "bad" : "";
    document.title = burning.size > 0 ? `(${burning.size} burning) Slipstream` : "Slipstream";
    this.#burning = burning;
  }
}
