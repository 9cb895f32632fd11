// A service with server-sent events that knows nothing of a mesh. Usage: node sse_server.js ADDRESS PORT
//
// /stream?every=MS        events without end: `data: <CLOCK_MONOTONIC in ns>`, a comment before each tenth; `name` tells streams apart
//                         `at=MS`: when this service's clock, in ms and modulo `every`, shows that, whatever was late before
// /left                   JSON: for each stream that its client left, its name and the clock when that was known
// Says on standard output that it listens.
"use strict";
const http = require("node:http");

const left = [];

http
  .createServer((request, response) => {
    const url = new URL(request.url, "http://service");
    if (url.pathname === "/left") {
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify(left));
      return;
    }
    response.writeHead(200, {
      "content-type": "text/event-stream",
      "cache-control": "no-store",
      "x-accel-buffering": "no",
    });
    let count = 0;
    const tick = () => {
      const comment = count++ % 10 === 0 ? ": still here\n" : "";
      response.write(`${comment}data: ${process.hrtime.bigint()}\n\n`);
    };
    tick();
    const every = Number(url.searchParams.get("every") ?? 100);
    const at = url.searchParams.get("at");
    let timer;
    const plan = () => {
      const phase = at === null ? 0 : (performance.now() - Number(at)) % every;
      timer = setTimeout(() => (tick(), plan()), every - phase);
    };
    plan();
    response.on("close", () => {
      clearTimeout(timer);
      left.push({ name: url.searchParams.get("name"), at: String(process.hrtime.bigint()), whole: response.writableFinished });
    });
  })
  .listen(Number(process.argv[3]), process.argv[2], () => console.log("listening"));
