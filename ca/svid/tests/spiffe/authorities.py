"""Issuing CAs and roots: their profile, and the constraints that they put on what is below."""

from leaves import PRIVATE
from pki import ID, TD, case, issuing, leaf, plain, root
from x509 import (NOW, Key, authority_key_id, basic_constraints, bits, extended_key_usage, extension, key_usage, name,
                  name_constraints, oid, seq, subject_alt_name, subject_key_id, tlv)


def cases():
    for who, bad in (("issuing", "issuer_profile"), ("root", "unfit_bundle")):
        profile(who, bad)
    root_only()
    constraints()


def profile(who, bad):
    def one(label, description, reason, ext=None, **changes):
        plain(f"{who}::{label}", f"The {who} certificate: {description}", reason,
              **{f"{who}_": ({"ext": ext} if ext else {}) | changes})

    root_only_error = bad == "unfit_bundle"
    untrusted = bad if root_only_error else "untrusted"
    malformed = bad if root_only_error else "bad_certificate"
    one("no-ca", "no authority.", untrusted, {"bc": basic_constraints(False)})
    one("no-basic-constraints", "no basic constraints.", untrusted, {"bc": None})
    one("basic-constraints-not-critical", "basic constraints that may be ignored.", bad,
        {"bc": basic_constraints(True, 1 if who == "root" else 0, critical=False)})
    one("no-key-cert-sign", "a key that may not sign certificates.", bad, {"ku": key_usage("cRLSign")})
    one("no-key-usage", "no key usage.", bad, {"ku": None})
    one("key-usage-not-critical", "a key usage that may be ignored.", bad, {"ku": key_usage("keyCertSign", critical=False)})
    one("only-key-cert-sign", "cRLSign may be missing.", None, {"ku": key_usage("keyCertSign")})
    one("digital-signature-too", "digitalSignature beside keyCertSign.", None,
        {"ku": key_usage("digitalSignature", "keyCertSign")})
    one("no-subject-key-id", "no subject key id.", bad, {"ski": None})
    one("critical-subject-key-id", "a critical subject key id.", malformed if who == "issuing" else bad,
        {"ski": subject_key_id(Key("p256", "issuing").id if who == "issuing" else Key("p384", "root").id, critical=True)})
    one("empty-subject", "no name.", bad, subject=name())
    one("other-trust-domain", "the id of another trust domain.", bad,
        {"san": subject_alt_name(("uri", "spiffe://evil.example"), critical=False)})
    one("id-with-path", "an id with a path, which is a workload's.", bad,
        {"san": subject_alt_name(("uri", ID), critical=False)})
    one("id-with-slash", "an id with an empty path.", bad,
        {"san": subject_alt_name(("uri", f"spiffe://{TD}/"), critical=False)})
    one("two-ids", "two ids.", "several_ids" if who == "issuing" else bad,
        {"san": subject_alt_name(("uri", f"spiffe://{TD}"), ("uri", "spiffe://evil.example"), critical=False)})
    one("no-id", "no id, which SPIFFE only recommends.", None, {"san": None})
    one("dns-name", "a DNS name beside its id: nobody is authenticated by it.", None,
        {"san": subject_alt_name(("uri", f"spiffe://{TD}"), ("dns", "ca.example"), critical=False), "nc": None})
    one("unknown-critical", "a critical extension that nobody knows.", malformed,
        {"x": extension(PRIVATE + ".1", tlv(5), True)})
    one("unknown-not-critical", "an extension that nobody knows.", None, {"x": extension(PRIVATE + ".1", tlv(5))})
    one("critical-policy-constraints", "critical policy constraints.", malformed,
        {"x": extension("2.5.29.36", seq(tlv(0x80, b"\0")), True)})
    one("key-usage-twice", "key usage twice.", malformed, {"x": key_usage("keyCertSign", "cRLSign")})
    one("serial-zero", "serial number zero.", malformed, serial=b"\0")
    one("version-1", "version 1.", malformed, version=None)
    one("both-purposes", "an extended key usage for both sides.", None, {"eku": extended_key_usage("server", "client")})
    one("only-server", "an extended key usage for servers; the leaf is a client's.",
        "key_usage" if who == "issuing" else "issuer_profile", {"eku": extended_key_usage("server")})
    one("ends-before-it-begins", "it ends before it begins.", malformed, not_before=NOW + 9, not_after=NOW - 9)
    one("empty-name-constraints", "name constraints that constrain nothing.", malformed,
        {"nc": extension("2.5.29.30", seq(), True)})
    one("two-algorithms", "another signature algorithm inside than outside.", malformed,
        inner_algorithm=Key("p521", "x").algorithm())
    one("bytes-after", "a byte follows it.", malformed, damage=lambda der: der + b"\0")


def root_only():
    plain("issuing::no-authority-key-id", "The issuing CA: no authority key id.", "issuer_profile", None,
          {"ext": {"aki": None}})
    plain("issuing::other-authority-key-id", "The issuing CA: another root's key id.", "issuer_profile", None,
          {"ext": {"aki": authority_key_id(b"\7" * 20)}})
    plain("issuing::critical-authority-key-id", "The issuing CA: a critical authority key id.", "issuer_profile|bad_certificate",
          None, {"ext": {"aki": authority_key_id(Key("p384", "root").id, critical=True)}})
    plain("root::with-authority-key-id", "A root may name its own key as its authority's.", None, None, None,
          {"ext": {"aki": authority_key_id(Key("p384", "root").id)}})
    plain("root::other-authority-key-id", "A root that signed itself and says that another key did.", "unfit_bundle", None,
          None, {"ext": {"aki": authority_key_id(b"\7" * 20)}})
    plain("root::critical-authority-key-id", "A critical authority key id in the root.", "unfit_bundle", None, None,
          {"ext": {"aki": authority_key_id(Key("p384", "root").id, critical=True)}})
    plain("root::signature-changed", "A root's own signature proves nothing: it is trusted by its bytes.", None, None, None,
          {"signature": lambda signed: signed[:-1] + bytes([signed[-1] ^ 1])})


def constraints():
    def on_issuing(label, description, reason, **trees):
        plain(f"constraints::{label}", description, reason, None, {"ext": {"nc": name_constraints(**trees)}})

    on_issuing("only-dns-permitted", "Only DNS names below one are permitted, and the leaf has none.", None,
               permitted=[("dns", "shop.example")])
    on_issuing("not-critical", "Name constraints that are not critical are enforced all the same.", None,
               excluded=[("dns", "")], critical=False)
    on_issuing("uri-permitted", "Only URIs of the trust domain are permitted: nobody here reads constraints on URIs, so "
               "they are not believed to be kept.", "untrusted", permitted=[("uri", TD)])
    on_issuing("other-uri-permitted", "Only another trust domain's URIs are permitted.", "untrusted",
               permitted=[("uri", "evil.example")])
    on_issuing("uri-excluded", "URIs of the trust domain are excluded.", "untrusted", excluded=[("uri", TD)])
    on_issuing("other-uri-excluded", "Another trust domain's URIs are excluded.", "untrusted",
               excluded=[("uri", "evil.example")])
    on_issuing("bad-mask", "An address whose mask has holes: nobody has an address to compare with it.", None, excluded=[("ip", bytes([10, 0, 0, 0, 255, 0, 255, 0]))])
    plain("constraints::on-the-root", "The root excludes DNS names and addresses.", None, None, None,
          {"ext": {"nc": name_constraints(excluded=[("dns", ""), ("ip", bytes(8)), ("ip", bytes(32))])}})
    plain("constraints::uri-on-the-root", "The root permits another trust domain's URIs only.", "untrusted", None, None,
          {"ext": {"nc": name_constraints(permitted=[("uri", "evil.example")])}})
