"""What stands in the subject alternative name."""

from pki import ID, TD, plain
from x509 import extension, name, oid, seq, subject_alt_name, tlv

LONGEST_TD = ".".join(["a" * 63] * 3 + ["b" * 63])
LONGEST_ID = f"spiffe://{TD}/".ljust(2_048, "a")


def san(*names, critical=True):
    return {"ext": {"san": subject_alt_name(*names, critical=critical)}}


def cases():
    plain("names::as-issued", "A chain of the mesh's CA, shown by a client.")
    plain("names::as-issued-server", "The same, shown by a server.", role="server")
    for label, uri in [
        ("every-character", f"spiffe://{TD}/AZaz09.-_/a"),
        ("dots-in-a-segment", f"spiffe://{TD}/.../.a"),
        ("one-segment", f"spiffe://{TD}/a"),
        ("longest-id", LONGEST_ID),
    ]:
        plain(f"names::good::{label}", f"An id within SPIFFE's grammar: {label}.", leaf_={"uri": uri}, id=uri)
    for label, td in [("longest-trust-domain", LONGEST_TD), ("underscore", "a_b"), ("digits", "127.0.0.1")]:
        uri = f"spiffe://{td}/a"
        plain(f"names::good::{label}", f"A trust domain within SPIFFE's grammar: {label}.", leaf_={"uri": uri},
              issuing_={"td": td}, root_={"td": td}, td=td, id=uri)
    for label, uri in [
        ("https", "https://demo.postern/a"),
        ("upper-case-scheme", f"SPIFFE://{TD}/a"),
        ("mixed-case-scheme", f"Spiffe://{TD}/a"),
        ("one-slash", f"spiffe:/{TD}/a"),
        ("no-slash", f"spiffe:{TD}/a"),
        ("relative", f"//{TD}/a"),
        ("empty", ""),
        ("upper-case-trust-domain", "spiffe://Demo.postern/a"),
        ("port", f"spiffe://{TD}:443/a"),
        ("user", f"spiffe://root@{TD}/a"),
        ("user-and-password", f"spiffe://root:x@{TD}/a"),
        ("ipv6-literal", "spiffe://[::1]/a"),
        ("percent-in-trust-domain", "spiffe://demo%2epostern/a"),
        ("wildcard-trust-domain", "spiffe://*.postern/a"),
        ("empty-trust-domain", "spiffe:///a"),
        ("trust-domain-of-256", f"spiffe://{'a' * 256}/a"),
        ("query", f"spiffe://{TD}/a?b=c"),
        ("empty-query", f"spiffe://{TD}/a?"),
        ("fragment", f"spiffe://{TD}/a#b"),
        ("percent-encoded-letter", f"spiffe://{TD}/%61"),
        ("percent-encoded-slash", f"spiffe://{TD}/a%2fb"),
        ("wildcard", f"spiffe://{TD}/*"),
        ("parameter", f"spiffe://{TD}/a;b"),
        ("backslash", f"spiffe://{TD}/a\\b"),
        ("blank", f"spiffe://{TD}/a b"),
        ("tab", f"spiffe://{TD}/a\tb"),
        ("line-feed", f"spiffe://{TD}/a\nb"),
        ("nul", f"spiffe://{TD}/a\0b"),
        ("nul-at-the-end", f"spiffe://{TD}/a\0"),
        ("delete", f"spiffe://{TD}/a\x7f"),
        ("double-slash", f"spiffe://{TD}//a"),
        ("slash-at-the-end", f"spiffe://{TD}/a/"),
        ("dot", f"spiffe://{TD}/./a"),
        ("dot-dot", f"spiffe://{TD}/a/.."),
        ("no-path", f"spiffe://{TD}"),
        ("only-a-slash", f"spiffe://{TD}/"),
        ("2049-bytes", LONGEST_ID + "a"),
    ]:
        plain(f"names::bad::{label}", f"A URI that is no workload's SPIFFE id: {label}.", "bad_spiffe_id", {"uri": uri})
    for label, raw in [("latin-1", b"\xe4"), ("utf-8", "ä".encode()), ("overlong-slash", b"\xc0\xaf")]:
        plain(f"names::bad::{label}", "A URI with bytes outside of ASCII, which an IA5String cannot hold.",
              "bad_spiffe_id|no_spiffe_id", san(("uri", f"spiffe://{TD}/a".encode() + raw)))

    plain("names::none", "No subject alternative name.", "no_spiffe_id", {"ext": {"san": None}})
    plain("names::empty-list", "An empty subject alternative name.", "no_spiffe_id", san())
    plain("names::malformed", "A subject alternative name that is no sequence.", "bad_certificate",
          {"ext": {"san": extension("2.5.29.17", tlv(4, b"nonsense"), True)}})
    plain("names::cut-off", "A subject alternative name whose length says more than there is.", "bad_certificate",
          {"ext": {"san": extension("2.5.29.17", b"\x30\x7f\x86\x05spiff", True)}})
    plain("names::in-common-name", "The id stands in the subject, and nowhere else.", "no_spiffe_id",
          {"ext": {"san": None}, "subject": name(("CN", ID))})
    plain("names::other-id-in-common-name", "The subject names another id; it is not read.",
          leaf_={"subject": name(("CN", f"spiffe://{TD}/admin"))})
    plain("names::two-ids", "Two ids.", "several_ids", san(("uri", ID), ("uri", f"spiffe://{TD}/admin")))
    plain("names::same-id-twice", "One id, twice.", "several_ids", san(("uri", ID), ("uri", ID)))
    plain("names::id-and-web-address", "An id and another URI.", "several_ids", san(("uri", ID), ("uri", "https://a/")))
    plain("names::web-address-and-id", "The same, the id last.", "several_ids", san(("uri", "https://a/"), ("uri", ID)))
    for kind, value in [("dns", "orders.shop"), ("ip", bytes([127, 0, 0, 1])), ("email", "a@b.example"),
                        ("directory", "orders"), ("other", "orders"), ("registered", "1.2.3.4")]:
        plain(f"names::only-{kind}", f"No URI, but a name of type {kind}.", "no_spiffe_id", san((kind, value)))
        plain(f"names::beside-{kind}", f"An id and a name of type {kind}, which another reader might take for the identity.",
              "other_name", san(("uri", ID), (kind, value)))
    plain("names::not-critical-without-subject", "The only name of the certificate is in an extension that may be ignored.",
          "bad_certificate", san(("uri", ID), critical=False))
    plain("names::not-critical-with-subject", "Beside a subject it need not be critical.",
          leaf_={"subject": name(("CN", "orders"))} | san(("uri", ID), critical=False))
    plain("names::twice", "Two subject alternative names.", "bad_certificate",
          {"ext": {"second": subject_alt_name(("uri", f"spiffe://{TD}/admin"))}})

    for label, td in [("other", "evil.example"), ("below", f"evil.{TD}"), ("above", "postern"), ("longer", f"{TD}.evil"),
                      ("prefix", "demo.poster"), ("dot-at-the-end", f"{TD}."), ("hyphen", "demo-postern")]:
        plain(f"names::trust-domain::{label}", f"An id of {td}, for which there is no bundle, under the root of {TD}.",
              "unknown_trust_domain", {"uri": f"spiffe://{td}/ns/shop/sa/orders"})
