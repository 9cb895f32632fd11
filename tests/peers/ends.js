// How TCP connections end, as Node.js sees it. Usage:
//   node ends.js serve RESETS READS    at port RESETS says something and resets; at port READS says how each connection ended
//   node ends.js read ADDRESS PORT     says what came, and how it ended
//   node ends.js reset ADDRESS PORT    says something and resets
"use strict";
const net = require("node:net");

const [what, first, second] = process.argv.slice(2);
const ending = (socket) => {
  let got = "";
  socket.on("data", (data) => (got += data));
  socket.on("end", () => console.log(`ended after ${JSON.stringify(got)}`));
  socket.on("error", (error) => console.log(`${error.code} after ${JSON.stringify(got)}`));
};
const reset = (socket) => {
  socket.write("begun\n");
  setTimeout(() => socket.resetAndDestroy(), 200);
};

if (what === "serve") {
  net.createServer(reset).listen(Number(first), "::");
  net.createServer(ending).listen(Number(second), "::");
} else {
  const socket = net.connect(Number(second), first);
  if (what === "read") ending(socket);
  else socket.on("connect", () => reset(socket));
}
