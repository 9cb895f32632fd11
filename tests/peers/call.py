"""One TCP or UDP exchange, and what became of it, on one line: `call.py tcp|udp ADDRESS PORT [TEXT [slowly] [open]]`.

Over TCP it sends TEXT (`\\n` and `\\r` are line ends), byte by byte if it is to be slow, ends its side unless that is to stay
open, and reads to the end. An empty TEXT waits for what the server says first, and then sends `hello`."""

import socket
import sys
import time

kind, address, port = sys.argv[1:4]
text = sys.argv[4].encode().decode("unicode_escape").encode("latin-1") if len(sys.argv) > 4 else b""
slowly = "slowly" in sys.argv[5:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
got = b""
try:
    if kind == "udp":
        with socket.socket(family, socket.SOCK_DGRAM) as caller:
            caller.settimeout(1)
            caller.sendto(text or b"?", (address, int(port)))
            got = caller.recv(2048)
    else:
        with socket.create_connection((address, int(port)), timeout=8) as caller:
            if not text:
                got = caller.recv(4096)
                text = b"hello"
            for piece in [text[at:at + 1] for at in range(len(text))] if slowly else [text]:
                caller.sendall(piece)
                if slowly:
                    time.sleep(0.01)
            if "open" not in sys.argv[5:]:
                caller.shutdown(socket.SHUT_WR)
            while data := caller.recv(4096):
                got += data
    print("got", repr(got.decode("latin-1")))
except OSError as error:
    print("failed", type(error).__name__, repr(got.decode("latin-1")))
