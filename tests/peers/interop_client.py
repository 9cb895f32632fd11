"""The client of gRPC's published interop cases, against interop_server. Usage: interop_client.py PROXY:PORT AUTHORITY

Prints a line of JSON for each case: its name, and what was wrong with it, which is null if nothing was.
"""
import json
import queue
import sys

import grpc

channel = grpc.insecure_channel(
    "ipv4:" + sys.argv[1],
    options=[("grpc.default_authority", sys.argv[2]), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)],
)
SERVICE = "/grpc.testing.TestService/"
INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"
METADATA = ((INITIAL, "test_initial_metadata_value"), (TRAILING, b"\xab\xab\xab"))
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


def request(padding=0, **said):
    return json.dumps(said).encode() + b"\n" + bytes(padding)


def same(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def unary(message, method="UnaryCall", service=SERVICE, **options):
    return channel.unary_unary(service + method).with_call(message, timeout=20, **options)


def fails(call, code, details=None):
    try:
        call()
    except grpc.RpcError as error:
        same(error.code(), code)
        if details is not None:
            same(error.details(), details)
        return
    raise AssertionError("it succeeded")


class Duplex:
    def __init__(self, **options):
        self.questions = queue.Queue()
        self.call = channel.stream_stream(SERVICE + "FullDuplexCall")(iter(self.questions.get, None), **options)

    def ask(self, message):
        self.questions.put(message)
        return next(self.call)


def empty_unary():
    same(unary(b"", "EmptyCall")[0], b"")


def large_unary():
    same(unary(request(271828, size=314159))[0], bytes(314159))


def client_streaming():
    sizes = (27182, 8, 1828, 45904)
    answer = channel.stream_unary(SERVICE + "StreamingInputCall")(iter([bytes(size) for size in sizes]), timeout=20)
    same(answer, b"74922")


def server_streaming():
    sizes = [31415, 9, 2653, 58979]
    got = list(channel.unary_stream(SERVICE + "StreamingOutputCall")(request(sizes=sizes), timeout=20))
    same([len(one) for one in got], sizes)


def ping_pong():
    duplex = Duplex(timeout=20)
    for padding, size in zip((27182, 8, 1828, 45904), (31415, 9, 2653, 58979)):
        same(len(duplex.ask(request(padding, size=size))), size)
    duplex.questions.put(None)
    same(list(duplex.call), [])
    same(duplex.call.code(), grpc.StatusCode.OK)


def empty_stream():
    duplex = Duplex(timeout=20)
    duplex.questions.put(None)
    same(list(duplex.call), [])
    same(duplex.call.code(), grpc.StatusCode.OK)


def cancel_after_begin():
    asked = queue.Queue()
    call = channel.stream_unary(SERVICE + "StreamingInputCall").future(iter(asked.get, None))
    call.cancel()
    asked.put(None)
    same(call.code(), grpc.StatusCode.CANCELLED)


def cancel_after_first_response():
    duplex = Duplex(timeout=20)
    same(len(duplex.ask(request(27182, size=31415))), 31415)
    duplex.call.cancel()
    duplex.questions.put(None)
    fails(lambda: next(duplex.call), grpc.StatusCode.CANCELLED)


def timeout_on_sleeping_server():
    duplex = Duplex(timeout=0.3)
    fails(lambda: duplex.ask(request(27182, size=1, sleep=2)), grpc.StatusCode.DEADLINE_EXCEEDED)
    duplex.questions.put(None)


def custom_metadata():
    _, call = unary(request(271828, size=314159), metadata=METADATA)
    same(dict(call.initial_metadata()).get(INITIAL), METADATA[0][1])
    same(dict(call.trailing_metadata()).get(TRAILING), METADATA[1][1])
    duplex = Duplex(timeout=20, metadata=METADATA)
    same(len(duplex.ask(request(271828, size=314159))), 314159)
    duplex.questions.put(None)
    same(dict(duplex.call.initial_metadata()).get(INITIAL), METADATA[0][1])
    same(list(duplex.call), [])
    same(dict(duplex.call.trailing_metadata()).get(TRAILING), METADATA[1][1])


def status_code_and_message():
    said = request(code=2, message="test status message")
    fails(lambda: unary(said), grpc.StatusCode.UNKNOWN, "test status message")
    duplex = Duplex(timeout=20)
    fails(lambda: duplex.ask(said), grpc.StatusCode.UNKNOWN, "test status message")
    duplex.questions.put(None)


def special_status_message():
    fails(lambda: unary(request(code=2, message=SPECIAL)), grpc.StatusCode.UNKNOWN, SPECIAL)


def unimplemented_method():
    fails(lambda: unary(b"", "UnimplementedCall"), grpc.StatusCode.UNIMPLEMENTED)


def unimplemented_service():
    call = lambda: unary(b"", "UnimplementedCall", "/grpc.testing.UnimplementedService/")
    fails(call, grpc.StatusCode.UNIMPLEMENTED)


for case in (
    empty_unary, large_unary, client_streaming, server_streaming, ping_pong, empty_stream, cancel_after_begin,
    cancel_after_first_response, timeout_on_sleeping_server, custom_metadata, status_code_and_message,
    special_status_message, unimplemented_method, unimplemented_service,
):
    try:
        case()
        wrong = None
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"[:500]
    print(json.dumps({"case": case.__name__, "wrong": wrong}), flush=True)
