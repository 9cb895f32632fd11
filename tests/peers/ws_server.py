"""A WebSocket server that echoes. Usage: ws_server.py ADDRESS PORT

`close 4001 why` closes with that code and reason; `caller` answers with the identity header of the handshake.
"""
import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve


def handle(connection):
    print("open", connection.request.path, flush=True)
    try:
        for message in connection:
            if isinstance(message, str) and message.startswith("close "):
                _, code, why = message.split(" ", 2)
                connection.close(int(code), why)
            elif message == "caller":
                connection.send(str(connection.request.headers.get_all("x-forwarded-client-cert")))
            elif message == "ping me":
                connection.ping(b"from the server").wait(10)
                connection.send("pong came")
            else:
                connection.send(message)
    except ConnectionClosed:
        pass
    print("closed", connection.close_code, connection.close_reason, flush=True)


with serve(handle, sys.argv[1], int(sys.argv[2]), max_size=None) as server:
    print("listening", flush=True)
    server.serve_forever()
