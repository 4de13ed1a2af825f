// The same figures by model, feature, upstream or cache result.

import { $, make, path, toggle, write } from "./dom.js";
import { Table } from "./table.js";

const HEADS = { model: "Model", feature: "Feature", upstream: "Upstream", cache: "Cache" };
const SINGLE = [
  ["Requests", ["requests"], "count"],
  ["Hits", ["hit_rate"], "share"],
  ["Client left", ["cancel_rate"], "share"],
  ["Broken streams", ["stream_error_rate"], "share"],
  ["Timeouts", ["timeout_rate"], "share"],
];
const GROUPS = [
  ["TTFT", "ttft_ms", "ms"],
  ["Gap", "gap_ms", "ms"],
  ["Total", "total_ms", "ms"],
  ["Own overhead", "overhead_ms", "ms"],
  ["Tokens/s", "tokens_per_second", "rate"],
];
const QUANTILES = ["p50", "p95", "p99"];

export class Breakdown {
  #select = $("#dimension");
  #window = "";
  #table;
  #first;

  constructor(changed) {
    const table = $("#breakdown table");
    this.#first = this.#head(table);
    const column = (names, as, edge = "") => ({
      of: ({ figures }) => names.reduce((found, name) => found?.[name], figures),
      stat: ({ name }) => path("windows", this.#window, this.#select.value, name, ...names),
      as,
      kind: `number${edge}`,
    });
    const columns = [
      { of: ({ name }) => (name === "-" ? "none" : name), kind: "name" },
      ...SINGLE.map(([, names, as]) => column(names, as)),
      ...GROUPS.flatMap(([, name, as]) =>
        QUANTILES.map((quantile, at) => column([name, quantile], as, at === 0 ? " edge" : "")),
      ),
    ];
    this.#table = new Table(table, columns, ({ name }) => name);
    this.#select.addEventListener("change", changed);
  }

  show(figures, window) {
    this.#window = window;
    const dimension = this.#select.value;
    write(this.#first, HEADS[dimension]);
    write($("#breakdown caption"), `Figures by ${HEADS[dimension].toLowerCase()}`);
    const items = Object.entries(figures[dimension]).map(([name, found]) => ({ name, figures: found }));
    items.sort((a, b) => b.figures.requests - a.figures.requests || (a.name < b.name ? -1 : 1));
    const shown = this.#table.show(items);
    toggle($("#breakdown .note"), shown === items.length);
    write($("#breakdown .note"), `The ${shown} with most requests, of ${items.length}`);
  }

  #head(table) {
    const name = make("th", { scope: "col", rowspan: "2", class: "name" });
    const single = SINGLE.map(([head]) => make("th", { scope: "col", rowspan: "2", class: "number" }, head));
    const groups = GROUPS.map(([head]) =>
      make("th", { scope: "colgroup", colspan: "3", class: "group edge" }, head),
    );
    const quantiles = GROUPS.flatMap(() =>
      QUANTILES.map((quantile, at) =>
        make("th", { scope: "col", class: at === 0 ? "number edge" : "number" }, quantile),
      ),
    );
    table.append(make("thead", {}, make("tr", {}, name, ...single, ...groups), make("tr", {}, ...quantiles)));
    return name;
  }
}
