// The dashboard in a headless Chromium, driven step by step: each connection to the host is one step.

import { createRequire } from "node:module";

const { chromium } = createRequire(new URL("../clients/node/package.json", import.meta.url))(
  "playwright-core",
);

const ARGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const pages = [];
let browser;

/** In the page, before its own scripts: what the feed has told it, what it was forbidden, and what took long. */
function watch() {
  globalThis.feed = { ticks: 0, latest: null, connections: 0 };
  globalThis.forbidden = [];
  globalThis.long = [];
  globalThis.EventSource = class extends EventSource {
    constructor(...given) {
      super(...given);
      globalThis.feed.connections += 1;
      this.addEventListener("tick", ({ data }) => {
        globalThis.feed.latest = JSON.parse(data);
        globalThis.feed.ticks += 1;
      });
    }
  };
  addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
    globalThis.forbidden.push([violatedDirective, blockedURI]),
  );
  new PerformanceObserver((list) =>
    globalThis.long.push(...list.getEntries().map(({ duration }) => duration)),
  ).observe({ type: "longtask" });
}

/** In the page: resolves once the expression holds, which is looked at whenever something changes. */
function holds(expression) {
  return new Promise((resolve) => {
    const look = () => {
      if (!globalThis.holding(expression)) return;
      observer.disconnect();
      clearInterval(timer);
      resolve();
    };
    const observer = new MutationObserver(look);
    observer.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
    const timer = setInterval(look, 50); // of what leaves no trace in the document
    look();
  });
}

const STEPS = {
  async open({ url, width, scheme }) {
    browser ??= await chromium.launch({ executablePath: process.env.CHROMIUM, headless: true, args: ARGS });
    const context = await browser.newContext({
      viewport: { width: width ?? 1280, height: 800 },
      colorScheme: scheme,
    });
    const page = await context.newPage();
    page.failed = new Promise((_, reject) => page.on("pageerror", reject));
    page.failed.catch(() => {});
    page.asked = [];
    page.said = [];
    page.on("request", (request) => page.asked.push(request.url()));
    page.on(
      "console",
      (message) => ["error", "warning"].includes(message.type()) && page.said.push(message.text()),
    );
    await page.addInitScript(watch);
    await page.goto(url);
    page.devtools = await context.newCDPSession(page);
    return pages.push(page) - 1;
  },

  // Through DevTools: what a page forbids itself does not go for it.
  async evaluate({ page, expression }) {
    const { result, exceptionDetails } = await page.devtools.send("Runtime.evaluate", {
      expression,
      returnByValue: true,
      awaitPromise: true,
    });
    if (exceptionDetails)
      throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  },

  async until({ page, expression }) {
    const wait = `(() => { globalThis.holding = () => ${expression}; return (${holds})(); })()`;
    return STEPS.evaluate({ page, expression: wait });
  },

  async press({ page, keys }) {
    for (const key of keys) await page.keyboard.press(key);
  },

  async type({ page, text }) {
    await page.keyboard.insertText(text);
  },

  async hover({ page, selector }) {
    await page.hover(selector);
  },

  async devtools({ page, method, params }) {
    return page.devtools.send(method, params);
  },

  async shoot({ page, path }) {
    await page.screenshot({ path, fullPage: true });
  },

  async close({ page }) {
    const forbidden = await STEPS.evaluate({ page, expression: "forbidden" });
    await page.context().close();
    return { asked: page.asked, said: page.said, forbidden };
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
