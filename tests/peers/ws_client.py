"""A WebSocket client. Usage: ws_client.py PROXY-ADDRESS PORT URL CASE...

Opens URL through the sidecar's outbound listener, which tells services apart by Host. Prints a line of JSON a case.
"""
import json
import os
import socket
import sys
import time

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

address, port, url, cases = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]


def dial(path="/chat", **options):
    return connect(
        url + path, sock=socket.create_connection((address, port)), proxy=None, max_size=None, open_timeout=20,
        additional_headers={"x-forwarded-client-cert": "URI=spiffe://demo.postern/ns/shop/sa/forged"}, **options
    )


def echo():
    with dial() as ws:
        same = []
        for message in ("hello", "", "ünïcode ☃", b"", b"\x00\xff" * 3, "x" * 70_000, os.urandom(1 << 20)):
            ws.send(message)
            same.append(ws.recv(timeout=30) == message)
        # Pieces of one message, and a compressed and an uncompressed connection alike.
        ws.send(["one ", "message ", "in pieces"])
        same.append(ws.recv(timeout=30) == "one message in pieces")
        return {"same": same, "extensions": ws.response.headers.get("sec-websocket-extensions", "")}


def plain():
    with dial(compression=None) as ws:
        blob = os.urandom(1 << 20)
        ws.send(blob)
        return {"same": ws.recv(timeout=30) == blob, "extensions": ws.response.headers.get("sec-websocket-extensions", "")}


def ping():
    with dial() as ws:
        start = time.monotonic()
        ponged = ws.ping(b"payload").wait(10)
        ws.send("ping me")
        return {"ponged": ponged, "seconds": time.monotonic() - start, "server": ws.recv(timeout=20)}


def closes():
    codes = []
    for code, why in ((1000, ""), (1001, "away"), (4001, "ours")):
        ws = dial()
        ws.send("close %d %s" % (code, why))
        try:
            ws.recv(timeout=20)
        except ConnectionClosed as closed:
            codes.append([closed.rcvd.code, closed.rcvd.reason])
    with dial() as ws:
        ws.close(4002, "mine")
    return {"codes": codes}


def caller():
    with dial(subprotocols=None) as ws:
        ws.send("caller")
        return {"caller": ws.recv(timeout=20)}


def denied():
    try:
        dial("/denied/chat")
        return {"status": 101}
    except InvalidStatus as refused:
        response = refused.response
        return {"status": response.status_code, "error": response.headers.get("postern-error"), "body": response.body.decode()}


def watch():
    """Echoes until the connection is taken away, and says how it ended."""
    ws = dial("/watched")
    print(json.dumps({"case": "watching"}), flush=True)
    count = 0
    try:
        while True:
            ws.send("tick")
            ws.recv(timeout=20)
            count += 1
            time.sleep(0.02)
    except ConnectionClosed as closed:
        return {"count": count, "close_frame": closed.rcvd is not None}


CASES = {"echo": echo, "plain": plain, "ping": ping, "closes": closes, "caller": caller, "denied": denied, "watch": watch}
for case in cases:
    print(json.dumps({"case": case, **CASES[case]()}), flush=True)
