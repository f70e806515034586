// A fan-out on ws: each line on SOURCE_PORT goes to every socket. COALESCED: as we do it, with one frame for all
// and one write for what came at once.
const http = require("node:http");
const net = require("node:net");
const { WebSocketServer, Sender } = require("ws");

const coalesced = process.env.COALESCED === "1";
const server = http.createServer();
const sockets = new WebSocketServer({ server, perMessageDeflate: false, clientTracking: true });
let sequence = 0;
let waiting = [];

function deliver() {
  const burst = Buffer.concat(waiting);
  waiting = [];
  for (const client of sockets.clients) client._socket.write(burst);
}

function publish(event) {
  sequence += 1;
  const cursor = `01a20f59b6207781b8fc39ab395a3ad6.${sequence}`;
  const message = `{"type":"event","topic":"items","cursor":"${cursor}","event":${event}}`;
  if (!coalesced) {
    for (const client of sockets.clients) client.send(message);
    return;
  }
  if (waiting.length === 0) setImmediate(deliver);
  const frame = Sender.frame(Buffer.from(message), { fin: true, opcode: 1, mask: false, readOnly: true, rsv1: false });
  waiting.push(...frame);
}

net
  .createServer((source) => {
    let rest = "";
    source.setEncoding("utf8").on("data", (data) => {
      const lines = (rest + data).split("\n");
      rest = lines.pop();
      lines.forEach(publish);
    });
  })
  .listen(Number(process.env.SOURCE_PORT), "127.0.0.1");
server.listen({ port: Number(process.env.PORT), host: "127.0.0.1", backlog: 2048 });
