// The page as a whole: a tick comes in, and every part of it shows its share.

import { Breakdown } from "./breakdown.js";
import { Budgets } from "./budgets.js";
import { Cache } from "./cache.js";
import { Chart } from "./chart.js";
import { $, Figures, toggle, write } from "./dom.js";
import { moment } from "./format.js";
import { Live } from "./live.js";
import { Requests } from "./requests.js";
import { Waterfall } from "./waterfall.js";

const waterfall = new Waterfall();
const requests = new Requests((line, button) => waterfall.open(line, button));
const figures = new Figures();
const breakdown = new Breakdown(() => draw());
const budgets = new Budgets();
const cache = new Cache();
const charts = {
  ttft_ms: new Chart($("#chart-ttft"), "Time to first token"),
  gap_ms: new Chart($("#chart-gap"), "Gap between tokens"),
};
const pause = $("#pause");

let latest = null;
let drawn = null;
let began = null;
let paused = false;
let state = "begun";

/** Milliseconds by which the same start is told differently. */
const NOISE = 500;

const chosen = () => $("input[name=window]:checked").value;

function take(tick, fresh) {
  const { stats } = tick;
  if (!(chosen() in stats.windows)) return; // of the window that was shown before
  latest = tick;
  const start = Date.parse(stats.time) - stats.uptime_s * 1000;
  // Another process knows none of the requests of the one before.
  const another = began !== null && start > began + NOISE;
  began = start;
  if (another) requests.clear();
  requests.add(tick.recent);
  if (fresh || another) requests.ask();
  const total = stats.windows[chosen()].total;
  for (const [name, chart] of Object.entries(charts)) chart.push(Date.parse(stats.time) / 1000, total[name]);
  draw();
}

/** What is not seen is not drawn; it is once it is seen. */
function draw() {
  if (latest === null || paused || document.hidden) return;
  const { stats, active } = latest;
  const window = chosen();
  if (!(window in stats.windows)) return; // of the window that was shown before
  drawn = stats.time;
  figures.show(stats, window);
  for (const chart of Object.values(charts)) chart.draw();
  breakdown.show(stats.windows[window], window);
  budgets.show(stats.budgets, window);
  requests.running(active, stats.active.requests);
  requests.draw();
  cache.news(stats.cache.counts);
  const none = requests.none && stats.windows[window].total.requests === 0 && active.length === 0;
  toggle($("#hint"), !none);
  toggle($("#semantic"), stats.semantic.checked === 0 && !["semantic", "shadow"].includes(stats.cache.mode));
  connected();
}

function connected(now = state) {
  state = now;
  const old = drawn === null ? "No figures yet." : `Figures are from ${moment(drawn)}.`;
  const words = { begun: "Connecting…", live: "Live", lost: `Not connected; trying again. ${old}` };
  document.body.dataset.state = paused && state === "live" ? "paused" : state;
  write($("#connection"), paused && state === "live" ? `Paused. ${old}` : words[state]);
}

const live = new Live(chosen(), { tick: take, state: connected });

for (const radio of document.querySelectorAll("input[name=window]"))
  radio.addEventListener("change", () => {
    for (const chart of Object.values(charts)) chart.clear();
    for (const node of document.querySelectorAll(".window")) write(node, radio.labels[0].textContent);
    live.change(chosen());
  });

pause.addEventListener("click", () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  draw();
  connected();
});

document.addEventListener("visibilitychange", draw);
