"""A gRPC server that knows no protobuf: messages are bytes. Usage: grpc_server.py ADDRESS:PORT"""
import sys
import time
from concurrent import futures

import grpc


def metadata(context):
    seen = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", "one"), ("x-caller", seen.get("x-forwarded-client-cert", "-"))))
    context.set_trailing_metadata((("x-trailing", "two"), ("x-binary-bin", b"\x00\xff"), ("x-saw", seen.get("x-mine", "-"))))


def get(request, context):
    metadata(context)
    return request


def list_all(request, context):
    metadata(context)
    for number in range(int(request)):
        yield b"item %d" % number


def put(requests, context):
    metadata(context)
    count = size = 0
    for message in requests:
        count += 1
        size += len(message)
    return b"%d %d" % (count, size)


def chat(requests, context):
    metadata(context)
    for message in requests:
        yield b"re: " + message


def fail(request, context):
    metadata(context)
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 100% sure, ünïcode")


def fail_late(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "after one")


def slow(request, context):
    # What is left of the caller's deadline, as the server learns it.
    print("deadline %.1f" % (context.time_remaining() or -1), flush=True)
    ended = time.monotonic() + 20
    while context.is_active() and time.monotonic() < ended:
        time.sleep(0.01)
    print("cancelled" if not context.is_active() else "never cancelled", flush=True)
    return b""


def endless(request, context):
    context.add_callback(lambda: print("endless ended", flush=True))
    while context.is_active():
        yield b"tick"
        time.sleep(0.02)


HANDLERS = {
    "Get": grpc.unary_unary_rpc_method_handler(get),
    "List": grpc.unary_stream_rpc_method_handler(list_all),
    "Put": grpc.stream_unary_rpc_method_handler(put),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Secret": grpc.unary_unary_rpc_method_handler(lambda request, context: print("reached", flush=True) or b"secret"),
}

server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=16),
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Orders", HANDLERS),))
if server.add_insecure_port(sys.argv[1]) == 0:
    sys.exit("cannot listen on " + sys.argv[1])
server.start()
print("listening", flush=True)
server.wait_for_termination()
