// The last minutes of a pair of percentiles, as two lines. They are kept in the page: the server forgets them.

import { $, write } from "./dom.js";
import { FORMATS } from "./format.js";

const SPAN = 300;
/** Seconds between two points from which on nothing is known in between. */
const GAP = 5;
const LINES = ["p50", "p95"];

function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].find((step) => step * power >= value) * power;
}

export class Chart {
  #points = [];
  #drawn = LINES.map(() => "");

  constructor(figure, name) {
    this.figure = figure;
    this.name = name;
    this.svg = $("svg", figure);
    this.paths = LINES.map((line) => $(`.${line}`, this.svg));
    this.top = $(".top", figure);
    this.middle = $(".middle", figure);
  }

  clear() {
    this.#points = [];
  }

  /** `at`: seconds. */
  push(at, values) {
    if (this.#points.at(-1)?.at > at) this.clear(); // the clock went back
    this.#points.push({ at, values: LINES.map((line) => values[line]) });
    this.#points = this.#points.filter((point) => point.at > at - SPAN).slice(-SPAN);
  }

  draw() {
    const known = this.#points.flatMap(({ values }) => values).filter((value) => value !== null);
    const highest = ceiling(Math.max(...known, 0.1));
    write(this.top, known.length > 0 ? FORMATS.ms(highest) : "no data yet");
    write(this.middle, known.length > 0 ? FORMATS.ms(highest / 2) : "");
    LINES.forEach((_, line) => {
      const drawn = this.#line(line, highest);
      if (drawn !== this.#drawn[line]) this.paths[line].setAttribute("d", drawn);
      this.#drawn[line] = drawn;
    });
    this.svg.setAttribute("aria-label", this.#words());
  }

  #line(line, highest) {
    const now = this.#points.at(-1)?.at ?? 0;
    const parts = [];
    let before = -Infinity;
    for (const { at, values } of this.#points) {
      const value = values[line];
      if (value === null) continue;
      const place = `${(SPAN - (now - at)).toFixed(1)} ${(100 - (value / highest) * 100).toFixed(2)}`;
      // A lone point is a short line, so that it can be seen.
      parts.push(at - before > GAP ? `M${place}h.5` : `L${place}`);
      before = at;
    }
    return parts.join("");
  }

  #words() {
    const range = LINES.map((name, line) => {
      const values = this.#points.map((point) => point.values[line]).filter((value) => value !== null);
      if (values.length === 0) return `${name}: no data`;
      return `${name} from ${FORMATS.ms(Math.min(...values))} to ${FORMATS.ms(Math.max(...values))}`;
    });
    return `${this.name} as this page has seen it in the last 5 minutes: ${range.join("; ")}`;
  }
}
