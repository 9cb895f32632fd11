"""An issuer of tokens: PyJWT signs, http.server gives out the keys, and both do as they are told.

Usage: issuer.py ADDRESS PORT DIRECTORY     writes DIRECTORY/ca.pem; keys are at https://ADDRESS:PORT/jwks.json, and what it is
told at http://ADDRESS:(PORT + 1)/: /token?kid=K&as=K&claims=JSON, /behave?how=H&keys=K,K, and a set of any keys at /keys?keys=K,K
"""

import datetime
import http.server
import ipaddress
import json
import ssl
import sys
import threading
import time
import urllib.parse

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

address, port, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]

KEYS = {
    "first": ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    "second": ("ES256", ec.generate_private_key(ec.SECP256R1())),
    "third": ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
    "stolen": ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
}
state = {"how": "well", "keys": ["first"], "asked": 0}


def jwk(kid):
    algorithm, key = KEYS[kid]
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key())
    made = json.loads(made) if isinstance(made, str) else made
    return {**made, "kid": kid, "use": "sig"}


def certificate():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.datetime.now(datetime.timezone.utc)

    def build(subject_key, issuer_key, is_ca):
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(subject_key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        if not is_ca:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    ca_key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    with open(f"{directory}/ca.pem", "wb") as file:
        file.write(build(ca_key, ca_key, True).public_bytes(pem))
    with open(f"{directory}/server.pem", "wb") as file:
        file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        file.write(build(key, ca_key, False).public_bytes(pem))


class Answers(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body, fields=()):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Keys(Answers):
    def do_GET(self):
        state["asked"] += 1
        how = state["how"]
        if how == "slow":
            time.sleep(60)
        if how == "redirect" and self.path == "/jwks.json":
            return self.answer(302, b"", [("location", "/elsewhere.json")])
        if how == "broken":
            return self.answer(500, b"no")
        body = json.dumps({"keys": [jwk(kid) for kid in state["keys"]]}).encode()
        if how == "huge":
            body = body[:-1] + b', "x": "' + b"x" * 1_000_000 + b'"}'
        self.answer(200, body, [("cache-control", "max-age=60")])


class Told(Answers):
    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(parts.query))
        if parts.path == "/behave":
            state["how"] = asked.get("how", state["how"])
            state["keys"] = asked.get("keys", ",".join(state["keys"])).split(",")
            return self.answer(200, json.dumps(state).encode())
        if parts.path == "/keys":
            body = json.dumps({"keys": [jwk(kid) for kid in asked["keys"].split(",")]}).encode()
            return self.answer(200, body, [("cache-control", "max-age=60")])
        kid = asked["kid"]
        algorithm, key = KEYS[kid]
        now = int(time.time())
        claims = {"iss": "https://id.example.com", "aud": "orders", "sub": "ann", "iat": now, "exp": now + 600}
        for name, value in json.loads(asked.get("claims", "{}")).items():
            # Times are told from now on.
            claims[name] = now + value if name in ("exp", "nbf", "iat") else value
        token = jwt.encode(claims, key, algorithm=algorithm, headers={"kid": asked.get("as", kid)})
        self.answer(200, token.encode())


def serve(handler, at, context=None):
    server = http.server.ThreadingHTTPServer((address, at), handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


certificate()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{directory}/server.pem")
serve(Keys, port, context)
serve(Told, port + 1)
while True:
    time.sleep(3600)
