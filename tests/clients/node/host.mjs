// Runs one of the clients, as often as it is asked to: `node host.mjs ./NAME.mjs`.
//
// Prints its port. Each connection brings one line of JSON, what to ask; the answer is a line per event, as the client
// is given it, then one with how it ended. Ends when stdin does.

import { createServer } from "node:net";
import { createInterface } from "node:readline";

const { default: run, stop } = await import(process.argv[2]);

const server = createServer((socket) => {
  const tell = (item) => socket.writable && socket.write(`${JSON.stringify(item)}\n`);
  const report = ({ id, event, data }) => tell({ id: id || null, event: event || "message", data });
  socket.on("error", () => {});
  createInterface(socket).once("line", async (line) => {
    try {
      tell({ end: await run(JSON.parse(line), report) });
    } catch (error) {
      tell({ error: error.stack });
    }
    socket.end();
  });
});
server.listen(0, "127.0.0.1", () => process.stdout.write(`${server.address().port}\n`));
process.stdin.resume().on("end", async () => {
  await stop?.();
  process.exit(0);
});
