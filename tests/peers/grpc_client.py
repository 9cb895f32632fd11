"""A gRPC client that knows no protobuf. Usage: grpc_client.py PROXY-ADDRESS:PORT AUTHORITY CASE...

Calls the server of grpc_server.py through a sidecar: HTTP/2 with prior knowledge to the sidecar's outbound listener,
the service named by :authority. Prints one line of JSON for each case.
"""
import json
import sys
import time

import grpc

address, authority, cases = sys.argv[1], sys.argv[2], sys.argv[3:]
channel = grpc.insecure_channel(
    "ipv4:" + address,
    options=[
        ("grpc.default_authority", authority),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ],
)
SENT = (("x-mine", "kept"), ("x-forwarded-client-cert", "URI=spiffe://demo.postern/ns/shop/sa/forged"))


def texts(pairs):
    return {key: value.hex() if isinstance(value, bytes) else value for key, value in pairs or ()}


def ended(call):
    return {
        "code": call.code().name,
        "details": call.details(),
        "initial": texts(call.initial_metadata()),
        "trailing": texts(call.trailing_metadata()),
    }


def unary(method, message=b"", **options):
    try:
        answer, call = channel.unary_unary("/shop.Orders/" + method).with_call(message, metadata=SENT, timeout=20, **options)
        return {"answer": answer.decode("latin-1")[:100], "size": len(answer), **ended(call)}
    except grpc.RpcError as error:
        return ended(error)


def server_stream(method="List", message=b"100", take=None):
    call = channel.unary_stream("/shop.Orders/" + method)(message, metadata=SENT, timeout=20)
    got = []
    try:
        for item in call:
            got.append(item.decode())
            if take and len(got) == take:
                call.cancel()
    except grpc.RpcError:
        pass
    return {"got": got if len(got) < 5 else [got[0], got[-1]], "count": len(got), **ended(call)}


def client_stream(count, size):
    call = channel.stream_unary("/shop.Orders/Put")
    answer, ending = call.with_call((b"m" * size for _ in range(count)), metadata=SENT, timeout=60)
    return {"answer": answer.decode(), **ended(ending)}


def chat():
    """Ping-pong: the next question is asked only when the last one is answered."""
    import queue

    questions = queue.Queue()
    call = channel.stream_stream("/shop.Orders/Chat")(iter(questions.get, None), metadata=SENT, timeout=20)
    got = []
    for word in (b"one", b"two", b"three"):
        questions.put(word)
        got.append(next(call).decode())
    questions.put(None)
    rest = list(call)
    return {"got": got, "rest": len(rest), **ended(call)}


def deadline():
    start = time.monotonic()
    try:
        channel.unary_unary("/shop.Orders/Slow")(b"", timeout=1)
        return {"code": "OK"}
    except grpc.RpcError as error:
        return {"seconds": time.monotonic() - start, **ended(error)}


def watch():
    """Until the stream is taken away."""
    call = channel.unary_stream("/shop.Orders/Endless")(b"", timeout=30)
    count = 0
    try:
        for _ in call:
            count += 1
            if count == 3:
                print(json.dumps({"case": "watching"}), flush=True)
    except grpc.RpcError:
        pass
    return {"count": count, **ended(call)}


CASES = {
    "unary": lambda: unary("Get", b"hello"),
    "empty": lambda: unary("Get", b""),
    "64k": lambda: unary("Get", b"x" * (64 << 10)),
    "4m": lambda: unary("Get", b"x" * (4 << 20)),
    "64m": lambda: unary("Get", b"x" * (64 << 20)),
    "list": server_stream,
    "put": lambda: client_stream(64, 64 << 10),
    "chat": chat,
    "fail": lambda: unary("Fail"),
    "fail-late": lambda: server_stream("FailLate"),
    "unknown": lambda: unary("Nothing"),
    "deadline": deadline,
    "cancel": lambda: server_stream("Endless", b"", take=3),
    "denied": lambda: unary("Secret"),
    "denied-stream": lambda: server_stream("Secret"),
    "watch": watch,
}
for case in cases:
    print(json.dumps({"case": case, **CASES[case]()}), flush=True)
