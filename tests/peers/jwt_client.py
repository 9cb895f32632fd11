"""A workload that shows and reads JWT-SVIDs. Usage: jwt_client.py SOCKET CASE [ARGUMENT...]

Prints lines of JSON: what PyPI's `spiffe` and PyJWT got at the socket and think of it.
"""
import base64
import hashlib
import hmac
import json
import sys
import threading
import time

import grpc
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient
from spiffe._proto import workload_pb2, workload_pb2_grpc

socket, case, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
HEADER = [("workload.spiffe.io", "true")]


def domain(svid):
    return TrustDomain(str(svid.spiffe_id).split("/")[2])


def judged(client, svid, audience, bundles):
    """A token by three judges: the sidecar, `spiffe` and PyJWT alone."""
    by_sidecar = client.validate_jwt_svid(svid.token, audience, timeout=10)
    bundle = bundles.get_bundle_for_trust_domain(domain(svid))
    offline = JwtSvid.parse_and_validate(svid.token, bundle, {audience})
    header = jwt.get_unverified_header(svid.token)
    claims = jwt.decode(svid.token, bundle.get_jwt_authority(header["kid"]), algorithms=["ES256"], audience=audience, leeway=30)
    return {
        "header": header,
        "claims": claims,
        "same": str(by_sidecar.spiffe_id) == str(offline.spiffe_id) == claims["sub"] == str(svid.spiffe_id),
    }


def show(told):
    print(json.dumps(told), flush=True)


def fetch():
    """A token for an audience."""
    with WorkloadApiClient("unix:" + socket) as client:
        svid = client.fetch_jwt_svid({arguments[0]}, timeout=10)
        again = client.fetch_jwt_svid({arguments[0]}, SpiffeId(str(svid.spiffe_id)), timeout=10)
        told = judged(client, svid, arguments[0], client.fetch_jwt_bundles(timeout=10))
        show({**told, "token": svid.token, "kept": svid.token == again.token})


def rotation():
    """Tokens, each judged by the newest bundles, until the key that signs and the set of keys have changed."""
    seen, errors, changed = [], [], threading.Event()

    def take(bundles):
        seen.append(bundles)
        changed.set()

    signers, sets, tokens = [], [], 0
    with WorkloadApiClient("unix:" + socket) as client:
        handler = client.stream_jwt_bundles(take, lambda error: errors.append(str(error)), retry_connect=False)
        changed.wait(10)
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not errors:
            svid = client.fetch_jwt_svid({f"audience-{tokens}"}, timeout=10)
            told = judged(client, svid, f"audience-{tokens}", seen[-1])
            tokens += told["same"]
            if told["header"]["kid"] not in signers:
                signers.append(told["header"]["kid"])
            sets = [sorted(one.get_bundle_for_trust_domain(domain(svid)).jwt_authorities) for one in seen]
            if len(signers) > 1 and signers[0] not in sets[-1]:
                break
            time.sleep(0.2)
        handler.cancel()
    show({"signers": signers, "sets": sets, "tokens": tokens, "errors": errors})


def encoded(data):
    return base64.urlsafe_b64encode(data if isinstance(data, bytes) else json.dumps(data).encode()).rstrip(b"=").decode()


def forged():
    """Tokens by the CA's own key (PKCS#8) that break one rule each: what the sidecar says of them."""
    key_file, kid, subject, audience = arguments
    with open(key_file, "rb") as file:
        key = serialization.load_der_private_key(file.read(), None)
    other = ec.generate_private_key(ec.SECP256R1())
    now = int(time.time())
    claims = {"sub": subject, "aud": [audience], "iat": now, "exp": now + 60}

    def signed(claims=claims, key=key, **header):
        return jwt.encode(claims, key, "ES256", {"kid": kid, **header})

    def without(name):
        return signed({k: v for k, v in claims.items() if k != name})

    def raw(header, payload, sign=lambda message: b""):
        message = f"{encoded(header)}.{payload if isinstance(payload, str) else encoded(payload)}"
        return f"{message}.{encoded(sign(message.encode()))}"

    spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    public = key.public_key().public_bytes(*spki)
    head, payload, signature = signed().split(".")
    twice = json.dumps(claims)[:-1] + f', "aud": "{audience}"}}'

    tokens = {
        "good": signed(),
        "audience among others": signed({**claims, "aud": ["other", audience]}),
        "alg none": raw({"alg": "none", "kid": kid}, claims),
        "alg None, signed": f"{encoded({'alg': 'None', 'kid': kid})}.{payload}.{signature}",
        "HS256 by the public key": raw(
            {"alg": "HS256", "kid": kid}, claims, lambda message: hmac.new(public, message, hashlib.sha256).digest()
        ),
        "other audience": signed({**claims, "aud": ["other"]}),
        "audience by part": signed({**claims, "aud": [audience[:-1]]}),
        "two claims aud": signed_text(key, kid, twice),
        "no audience": without("aud"),
        "expired": signed({**claims, "exp": now - 60}),
        "no end": without("exp"),
        "begins later": signed({**claims, "nbf": now + 3_600}),
        "no subject": without("sub"),
        "subject of the mesh's domain only": signed({**claims, "sub": "/".join(subject.split("/")[:3])}),
        "unknown trust domain": signed({**claims, "sub": "spiffe://other.domain/ns/shop/sa/orders"}),
        "another's key under this id": signed(key=other),
        "unknown key": signed(kid="nobody"),
        "no key id": jwt.encode(claims, key, "ES256"),
        "typ of another token": signed(typ="at+jwt"),
        "with a key of its own": signed(jwk={"kty": "EC"}),
        "critical extension": signed(crit=["b64"], b64=True),
        "payload exchanged": f"{head}.{encoded({**claims, 'sub': subject + '2'})}.{signature}",
        "signature cut": f"{head}.{payload}.{signature[:-2]}",
        "huge": signed({**claims, "padding": "a" * 9_000}),
        "encrypted": "a.b.c.d.e",
        "empty": "",
    }
    with grpc.insecure_channel("unix:" + socket) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        for name, token in tokens.items():
            question = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
            try:
                answer = stub.ValidateJWTSVID(question, metadata=HEADER, timeout=10)
                show({"token": name, "code": "OK", "id": answer.spiffe_id, "exp": answer.claims["exp"]})
            except grpc.RpcError as error:
                show({"token": name, "code": error.code().name, "details": error.details()})


def signed_text(key, kid, payload):
    """PyJWT would not write it."""
    message = f"{encoded({'alg': 'ES256', 'kid': kid})}.{encoded(payload.encode())}"
    made = jwt.get_algorithm_by_name("ES256").sign(message.encode(), key)
    return f"{message}.{encoded(made)}"


def codes():
    """What FetchJWTSVID and FetchJWTBundles say, for an audience and an id."""
    audience, subject = arguments
    with grpc.insecure_channel("unix:" + socket) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        request = workload_pb2.JWTSVIDRequest(audience=[audience] if audience else [], spiffe_id=subject)
        for call in (
            lambda: stub.FetchJWTSVID(request, metadata=HEADER, timeout=10),
            lambda: next(stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=HEADER, timeout=10)),
        ):
            try:
                call()
                show({"code": "OK"})
            except grpc.RpcError as error:
                show({"code": error.code().name, "details": error.details()})


{"fetch": fetch, "rotation": rotation, "forged": forged, "codes": codes}[case]()
