// A service of Node's own HTTP server. Usage: node service.js PORT
//
// /open/echo       what came: method, body and its length, trailers, as JSON
// /open/trailers   chunks and a trailer
// /open/hints      103 with a Link, then 200
// /open/endless    chunks without end
"use strict";
const http = require("node:http");

http
  .createServer((request, response) => {
    const path = request.url.split("?")[0];
    if (path === "/open/hints") {
      response.writeEarlyHints({ link: "</style.css>; rel=preload; as=style" }, () => response.end("after hints\n"));
    } else if (path === "/open/trailers") {
      response.writeHead(200, { trailer: "x-checksum" });
      response.write("one\n");
      response.write("two\n");
      response.addTrailers({ "x-checksum": "42" });
      response.end();
    } else if (path === "/open/endless") {
      const more = () => response.write("x".repeat(1000) + "\n");
      more();
      const timer = setInterval(more, 20);
      response.on("close", () => clearInterval(timer));
    } else {
      const chunks = [];
      request.on("data", (chunk) => chunks.push(chunk));
      request.on("end", () => {
        const body = Buffer.concat(chunks);
        const { method, httpVersion, headers, trailers } = request;
        response.setHeader("content-type", "application/json");
        response.end(JSON.stringify({ method, httpVersion, headers, trailers, length: body.length, body: body.toString().slice(0, 100) }));
      });
    }
  })
  .listen(Number(process.argv[2]), "::", () => console.log("listening"));
