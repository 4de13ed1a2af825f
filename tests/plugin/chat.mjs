// The chat example's page in a headless Chromium, driven step by step: each connection to the host is one step. What
// the page shows is noted whenever it changes.

import { createRequire } from "node:module";

const { chromium } = createRequire(new URL("../clients/node/package.json", import.meta.url))("playwright-core");

const SECONDS = 1000;
const pages = [];
let browser;

function watch() {
  const of = (kind) => [...document.querySelectorAll(kind)].at(-1);
  const shown = () => ({
    turns: document.querySelectorAll(".answer").length,
    status: of("[role=status]").textContent,
    progress: of("progress").hidden ? null : of("progress").value,
    sources: [...(of("#log ul")?.children ?? [])].map((item) => item.textContent),
    text: of("#log .answer")?.textContent ?? "",
    facts: of("#log .facts")?.textContent ?? "",
    busy: of("#log").ariaBusy === "true",
    send: !of("#send").disabled,
    cancel: !of("#cancel").disabled,
  });
  globalThis.seen = [];
  const note = () => {
    const now = shown();
    if (JSON.stringify(now) !== JSON.stringify(globalThis.seen.at(-1))) globalThis.seen.push(now);
  };
  addEventListener("DOMContentLoaded", () => {
    note();
    const all = { subtree: true, childList: true, characterData: true, attributes: true };
    new MutationObserver(note).observe(document.body, all);
  });
}

const STEPS = {
  async open({ url, width, scheme }) {
    browser ??= await chromium.launch({
      executablePath: process.env.CHROMIUM,
      headless: true,
      args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
    });
    const viewport = { width: width ?? 1280, height: 800 };
    const page = await (await browser.newContext({ viewport, colorScheme: scheme })).newPage();
    page.failed = new Promise((_, reject) => page.on("pageerror", reject));
    page.failed.catch(() => {});
    page.asked = [];
    page.on("request", (request) => page.asked.push(request.url()));
    await page.addInitScript(watch);
    await page.goto(url);
    return pages.push(page) - 1;
  },

  async send({ page, text }) {
    await page.getByLabel("Your question").fill(text);
    await page.keyboard.press("Enter");
  },

  async until({ page, shows }) {
    const holds = (wanted) =>
      Object.entries(wanted).every(([name, value]) => globalThis.seen.at(-1)[name] === value);
    await page.waitForFunction(holds, shows, { timeout: 15 * SECONDS }).catch(async (error) => {
      const now = await page.evaluate(() => globalThis.seen.at(-1));
      throw new Error(`${JSON.stringify(shows)} is not what it shows: ${JSON.stringify(now)}`, { cause: error });
    });
    return page.evaluate(() => globalThis.seen);
  },

  async press({ page, key }) {
    if (key === "Cancel") await page.getByRole("button", { name: "Cancel" }).click();
    else await page.keyboard.press(key);
  },

  async overflows({ page }) {
    return page.evaluate(() => document.documentElement.scrollWidth > innerWidth || document.body.scrollHeight > innerHeight);
  },

  async shoot({ page, path }) {
    await page.screenshot({ path });
  },

  async close({ page }) {
    await page.context().close();
    return page.asked;
  },

  // The page's own parser, given bytes in pieces.
  async parse({ source, pieces }) {
    const events = new Function(`${source}; return events;`)();
    const told = [];
    for await (const event of events(ReadableStream.from(pieces.map((piece) => Uint8Array.from(piece))))) told.push(event);
    return told;
  },
};

export default async function run(ask) {
  const page = pages[ask.page];
  const step = STEPS[ask.step]({ ...ask, page });
  return (await (page ? Promise.race([step, page.failed]) : step)) ?? null;
}

export async function stop() {
  await browser?.close();
}
