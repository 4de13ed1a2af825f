// A page in a headless Chromium, of the same origin as what it asks. `ask.page` says what it does there.

import { chromium } from "playwright-core";

const DOES = {
  async fetch(ask) {
    const { follow } = await import("/resume.mjs");
    return follow(ask, globalThis.report);
  },

  eventSource(ask) {
    return new Promise((resolve) => {
      const source = new EventSource(ask.url);
      const reported = [];
      for (const type of ask.types)
        source.addEventListener(type, ({ lastEventId, type: event, data }) =>
          reported.push(globalThis.report({ id: lastEventId, event, data })),
        );
      source.onerror = async () => {
        if (source.readyState !== EventSource.CLOSED) return;
        await Promise.all(reported);
        resolve({});
      };
    });
  },
};

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  headless: true,
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

export default async function run(ask, report) {
  const context = await browser.newContext();
  try {
    const page = await context.newPage();
    const failed = new Promise((_, reject) => page.on("pageerror", reject));
    await page.exposeFunction("report", report);
    await page.goto(new URL("/page.html", ask.url).href);
    return await Promise.race([page.evaluate(DOES[ask.page], ask), failed]);
  } finally {
    await context.close();
  }
}

export async function stop() {
  await browser.close();
}
