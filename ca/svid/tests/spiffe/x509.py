"""X.509 written by hand, so that each byte can be wrong on purpose; keys and signatures are made by PyPI's cryptography.

Everything is derived from labels and fixed times: the same program writes the same bytes.
"""

import base64
import datetime
import hashlib

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

NOW = 1_800_000_000
DAY = 86_400


# --- DER


def tlv(tag, *contents):
    body = b"".join(contents)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    size = (len(body).bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + len(body).to_bytes(size, "big") + body


def seq(*contents):
    return tlv(0x30, *contents)


def oid(text):
    first, second, *rest = map(int, text.split("."))
    out = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | (arc & 0x7F))
        out += bytes(reversed(groups))
    return tlv(6, bytes(out))


def integer(value):
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def bits(*numbers):
    """A named bit list: DER leaves trailing zero bits out."""
    if not numbers:
        return tlv(3, b"\0")
    length = max(numbers) + 1
    octets = bytearray((length + 7) // 8)
    for number in numbers:
        octets[number // 8] |= 0x80 >> (number % 8)
    return tlv(3, bytes([-length % 8]), bytes(octets))


def time(seconds):
    """As RFC 5280 wants it: UTCTime until 2049, GeneralizedTime from then on."""
    if isinstance(seconds, bytes):
        return seconds
    at = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    if at.year < 2050:
        return tlv(0x17, at.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(0x18, at.strftime("%Y%m%d%H%M%SZ").encode())


def generalized(seconds, form="%Y%m%d%H%M%SZ"):
    return tlv(0x18, datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime(form).encode())


def name(*parts):
    kinds = {"CN": "2.5.4.3", "O": "2.5.4.10", "serialNumber": "2.5.4.5"}
    return seq(*(tlv(0x31, seq(oid(kinds[kind]), tlv(0x0C, text.encode()))) for kind, text in parts))


# --- keys


def prime(label, size):
    """A prime out of a label; no secret, for nothing is protected by it."""
    octets = b"".join(hashlib.sha512(f"{label} {n}".encode()).digest() for n in range(size // 512 + 1))
    candidate = int.from_bytes(octets[: size // 8], "big") | (3 << (size - 2)) | 1
    while any(candidate % small == 0 for small in (3, 5, 7, 11, 13, 17)) or pow(2, candidate - 1, candidate) != 1 \
            or pow(3, candidate - 1, candidate) != 1 or (candidate - 1) % 65537 == 0:
        candidate += 2
    return candidate


CURVES = {
    "p192": ec.SECP192R1,
    "p256": ec.SECP256R1,
    "p384": ec.SECP384R1,
    "p521": ec.SECP521R1,
    "k256": ec.SECP256K1,
}


class Key:
    """`kind` and a label make the key, always the same."""

    known = {}

    def __new__(cls, kind, label):
        if (kind, label) not in cls.known:
            self = cls.known[kind, label] = super().__new__(cls)
            self.kind, seed = kind, hashlib.sha512(f"{kind} {label}".encode()).digest()
            if kind in CURVES:
                curve = CURVES[kind]()
                self.private = ec.derive_private_key(int.from_bytes(seed[: curve.key_size // 8 - 1], "big"), curve)
            elif kind == "ed25519":
                self.private = ed25519.Ed25519PrivateKey.from_private_bytes(seed[:32])
            elif kind == "ed448":
                self.private = ed448.Ed448PrivateKey.from_private_bytes(seed[:57])
            else:
                self.private = cls.rsa(int(kind[3:]), label)
        return cls.known[kind, label]

    @staticmethod
    def rsa(size, label):
        p, q, e = prime(f"{label} p", size // 2), prime(f"{label} q", size // 2), 65537
        d = pow(e, -1, (p - 1) * (q - 1))
        public = rsa.RSAPublicNumbers(e, p * q)
        numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
        return numbers.private_key(unsafe_skip_rsa_key_validation=True)

    @property
    def spki(self):
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(serialization.Encoding.DER, form)

    @property
    def id(self):
        return hashlib.sha256(self.spki).digest()[:20]

    def digest(self):
        return {"p384": "sha384", "p521": "sha512"}.get(self.kind, "sha256")

    def algorithm(self, digest=None):
        digest = digest or self.digest()
        if self.kind in CURVES:
            arcs = {"sha1": "1", "sha256": "3.2", "sha384": "3.3", "sha512": "3.4"}
            return seq(oid(f"1.2.840.10045.4.{arcs[digest]}"))
        if self.kind.startswith("rsa"):
            arcs = {"sha1": "5", "sha256": "11", "sha384": "12"}
            return seq(oid(f"1.2.840.113549.1.1.{arcs[digest]}"), tlv(5))
        return seq(oid({"ed25519": "1.3.101.112", "ed448": "1.3.101.113"}[self.kind]))

    def sign(self, data, digest=None):
        made = getattr(hashes, (digest or self.digest()).upper())()
        if self.kind in CURVES:
            return self.private.sign(data, ec.ECDSA(made, deterministic_signing=True))
        if self.kind.startswith("rsa"):
            return self.private.sign(data, padding.PKCS1v15(), made)
        return self.private.sign(data)


# --- extensions: (oid, critical, value), by the names that cases use


def extension(arcs, value, critical=False):
    return seq(oid(arcs), *([tlv(1, b"\xff")] if critical else []), tlv(4, value))


def basic_constraints(ca, path_length=None, critical=True):
    parts = ([tlv(1, b"\xff")] if ca else []) + ([] if path_length is None else [integer(path_length)])
    return extension("2.5.29.19", seq(*parts), critical)


USAGES = ["digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement", "keyCertSign",
          "cRLSign"]


def key_usage(*usages, critical=True):
    return extension("2.5.29.15", bits(*map(USAGES.index, usages)), critical)


PURPOSES = {"server": "1.3.6.1.5.5.7.3.1", "client": "1.3.6.1.5.5.7.3.2", "code": "1.3.6.1.5.5.7.3.3",
            "any": "2.5.29.37.0"}


def extended_key_usage(*purposes, critical=False):
    return extension("2.5.29.37", seq(*(oid(PURPOSES[one]) for one in purposes)), critical)


def general_name(kind, value):
    if kind == "other":
        return tlv(0xA0, oid("1.3.6.1.4.1.311.20.2.3"), tlv(0xA0, tlv(0x0C, value.encode())))
    if kind == "directory":
        return tlv(0xA4, name(("CN", value)))
    if kind == "registered":
        return tlv(0x88, oid(value)[2:])
    raw = value if isinstance(value, bytes) else value.encode("latin-1")
    return tlv({"email": 0x81, "dns": 0x82, "uri": 0x86, "ip": 0x87}[kind], raw)


def subject_alt_name(*names, critical=True):
    return extension("2.5.29.17", seq(*(general_name(*one) for one in names)), critical)


def subject_key_id(value, critical=False):
    return extension("2.5.29.14", tlv(4, value), critical)


def authority_key_id(value, critical=False):
    return extension("2.5.29.35", seq(tlv(0x80, value)), critical)


def name_constraints(permitted=(), excluded=(), critical=True):
    trees = [tlv(tag, *(seq(general_name(*one)) for one in trees)) for tag, trees in ((0xA0, permitted), (0xA1, excluded))
             if trees]
    return extension("2.5.29.30", seq(*trees), critical)


# --- certificates


def certificate(signer, **f):
    """The fields in `f`: see `pki.py` for what they are when nothing is wrong with them."""
    algorithm = f.get("algorithm") or signer.algorithm(f.get("digest"))
    body = seq(
        b"" if f["version"] is None else tlv(0xA0, integer(f["version"])),
        tlv(2, f["serial"]),
        f.get("inner_algorithm") or algorithm,
        f["issuer"],
        seq(time(f["not_before"]), time(f["not_after"])),
        f["subject"],
        f["spki"],
        f.get("unique_ids", b""),
        tlv(0xA3, seq(*(one for one in f["extensions"].values() if one))) if f["extensions"] else b"",
    )
    signature = f.get("signature", lambda signed: signed)(signer.sign(body, f.get("digest")))
    return f.get("damage", lambda der: der)(seq(body, algorithm, tlv(3, b"\0", signature)))


def pem(der):
    text = base64.b64encode(der).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
