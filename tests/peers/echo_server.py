"""An HTTP/1.1 server that answers with the request line and Host that it got, as they came. Usage: echo_server.py ADDRESS PORT...

Nothing is parsed that need not be: what a library of ours would make of a path is the question.
"""
import socketserver
import sys
import threading


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline(65536):
            fields = {}
            while (field := self.rfile.readline(65536)) not in (b"\r\n", b"\n", b""):
                name, _, value = field.partition(b":")
                fields[name.strip().lower()] = value.strip()
            self.rfile.read(int(fields.get(b"content-length", b"0")))
            body = line.rstrip(b"\r\n") + b"\nHost: " + fields.get(b"host", b"") + b"\n"
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.wfile.write(head + body)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


for port in sys.argv[2:]:
    server = Server((sys.argv[1], int(port)), Handler)
    threading.Thread(target=server.serve_forever).start()
print("listening", flush=True)
