"""A root, an issuing CA and a leaf as the mesh makes them, each field open to change; and the cases made of them."""

import hashlib

from x509 import (DAY, NOW, Key, authority_key_id, basic_constraints, certificate, extended_key_usage, key_usage, name,
                  name_constraints, pem, subject_alt_name, subject_key_id)

TD = "demo.postern"
ID = f"spiffe://{TD}/ns/shop/sa/orders"


class Made:
    """A certificate with the key that belongs to it."""

    def __init__(self, key, parent, extensions, ext=None, signer=None, serial_of="", **changes):
        serial = bytearray(hashlib.sha256(f"{key.kind} {serial_of}".encode() + key.id).digest()[:16])
        serial[0] = serial[0] & 0x3F | 0x40
        fields = {"version": 2, "serial": bytes(serial), "unique_ids": b"", "spki": key.spki}
        fields |= {"extensions": extensions | (ext or {})} | changes
        fields.setdefault("issuer", parent.subject if parent else fields["subject"])
        self.key, self.subject, self.serial = key, fields["subject"], fields["serial"]
        self.key_id = fields.pop("key_id", key.id)
        self.der = certificate(signer or (parent.key if parent else key), **fields)


def root(label="root", td=TD, key=None, ext=None, parent=None, path_length=1, **changes):
    key = key or Key("p384", label)
    changes = {"subject": name(("O", td), ("serialNumber", label)), "not_before": NOW - DAY,
               "not_after": NOW + 365 * DAY} | changes
    return Made(key, parent, {
        "bc": basic_constraints(True, path_length),
        "ku": key_usage("keyCertSign", "cRLSign"),
        "san": subject_alt_name(("uri", f"spiffe://{td}"), critical=False),
        "ski": subject_key_id(key.id),
        "aki": authority_key_id(parent.key_id) if parent else None,
    }, ext, **changes)


def issuing(parent, label="issuing", td=TD, key=None, ext=None, path_length=0, **changes):
    key = key or Key("p256", label)
    changes = {"subject": name(("O", td), ("serialNumber", label)), "not_before": NOW - 3_600,
               "not_after": NOW + 7 * DAY} | changes
    return Made(key, parent, {
        "bc": basic_constraints(True, path_length),
        "ku": key_usage("keyCertSign", "cRLSign"),
        "san": subject_alt_name(("uri", f"spiffe://{td}"), critical=False),
        "nc": name_constraints(excluded=[("dns", ""), ("ip", bytes(8)), ("ip", bytes(32))]),
        "ski": subject_key_id(key.id),
        "aki": authority_key_id(parent.key_id),
    }, ext, **changes)


def leaf(parent, uri=ID, key=None, ext=None, **changes):
    key = key or Key("p256", "leaf")
    changes = {"subject": name(), "not_before": NOW - 120, "not_after": NOW + 3_600} | changes
    return Made(key, parent, {
        "san": subject_alt_name(("uri", uri)),
        "ku": key_usage("digitalSignature"),
        "eku": extended_key_usage("server", "client"),
        "bc": basic_constraints(False),
        "ski": subject_key_id(key.id),
        "aki": authority_key_id(parent.key_id),
    }, ext, **changes)


CASES = []


def case(label, description, reason, chain, roots, role="client", now=NOW, id=ID, td=TD, others=None, revoked=None):
    """`reason` is the one a verifier of SPIFFE gives for refusing the chain (leaf first), or None if it must accept it.
    `others` are bundles of other trust domains, `revoked` the taint and deny lists of this one."""
    entry = {
        "id": f"spiffe::{label}",
        "conflicts_with": [],
        "features": [],
        "importance": "high",
        "description": description,
        "validation_kind": role.upper(),
        "trusted_certs": [pem(one.der) for one in roots],
        "untrusted_intermediates": [pem(one.der) for one in chain[1:]],
        "peer_certificate": pem(chain[0].der),
        "validation_time": f"2027-01-15T08:00:00+00:00" if now == NOW else at(now),
        "signature_algorithms": [],
        "key_usage": [],
        "extended_key_usage": ["clientAuth" if role == "client" else "serverAuth"],
        "expected_result": "FAILURE" if reason else "SUCCESS",
        "expected_peer_name": None,
        "expected_peer_names": [],
        "max_chain_depth": None,
        "crls": [],
        "spiffe": {
            "trust_domain": td,
            "id": None if reason else id,
            "reason": reason,
            "federated": {other: [pem(one.der) for one in certs] for other, certs in (others or {}).items()},
            "revoked": revoked or {},
        },
    }
    assert all(entry["id"] != earlier["id"] for earlier in CASES), label
    CASES.append(entry)


def at(seconds):
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat()


def plain(label, description, reason=None, leaf_=None, issuing_=None, root_=None, **rest):
    """Leaf, issuing CA and root as ever, but for what is named."""
    top = root(**(root_ or {}))
    middle = issuing(top, **(issuing_ or {}))
    case(label, description, reason, [leaf(middle, **(leaf_ or {})), middle], [top], **rest)
