"""The server of gRPC's published interop cases, without protobuf. Usage: interop_server.py ADDRESS:PORT

A request is a line of JSON that says what to do, and padding: {"size": 314159} asks for so many bytes, {"code": 2,
"message": "..."} for that status. Metadata is echoed as the cases want it.
"""
import json
import sys
import time
from concurrent import futures

import grpc

INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"


def echo(context):
    seen = dict(context.invocation_metadata())
    if INITIAL in seen:
        context.send_initial_metadata(((INITIAL, seen[INITIAL]),))
    if TRAILING in seen:
        context.set_trailing_metadata(((TRAILING, seen[TRAILING]),))


def asked(request, context):
    said = json.loads(request.split(b"\n", 1)[0] or b"{}")
    if said.get("code"):
        code = next(code for code in grpc.StatusCode if code.value[0] == said["code"])
        context.abort(code, said["message"])
    return said


def unary(request, context):
    echo(context)
    return bytes(asked(request, context).get("size", 0))


def streaming_input(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def streaming_output(request, context):
    for size in asked(request, context)["sizes"]:
        yield bytes(size)


def full_duplex(requests, context):
    echo(context)
    for request in requests:
        said = asked(request, context)
        if said.get("sleep"):
            time.sleep(said["sleep"])
        yield bytes(said.get("size", 0))
    print("duplex over", flush=True)


HANDLERS = {
    "EmptyCall": grpc.unary_unary_rpc_method_handler(lambda request, context: b""),
    "UnaryCall": grpc.unary_unary_rpc_method_handler(unary),
    "StreamingInputCall": grpc.stream_unary_rpc_method_handler(streaming_input),
    "StreamingOutputCall": grpc.unary_stream_rpc_method_handler(streaming_output),
    "FullDuplexCall": grpc.stream_stream_rpc_method_handler(full_duplex),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.testing.TestService", HANDLERS),))
if server.add_insecure_port(sys.argv[1]) == 0:
    sys.exit("cannot listen on " + sys.argv[1])
server.start()
print("listening", flush=True)
server.wait_for_termination()
