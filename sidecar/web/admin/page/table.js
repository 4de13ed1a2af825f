// Tables whose rows stay: what was a row of something that is gone becomes the row of something new.

import { figure, make, mark, toggle, write } from "./dom.js";
import { short } from "./format.js";

const MOST = 50;

/**
 * `columns`: {head, of(item), as, kind, tone(item), stat(item), press, label(item)}. `as` names a format, of
 * figures; without it `of` gives text. `press(item, button)` makes a button of the cell, `label` says what it
 * does. The first column names the row.
 */
export class Table {
  #columns;
  #key;
  #rows = new Map();
  #spare = [];

  constructor(table, columns, key) {
    this.table = table;
    this.body = make("tbody");
    this.#columns = columns;
    this.#key = key;
    this.wrap = table.closest(".scroll");
    this.none = this.wrap.parentElement.querySelector(".none");
    if (table.tHead === null) {
      const heads = columns.map(({ head, kind }) =>
        make("th", { scope: "col", class: kind ?? "text" }, head),
      );
      table.append(make("thead", {}, make("tr", {}, ...heads)));
    }
    table.append(this.body);
    this.body.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button === null) return;
      const column = columns[[...button.closest("tr").cells].indexOf(button.closest("th, td"))];
      column.press(this.#item(button.closest("tr")), button);
    });
  }

  /** At most 50 of `items`, in that order. */
  show(items) {
    const shown = items.slice(0, MOST);
    const wanted = new Set(shown.map(this.#key));
    for (const [key, parts] of this.#rows)
      if (!wanted.has(key)) {
        this.#rows.delete(key);
        this.#spare.push(parts);
      }
    let next = this.body.firstElementChild;
    for (const item of shown) {
      const key = this.#key(item);
      const parts = this.#rows.get(key) ?? this.#spare.pop() ?? this.#made();
      this.#rows.set(key, parts);
      this.#fill(parts, item, key);
      if (parts.row === next) next = next.nextElementSibling;
      else this.body.insertBefore(parts.row, next);
    }
    for (const { row } of this.#spare) row.remove();
    toggle(this.wrap, shown.length === 0);
    if (this.none !== null) toggle(this.none, shown.length > 0);
    return shown.length;
  }

  #item(row) {
    for (const parts of this.#rows.values()) if (parts.row === row) return parts.item;
    return undefined;
  }

  #made() {
    const places = [];
    const row = make("tr");
    this.#columns.forEach(({ kind = "text", press }, number) => {
      const cell = make(number === 0 ? "th" : "td", { class: kind, ...(number === 0 && { scope: "row" }) });
      const [seen, said] = [make("span"), make("span", { class: "hidden" })];
      if (press) cell.append(make("button", { type: "button" }, seen, said));
      places.push({ cell, text: press ? seen : cell, said });
      row.append(cell);
    });
    return { row, places };
  }

  #fill(parts, item, key) {
    parts.item = item;
    mark(parts.row, "key", key);
    this.#columns.forEach((column, number) => {
      const { cell, text, said } = parts.places[number];
      const value = column.of(item);
      if (column.as) figure(text, value, column.as);
      else write(text, short(value));
      if (column.label) write(said, ` ${short(column.label(item))}`);
      if (column.stat) mark(cell, "stat", column.stat(item));
      if (column.tone) mark(cell, "tone", column.tone(item));
    });
  }
}
