// The connection to /events. EventSource comes back by itself from most things; from the rest it is begun anew.

/** Milliseconds without a word until it counts as lost, until it is begun anew; and after a refusal. */
const SILENT = 5000;
const DEAD = 10000;
const REFUSED = 2000;

/** `told.tick(tick, fresh)`: fresh is the first one of a connection. `told.state(state)`: live or lost. */
export class Live {
  #source = null;
  #window;
  #told;
  #fresh = true;
  #opened = 0;
  #heard = 0;

  constructor(window, told) {
    this.#window = window;
    this.#told = told;
    this.#open();
    setInterval(() => this.#look(), 1000);
  }

  change(window) {
    this.#window = window;
    this.#open();
  }

  #open() {
    this.#source?.close();
    this.#fresh = true;
    this.#opened = this.#heard = Date.now();
    const source = new EventSource(`events?window=${this.#window}`);
    source.addEventListener("open", () => (this.#fresh = true));
    source.addEventListener("error", () => this.#told.state("lost"));
    source.addEventListener("tick", ({ data }) => {
      const fresh = this.#fresh;
      this.#heard = Date.now();
      this.#fresh = false;
      this.#told.tick(JSON.parse(data), fresh);
      this.#told.state("live");
    });
    this.#source = source;
  }

  /** A connection may be gone without a word, and one that was refused with a status is not tried again. */
  #look() {
    const now = Date.now();
    const state = this.#source.readyState;
    if (now - this.#heard > SILENT) this.#told.state("lost");
    const refused = state === EventSource.CLOSED && now - this.#opened > REFUSED;
    const dead = state === EventSource.OPEN && now - this.#heard > DEAD;
    if (refused || dead) this.#open();
  }
}
