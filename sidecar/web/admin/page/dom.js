// What every part of the page writes with: as text, never as HTML, and only where something has changed.

import { FORMATS } from "./format.js";

export const $ = (selector, from = document) => from.querySelector(selector);

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const written = new WeakMap();

/** `text` in `node`; null is shown as a dash, and read out as what it means. */
export function write(node, text) {
  text ??= null;
  if (written.get(node) === text && written.has(node)) return;
  written.set(node, text);
  if (text === null)
    node.replaceChildren(
      make("span", { "aria-hidden": "true" }, "–"),
      make("span", { class: "hidden" }, "no data"),
    );
  else if (node.childNodes.length === 1 && node.firstChild.nodeType === Node.TEXT_NODE)
    node.firstChild.data = text;
  else node.textContent = text;
}

/** A figure, with the number it was made of. */
export function figure(node, value, as) {
  write(node, value == null ? null : FORMATS[as](value));
  mark(node, "value", JSON.stringify(value ?? null));
}

export function mark(node, name, text) {
  if (node.dataset[name] !== text) node.dataset[name] = text;
}

export function toggle(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

/** A path into /stats, whose names may hold dots of their own. */
export function path(...names) {
  return names.map((name) => encodeURIComponent(name).replaceAll(".", "%2E")).join(".");
}

function follow(root, names) {
  let found = root;
  for (const name of names) found = found?.[name];
  return found;
}

/** The figures that stand in the page itself: `data-of` says which, with * for the window that is shown. */
export class Figures {
  #all = [...document.querySelectorAll("[data-of]")].map((node) => ({
    node,
    of: node.dataset.of,
    as: node.dataset.as,
    names: [],
  }));
  #window = null;

  show(stats, window) {
    if (window !== this.#window)
      for (const one of this.#all) {
        one.names = one.of.replace("*", window).split(".");
        one.node.dataset.stat = one.names.join(".");
      }
    this.#window = window;
    for (const { node, names, as } of this.#all) figure(node, follow(stats, names), as);
  }
}
