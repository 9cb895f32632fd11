"""A leaf, apart from its name: usages, times, numbers, keys, encoding."""

from pki import ID, TD, Made, case, issuing, leaf, plain, root
from x509 import (DAY, NOW, Key, authority_key_id, basic_constraints, bits, extended_key_usage, extension, general_name,
                  generalized, integer, key_usage, name, name_constraints, oid, seq, subject_alt_name, subject_key_id, tlv)

PRIVATE = "1.3.6.1.4.1.99999"


def ext(**changed):
    return {"ext": changed}


def cases():
    usages()
    times()
    encoding()
    keys()


def usages():
    for label, description, reason, changed in [
        ("ca", "The leaf is an authority.", "ca_as_leaf", ext(bc=basic_constraints(True))),
        ("ca-with-path-length", "The same with a path length.", "ca_as_leaf", ext(bc=basic_constraints(True, 0))),
        ("path-length", "A path length without being an authority.", "ca_as_leaf", ext(bc=basic_constraints(False, 0))),
        ("no-basic-constraints", "Basic constraints may be absent from a leaf.", None, ext(bc=None)),
        ("basic-constraints-not-critical", "They need not be critical either.", None,
         ext(bc=basic_constraints(False, critical=False))),
        ("key-cert-sign", "The leaf's key may sign certificates.", "key_usage",
         ext(ku=key_usage("digitalSignature", "keyCertSign"))),
        ("crl-sign", "The leaf's key may sign revocation lists.", "key_usage",
         ext(ku=key_usage("digitalSignature", "cRLSign"))),
        ("ca-and-key-cert-sign", "An authority's certificate with a workload's id.", "ca_as_leaf",
         ext(bc=basic_constraints(True), ku=key_usage("digitalSignature", "keyCertSign"))),
        ("no-key-usage", "No key usage.", "key_usage", ext(ku=None)),
        ("key-usage-not-critical", "A key usage that may be ignored.", "key_usage",
         ext(ku=key_usage("digitalSignature", critical=False))),
        ("no-digital-signature", "A key that may not sign handshakes.", "key_usage", ext(ku=key_usage("keyAgreement"))),
        ("empty-key-usage", "A key that may do nothing.", "key_usage", ext(ku=extension("2.5.29.15", bits(), True))),
        ("key-agreement-too", "keyEncipherment and keyAgreement may be set.", None,
         ext(ku=key_usage("digitalSignature", "keyEncipherment", "keyAgreement"))),
        ("no-purposes", "No extended key usage.", "key_usage", ext(eku=None)),
        ("any-purpose", "Good for any purpose.", "key_usage", ext(eku=extended_key_usage("server", "client", "any"))),
        ("only-any-purpose", "Good for any purpose, and none by name.", "key_usage", ext(eku=extended_key_usage("any"))),
        ("other-purpose", "Good for signing code.", "key_usage", ext(eku=extended_key_usage("code"))),
        ("empty-purposes", "An empty list of purposes.", "key_usage|bad_certificate",
         ext(eku=extension("2.5.29.37", seq()))),
        ("critical-purposes", "Extended key usage may be critical.", None,
         ext(eku=extended_key_usage("server", "client", critical=True))),
        ("only-client", "Only clientAuth, shown by a client.", None, ext(eku=extended_key_usage("client"))),
        ("only-server", "Only serverAuth, shown by a client.", "key_usage", ext(eku=extended_key_usage("server"))),
        ("name-constraints", "A leaf that constrains names.", "name_constraints",
         ext(nc=name_constraints(excluded=[("dns", "")]))),
        ("no-authority-key-id", "No authority key id.", "issuer_profile", ext(aki=None)),
        ("critical-authority-key-id", "A critical authority key id.", "issuer_profile",
         ext(aki=authority_key_id(Key("p256", "issuing").id, critical=True))),
        ("other-authority-key-id", "Another authority's key id.", "issuer_profile", ext(aki=authority_key_id(b"\7" * 20))),
        ("empty-authority-key-id", "An authority key id of no bytes.", "issuer_profile", ext(aki=authority_key_id(b""))),
        ("issuer-and-serial", "The authority by name and number only.", "issuer_profile",
         ext(aki=extension("2.5.29.35", seq(tlv(0xA1, tlv(0xA4, name(("CN", "issuing")))), tlv(0x82, b"\1"))))),
        ("no-subject-key-id", "A leaf needs no key id of its own.", None, ext(ski=None)),
        ("unknown-critical", "A critical extension that nobody knows.", "bad_certificate",
         ext(x=extension(PRIVATE + ".1", tlv(5), True))),
        ("unknown-not-critical", "The same, not critical.", None, ext(x=extension(PRIVATE + ".1", tlv(5)))),
        ("critical-policies", "Critical certificate policies, which nobody here weighs.", "bad_certificate",
         ext(x=extension("2.5.29.32", seq(seq(oid(PRIVATE + ".2"))), True))),
        ("unknown-twice", "An unknown extension twice.", "bad_certificate",
         ext(x=extension(PRIVATE + ".1", tlv(5)), y=extension(PRIVATE + ".1", tlv(5)))),
        ("key-usage-twice", "Key usage twice, both alike.", "bad_certificate", ext(x=key_usage("digitalSignature"))),
        ("33-extensions", "More extensions than anybody needs.", "bad_certificate",
         ext(**{f"x{n}": extension(f"{PRIVATE}.{n + 10}", tlv(5)) for n in range(33)})),
    ]:
        plain(f"leaf::{label}", description, reason, changed)
    plain("leaf::only-server-as-server", "Only serverAuth, shown by a server.", None,
          ext(eku=extended_key_usage("server")), role="server")
    plain("leaf::only-client-as-server", "Only clientAuth, shown by a server.", "key_usage",
          ext(eku=extended_key_usage("client")), role="server")


def times():
    plain("times::first-second", "The leaf's first second.", now=NOW - 120)
    plain("times::before-the-first", "The second before.", "not_yet_valid", now=NOW - 121)
    plain("times::last-second", "The leaf's last second.", now=NOW + 3_600)
    plain("times::after-the-last", "The second after.", "expired", now=NOW + 3_601)
    plain("times::year-later", "A year after its end.", "expired", now=NOW + 300 * DAY)
    plain("times::ends-before-it-begins", "The leaf ends before it begins.", "bad_certificate",
          {"not_before": NOW + 60, "not_after": NOW - 60})
    for who, begins, ends in [("issuing", -3_600, 7 * DAY), ("root", -DAY, 365 * DAY)]:
        key = f"{who}_"
        plain(f"times::{who}::ended", f"The {who} certificate ended a second ago.", "expired",
              **{key: {"not_after": NOW - 1}})
        plain(f"times::{who}::last-second", f"The {who} certificate is in its last second.", **{key: {"not_after": NOW}})
        plain(f"times::{who}::begins", f"The {who} certificate begins a second from now.", "not_yet_valid",
              **{key: {"not_before": NOW + 1}})
    plain("times::leaf-outlives-issuing", "The leaf would live longer than its issuing CA: good until that one's end.", None,
          {"not_after": NOW + 30 * DAY})
    plain("times::leaf-outlived-issuing", "The same, after the issuing CA's end.", "expired", {"not_after": NOW + 30 * DAY},
          now=NOW + 8 * DAY)
    plain("times::no-end", "The year 9999, which means that there is no end.", None,
          {"not_after": generalized(253_402_300_799)})
    for label, description, value in [
        ("generalized-before-2050", "GeneralizedTime for a date that must be UTCTime.", generalized(NOW + 3_600)),
        ("fraction", "A fraction of a second.", generalized(2_600_000_000, "%Y%m%d%H%M%S.5Z")),
        ("no-seconds", "A time without seconds.", tlv(0x17, b"2801150800Z")),
        ("offset", "A time zone that is not Z.", tlv(0x17, b"280115080000+0100")),
        ("no-zone", "A time without a zone.", tlv(0x17, b"280115080000")),
        ("february-30", "A day that does not exist.", tlv(0x17, b"280230080000Z")),
    ]:
        plain(f"times::form::{label}", description, "bad_certificate", {"not_after": value})


def encoding():
    for label, description, reason, serial in [
        ("zero", "Serial number zero.", "bad_certificate", b"\0"),
        ("negative", "A negative serial number.", "bad_certificate", b"\xda" * 16),
        ("empty", "A serial number of no bytes.", "bad_certificate", b""),
        ("padded", "A serial number with a needless zero in front.", "bad_certificate", b"\0" + b"\x5a" * 15),
        ("21-octets", "A serial number of 21 octets.", "bad_certificate", b"\x7f" * 21),
        ("20-octets-high-bit", "20 octets whose sign needs a 21st.", "bad_certificate", b"\0" + b"\xff" * 20),
        ("20-octets", "The longest serial number.", None, b"\x7f" * 20),
        ("one", "The shortest serial number.", None, b"\1"),
    ]:
        plain(f"serial::{label}", description, reason, {"serial": serial})
    other = Key("p256", "nobody")
    for label, description, reason, changed in [
        ("version-1", "Version 1, with extensions.", "bad_certificate", {"version": None}),
        ("version-2", "Version 2, with extensions.", "bad_certificate", {"version": 1}),
        ("version-4", "A version that does not exist.", "bad_certificate", {"version": 3}),
        ("unique-ids", "A unique identifier of the subject.", "bad_certificate", {"unique_ids": tlv(0x82, b"\0\1")}),
        ("two-algorithms", "The certificate names another signature algorithm inside than outside.", "bad_certificate",
         {"inner_algorithm": Key("p384", "x").algorithm()}),
        ("bytes-after", "A byte follows the certificate.", "bad_certificate", {"damage": lambda der: der + b"\0"}),
        ("cut-off", "Half a certificate.", "bad_certificate", {"damage": lambda der: der[: len(der) // 2]}),
        ("indefinite-length", "BER's indefinite length, which DER forbids.", "bad_certificate",
         {"damage": lambda der: b"\x30\x80" + der[4:] + b"\0\0"}),
        ("long-length", "A length in more octets than it needs.", "bad_certificate",
         {"damage": lambda der: b"\x30\x83\0" + der[2:]}),
        ("not-a-certificate", "An octet string.", "bad_certificate", {"damage": lambda der: tlv(4, b"hello")}),
        ("false-default", "cA FALSE written out, which DER leaves out; there is no doubt about what it says.", None,
         ext(bc=extension("2.5.29.19", seq(tlv(1, b"\0")), True))),
        ("boolean-one", "A boolean that is neither 00 nor FF.", "bad_certificate",
         ext(ku=seq(oid("2.5.29.15"), tlv(1, b"\1"), tlv(4, bits(0))))),
        ("signature-changed", "One bit of the signature is another.", "untrusted",
         {"signature": lambda signed: signed[:-1] + bytes([signed[-1] ^ 1])}),
        ("signed-by-another-key", "The name and key id of the issuing CA, and a signature by another key.", "untrusted",
         {"signer": other}),
        ("empty-signature", "No signature at all.", "untrusted", {"signature": lambda signed: b""}),
        ("issuer-empty", "No name of the issuer.", "untrusted", {"issuer": name()}),
    ]:
        plain(f"encoding::{label}", description, reason, changed)
    self_signed = leaf(Made(Key("p256", "self"), None, {}, subject=name(("CN", "x")), not_before=NOW, not_after=NOW),
                       key=Key("p256", "self"), subject=name(("CN", "x")))
    case("encoding::self-signed", "A leaf that signed itself.", "self_signed", [self_signed], [root()])
    case("encoding::self-signed-trusted", "A leaf that is one of the roots.", "unfit_bundle", [self_signed], [self_signed])


def keys():
    for kind in ("p384", "ed25519"):
        plain(f"keys::{kind}", f"A leaf with a key of type {kind}.", None, {"key": Key(kind, "leaf")})
        plain(f"keys::issuing-{kind}", f"An issuing CA with a key of type {kind}.", None, None, {"key": Key(kind, "issuing")})
    plain("keys::ed25519-throughout", "Ed25519 from the root to the leaf.", None, {"key": Key("ed25519", "leaf")},
          {"key": Key("ed25519", "issuing")}, {"key": Key("ed25519", "root")})
    for kind in ("p192", "k256", "p521", "ed448", "rsa1024", "rsa2048"):
        plain(f"keys::{kind}", f"A leaf with a key of type {kind}.", "key_type", {"key": Key(kind, "leaf")})
    for kind in ("p521", "rsa1024", "rsa2048"):
        plain(f"keys::issuing-{kind}", f"An issuing CA with a key of type {kind}.", "untrusted", None,
              {"key": Key(kind, "issuing")})
    plain("keys::root-rsa2048", "A root with an RSA key.", "unfit_bundle", None, None, {"key": Key("rsa2048", "root")})
    plain("keys::sha1", "ECDSA with SHA-1.", "untrusted", {"digest": "sha1"})
    plain("keys::rsa-sha1", "RSA with SHA-1.", "untrusted", {"digest": "sha1"}, {"key": Key("rsa2048", "issuing")})
    plain("keys::p256-sha384", "P-256 with a longer hash.", None, {"digest": "sha384"})
    point = Key("p256", "leaf").spki
    plain("keys::compressed-point", "A compressed point: half of the readers cannot read it.", "key_type",
          {"spki": seq(point[2:][: len(point) - 2 - 68], tlv(3, b"\0" + bytes([2 + (point[-1] & 1)]) + point[-64:-32]))})
    plain("keys::off-the-curve", "A point that is not on its curve.", "key_type",
          {"spki": point[:-1] + bytes([point[-1] ^ 1])})
