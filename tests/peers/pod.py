"""A workload that knows nothing of a mesh. It says on standard output what reaches it.

HTTP at 8080 (what came, as JSON), a protocol whose server speaks first at 5432, TLS-less echo at 7000, which nobody declares,
and UDP at 9999, 443 and 53."""

import http.server
import json
import os
import socket
import threading


def say(*words):
    print(*words, flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("content-length", "0"))
        body = self.rfile.read(length).decode("latin-1")
        say("request", self.command, self.path)
        answer = json.dumps({
            "host": socket.gethostname(), "pod": os.environ.get("POD"), "method": self.command, "path": self.path,
            "body": body, "local": self.connection.getsockname()[0],
            "fields": [[name.lower(), value] for name, value in self.headers.items()],
        }).encode()
        self.send_response(500 if self.path == "/ill" else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = answer

    def log_message(self, *words):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128

    def get_request(self):
        connection, peer = super().get_request()
        say("accepted", 8080, peer[0])
        return connection, peer

    def handle_error(self, request, address):
        """A connection that was cut is no news."""


def banner(connection):
    """Speaks first, echoes, and after the caller's end says how much came."""
    with connection:
        try:
            connection.sendall(b"220 ready\n")
            count = 0
            while data := connection.recv(4096):
                count += len(data)
                connection.sendall(data)
            connection.sendall(b"bye %d\n" % count)
        except OSError as error:
            say("broken", error.errno)
            return
        say("ended", count)


def listen(port, serve):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    while True:
        connection, peer = listener.accept()
        say("accepted", port, peer[0])
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def datagrams(port):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("::", port))
        while True:
            data, peer = receiver.recvfrom(2048)
            say("datagram", port, peer[0])
            receiver.sendto(data, peer)


for port in (5432, 7000):
    threading.Thread(target=listen, args=(port, banner), daemon=True).start()
for port in json.loads(os.environ.get("UDP", "[9999]")):
    threading.Thread(target=datagrams, args=(port,), daemon=True).start()
server = Server(("::", 8080), Handler)
say("listening")
server.serve_forever()
