"""A workload that knows only SPIFFE. Usage: spiffe_client.py SOCKET CASE [NUMBER]

Prints a line of JSON for what PyPI's `spiffe`, or plain gRPC, got at the socket.
"""
import json
import sys
import threading

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import TrustDomain, WorkloadApiClient

socket, case = sys.argv[1], sys.argv[2]
DOMAIN = TrustDomain("demo.postern")


def described(context):
    svid = context.default_svid
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(DOMAIN)
    return {
        "id": str(svid.spiffe_id),
        "serial": format(svid.leaf.serial_number, "032x"),
        "key": svid.private_key.public_key().public_bytes(*spki) == svid.leaf.public_key().public_bytes(*spki),
        "chain": len(svid.cert_chain),
        "roots": len(bundle.x509_authorities),
    }


def context():
    with WorkloadApiClient("unix:" + socket) as client:
        print(json.dumps(described(client.fetch_x509_context(timeout=10))), flush=True)


def bundles():
    with WorkloadApiClient("unix:" + socket) as client:
        bundle = client.fetch_x509_bundles(timeout=10).get_bundle_for_trust_domain(DOMAIN)
        print(json.dumps({"roots": len(bundle.x509_authorities)}), flush=True)


def watch():
    """So many contexts of one watch, which must not break."""
    left, over, errors = int(sys.argv[3]), threading.Event(), []
    seen = []

    def take(context):
        seen.append(context)
        print(json.dumps(described(context)), flush=True)
        if len(seen) == left:
            over.set()

    def broken(error):
        errors.append(str(error))
        over.set()

    with WorkloadApiClient("unix:" + socket) as client:
        handler = client.stream_x509_contexts(take, broken, retry_connect=False)
        over.wait(120)
        handler.cancel()
    if errors or len(seen) < left:
        sys.exit(f"{len(seen)} contexts, then {errors}")


def call(method, metadata):
    with grpc.insecure_channel("unix:" + socket) as channel:
        stream = channel.unary_stream("/SpiffeWorkloadAPI/" + method)
        try:
            for message in stream(b"", metadata=metadata, timeout=10):
                print(json.dumps({"code": "OK", "bytes": len(message)}), flush=True)
                return
        except grpc.RpcError as error:
            print(json.dumps({"code": error.code().name, "details": error.details()}), flush=True)


cases = {
    "context": context,
    "bundles": bundles,
    "watch": watch,
    "with_header": lambda: call("FetchX509SVID", [("workload.spiffe.io", "true")]),
    "without_header": lambda: call("FetchX509SVID", []),
    "jwt": lambda: call("FetchJWTBundles", [("workload.spiffe.io", "true")]),
}
cases[case]()
