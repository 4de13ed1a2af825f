// Stored answers: which there are, and purging them. The token is kept here until the page goes, nowhere else.

import { $, make, write } from "./dom.js";
import { FORMATS, counted, short } from "./format.js";
import { Table } from "./table.js";

const FIELDS = ["model", "upstream", "path", "tenant", "key"];

/** The list is read anew after so long, if more was stored meanwhile and nobody is at it. */
const PAUSE = 30000;

let token = "";

/** A header field is bytes, and a token may be any text. */
function bearer(text) {
  return `Bearer ${String.fromCharCode(...new TextEncoder().encode(text))}`;
}

async function said(answer) {
  try {
    const problem = await answer.json();
    return [problem.title, problem.detail].filter(Boolean).join(": ") || `Status ${answer.status}`;
  } catch {
    return `Status ${answer.status}`;
  }
}

function words(query) {
  const terms = [...query].filter(([name]) => FIELDS.includes(name));
  return terms.map(([name, value]) => `${name} ${short(value)}`).join(", ");
}

export class Cache {
  #form = $("#cache form");
  #dialog = $("#purge");
  #table;
  #query = new URLSearchParams();
  #number = 0;
  #stored = null;
  #loaded = 0;
  #purged = null;
  #opener = null;

  constructor() {
    const columns = [
      { head: "Key", of: (item) => item.key.slice(0, 12), kind: "name" },
      { head: "Model", of: (item) => item.model, kind: "name" },
      { head: "Path", of: (item) => item.path, kind: "name" },
      { head: "Upstream", of: (item) => item.upstream, kind: "name" },
      { head: "Tenant", of: (item) => item.tenant, kind: "name" },
      { head: "Form", of: (item) => (item.stream ? "stream" : "whole") },
      { head: "Age", of: (item) => item.age_s, as: "seconds", kind: "number" },
      { head: "Left", of: (item) => item.left_s, as: "seconds", kind: "number" },
      { head: "Size", of: (item) => item.size, as: "bytes", kind: "number" },
      {
        head: "Purge",
        of: () => "Purge",
        label: (item) => item.key.slice(0, 12),
        press: (item, button) => this.#one(item, button),
      },
    ];
    this.#table = new Table($("#cache table"), columns, (item) => item.key);
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.load(this.#given());
    });
    this.#form.addEventListener("reset", () => this.load(new URLSearchParams()));
    $("#purge-matching").addEventListener("click", ({ target }) => {
      this.#ask(`Purge every answer with ${words(this.#query)}?`, new URLSearchParams(this.#query), target);
    });
    $("#purge-all").addEventListener("click", ({ target }) => {
      this.#ask("Purge every stored answer?", new URLSearchParams({ all: "1" }), target);
    });
    $("form", this.#dialog).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#purge();
    });
    $("#purge-cancel").addEventListener("click", () => this.#dialog.close());
    $("#token-forget").addEventListener("click", () => {
      token = "";
      this.#token();
      $("#token").focus();
    });
    this.#dialog.addEventListener("close", () => {
      if (this.#dialog.open) return; // for something else, before this was told
      $("#token").value = "";
      (this.#opener?.isConnected && !this.#opener.closest("[hidden]")
        ? this.#opener
        : $("#cache h2")
      ).focus();
    });
  }

  /** What the server has counted of the cache. */
  news({ stored = 0 }) {
    const more = this.#stored !== stored;
    const section = $("#cache");
    if (!more || Date.now() - this.#loaded < PAUSE || this.#dialog.open) return;
    if (this.#stored !== null && (section.contains(document.activeElement) || section.matches(":hover")))
      return;
    this.#stored = stored;
    this.load(this.#query);
  }

  #given() {
    const given = [...new FormData(this.#form)].map(([name, value]) => [name, value.trim()]);
    return new URLSearchParams(given.filter(([, value]) => value !== ""));
  }

  async load(query) {
    const number = (this.#number += 1);
    this.#loaded = Date.now();
    let answer, found;
    try {
      answer = await fetch(`cache?limit=50&${query}`);
      found = answer.ok ? await answer.json() : null;
    } catch {
      answer = null;
    }
    if (number !== this.#number) return; // asked again since
    const note = $("#cache .note");
    if (answer === null) return write(note, "Not connected: what is stored cannot be listed now.");
    if (found === null) return write(note, await said(answer));
    this.#query = query;
    const shown = this.#table.show(found.items);
    const filtered = query.size > 0;
    const none = found.mode === "off" ? "The cache is off." : "No answer is stored yet.";
    const unseen = found.more && shown === 0; // a listing looks at the newest only, a purge at all
    const among = `None that ${filtered ? "matches" : "can be shown"} is among the newest, which were looked at.`;
    write(
      $("#cache .none"),
      unseen ? `${among} Purging looks at all.` : filtered ? "No stored answer matches." : none,
    );
    const some = unseen ? "None of the newest" : found.more ? `The newest ${shown}` : counted(shown, "answer");
    const fit = unseen ? " matches" : " that match";
    const store = [];
    if (found.entries !== null)
      store.push(`${counted(found.entries, "entry", "entries")} with pointers to them`);
    if (found.bytes !== null)
      store.push(
        FORMATS.bytes(found.bytes) + (found.limit === null ? "" : ` of ${FORMATS.bytes(found.limit)}`),
      );
    write(note, [`${some}${filtered ? fit : ""}`, ...store].join("; "));
    $("#purge-matching").disabled = !filtered || (shown === 0 && !unseen);
    $("#purge-all").disabled = !filtered && shown === 0 && !unseen;
  }

  #one(item, button) {
    const about = [item.model, item.path, item.upstream].filter(Boolean).map(short).join(", ");
    this.#ask(
      `Purge the answer ${item.key.slice(0, 12)}${about ? ` (${about})` : ""}?`,
      new URLSearchParams({ key: item.key }),
      button,
    );
  }

  #ask(question, query, opener) {
    this.#purged = query;
    this.#opener = opener;
    write($("#purge-what"), question);
    $("#purge-said").replaceChildren();
    this.#token();
    this.#dialog.showModal();
  }

  #token() {
    $("#token-given").hidden = token === "";
    $("#token-asked").hidden = token !== "";
  }

  async #purge() {
    const given = token || $("#token").value;
    const problem = (text) => $("#purge-said").replaceChildren(make("span", {}, text));
    $("#purge-go").disabled = true;
    try {
      // Without credentials: a browser asks for a name and a password of its own where it is refused with them.
      const headers = given === "" ? {} : { Authorization: bearer(given) };
      const answer = await fetch(`cache?${this.#purged}`, { method: "DELETE", credentials: "omit", headers });
      if (!answer.ok) {
        if (answer.status === 401) token = "";
        this.#token();
        return problem(await said(answer));
      }
      token = given;
      this.#opener = null; // its row goes
      const { removed } = await answer.json();
      this.#dialog.close();
      write($("#cache-said"), `${counted(removed, "answer")} purged`);
      await this.load(this.#query);
    } catch (error) {
      problem(
        error instanceof TypeError ? "Not connected: nothing is known to have been purged." : String(error),
      );
    } finally {
      $("#purge-go").disabled = false;
    }
  }
}
