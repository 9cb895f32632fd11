"""An HTTP/1.1 server that hands connections over after an upgrade, as Docker's does. Usage: upgrade_server.py ADDRESS PORT

With `Upgrade: tcp` (or `spdy/3.1`) it switches, says what it was asked, echoes until the caller's end, says goodbye. Some
paths answer as they should not; without an upgrade it answers a page that tells what it was asked.
"""
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def say(*words):
    """One write a line: the threads' lines, and what socketserver prints of a connection that broke, must not mix."""
    os.write(1, (" ".join(words) + "\n").encode())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def seen(self):
        fields = {name.lower(): value for name, value in self.headers.items()}
        return json.dumps({"method": self.command, "path": self.path, "fields": fields})

    def page(self, status):
        body = self.seen().encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def switch(self, fields):
        self.close_connection = True
        self.send_response_only(101, "UPGRADED")
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        say("switched", self.path)
        self.wfile.write(self.seen().encode() + b"\n")
        while piece := self.rfile.read1(65536):
            self.wfile.write(piece)
        self.wfile.write(b"goodbye")
        say("ended", self.path)

    def answer(self):
        name = self.headers.get("Upgrade", "")
        say("asked", self.command, self.path, name or "-")
        length = int(self.headers.get("Content-Length", "0"))
        self.rfile.read(length)
        if name.lower() not in ("tcp", "spdy/3.1"):
            return self.page(200)
        match self.path:
            case "/other-name":
                self.switch({"Connection": "Upgrade", "Upgrade": "foo"})
            case "/no-name":
                self.switch({"Connection": "Upgrade"})
            case "/not-nominated":
                self.switch({"Upgrade": name})
            case "/success":
                self.page(200)
            case "/busy":
                self.page(409)
            case _:
                kind = "application/vnd.docker.raw-stream"
                # A length has no business here, and must not end the stream.
                self.switch(
                    {"Content-Type": kind, "Connection": "Upgrade", "Upgrade": name.upper(), "Content-Length": "0"}
                )

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
server.daemon_threads = True
say("listening")
server.serve_forever()
