"""From leaf to root: lengths, order, rotation, several trust domains, and what was revoked."""

import hashlib

from pki import ID, TD, case, issuing, leaf, plain, root
from x509 import NOW, Key, authority_key_id, name, subject_key_id

EVIL = "evil.example"


def cases():
    lengths()
    order()
    rotation()
    trust_domains()
    revoked()


def tower(height, limit=None):
    """A root and `height` issuing CAs below, the last one first."""
    top = root(path_length=limit)
    made = [top]
    for floor in range(height):
        made.insert(0, issuing(made[0], label=f"floor {floor}", path_length=None))
    return made[:-1], top


def lengths():
    for height in (1, 2, 6, 7):
        floors, top = tower(height)
        reason = None if height <= 6 else "untrusted"
        case(f"length::{height}-issuing-cas", f"A chain with {height} issuing CAs, none of which limits the path.", reason,
             [leaf(floors[0]), *floors], [top])
    floors, top = tower(8)
    case("length::8-issuing-cas", "A chain of nine certificates.", "chain_too_long", [leaf(floors[0]), *floors], [top])
    top = root()
    case("length::leaf-from-the-root", "A leaf that the root itself has issued.", None, [leaf(top)], [top])
    upper = issuing(top, label="upper")
    lower = issuing(upper, label="lower")
    case("length::below-0", "An issuing CA below one whose path length is 0.", "untrusted", [leaf(lower), lower, upper],
         [root(path_length=None)])
    top = root(path_length=0)
    middle = issuing(top)
    case("length::root-of-0", "An issuing CA below a root whose path length is 0.", "issuer_profile", [leaf(middle), middle],
         [top])
    floors, top = tower(2, limit=1)
    case("length::root-of-1", "Two issuing CAs below a root whose path length is 1.", "issuer_profile",
         [leaf(floors[0]), *floors], [top])
    middle = issuing(root())
    workload = leaf(middle, subject=name(("CN", "a workload")))
    below = leaf(workload, key=Key("p256", "below"))
    case("length::issued-by-a-leaf", "A leaf that a workload has issued with the key of its own.", "untrusted",
         [below, workload, middle], [root()])


def order():
    top = root()
    middle = issuing(top)
    first = leaf(middle)
    stranger = root(label="stranger")
    strange = issuing(stranger, label="strange")
    case("order::root-sent-along", "The root is sent too.", None, [first, middle, top], [top])
    case("order::shuffled", "The root before the issuing CA.", None, [first, top, middle], [top])
    case("order::unrelated", "Certificates of nobody's path between.", None, [first, stranger, strange, middle], [top])
    case("order::twice", "The issuing CA twice.", None, [first, middle, middle], [top])
    case("order::missing", "The issuing CA is missing.", "untrusted", [first], [top])
    case("order::issuing-first", "The issuing CA in the place of the leaf.", "bad_spiffe_id", [middle, first], [top])
    case("order::other-root", "Everything right, under a root that is not in the bundle.", "untrusted",
         [leaf(strange), strange], [top])
    case("order::other-root-sent-along", "The same, and its root is sent too.", "untrusted",
         [leaf(strange), strange, stranger], [top])
    twin = root(key=Key("p384", "twin"))
    wrong = issuing(twin)
    case("order::same-names", "Another CA with the same names: only the keys differ.", "untrusted", [leaf(wrong), wrong], [top])
    case("order::same-names-both-trusted", "Two roots of the same name in the bundle.", None, [leaf(wrong), wrong], [top, twin])
    same = issuing(top, subject=top.subject)
    case("order::root-and-issuing-of-one-name", "The issuing CA bears its root's name.", None, [leaf(same), same], [top])
    mimic = issuing(stranger, label="issuing", key=Key("p256", "mimic"), key_id=middle.key_id,
                    ext={"ski": subject_key_id(middle.key_id)})
    case("order::same-key-id", "Another CA's issuing CA with the name and the key id of ours, and ours beside it.", "untrusted",
         [leaf(mimic), mimic, middle], [top])
    case("order::mimic-does-no-harm", "The same certificate beside a chain that is right.", None, [first, mimic, middle], [top])
    case("order::authority-in-the-bundle", "An issuing CA in the place of a root, which the operator may decide.", None,
         [leaf(middle)], [middle])


def rotation():
    old, new = root(), root(label="root 2")
    before, after = issuing(old), issuing(new, label="issuing 2")
    bridge = root(label="root 2", parent=old, path_length=1)
    both = [old, new]
    case("rotation::old-under-both", "The old root's leaf while both roots are published.", None, [leaf(before), before], both)
    case("rotation::new-under-both", "The new root's leaf while both roots are published.", None, [leaf(after), after], both)
    case("rotation::new-under-old", "The new root's leaf before its root was published.", "untrusted", [leaf(after), after],
         [old])
    case("rotation::old-under-new", "The old root's leaf after its root was removed.", "untrusted", [leaf(before), before],
         [new])
    wide = root(path_length=2)
    bridge = root(label="root 2", parent=wide, path_length=1)
    case("rotation::cross-signed-under-old", "The new root, certified by the old one, for those who have the old one only.",
         None, [leaf(after), after, bridge], [wide])
    case("rotation::cross-signed-under-new", "The same chain for those who have the new one only.", None,
         [leaf(after), after, bridge], [new])
    case("rotation::cross-signed-too-narrow", "The old root's path length leaves no room for the new one.", "issuer_profile",
         [leaf(after), after, root(label="root 2", parent=old)], [old])
    ended = root(not_after=NOW - 10, serial=b"\x09")
    case("rotation::expired-twin", "A root that was renewed under its old key, beside its expired predecessor.", None,
         [leaf(before), before], [ended, old])
    case("rotation::only-the-expired-twin", "The expired predecessor alone.", "expired", [leaf(before), before], [ended])
    dead = issuing(old, not_after=NOW - 10, serial=b"\x09")
    case("rotation::expired-issuing-beside", "An issuing CA that was renewed under its old key, and its expired predecessor.",
         None, [leaf(before), dead, before], [old])
    case("rotation::new-key-old-name", "The issuing CA got a new key under its old name; both are sent.", None,
         [leaf(before), issuing(old, key=Key("p256", "issuing, rolled over")), before], [old])


def trust_domains():
    ours, theirs = root(), root(label="evil root", td=EVIL)
    middle, evil = issuing(ours), issuing(theirs, label="evil issuing", td=EVIL)
    others = {EVIL: [theirs]}
    theirs_id = f"spiffe://{EVIL}/ns/shop/sa/orders"
    case("trust-domains::theirs", "A federated trust domain's leaf under its own root.", None,
         [leaf(evil, uri=theirs_id), evil], [ours], id=theirs_id, others=others)
    case("trust-domains::they-make-ours", "A federated trust domain's CA issues an id of ours.", "untrusted",
         [leaf(evil), evil], [ours], others=others)
    case("trust-domains::we-make-theirs", "Our CA issues an id of theirs.", "untrusted", [leaf(middle, uri=theirs_id), middle],
         [ours], others=others)
    lying = issuing(theirs, label="lying", td=TD)
    case("trust-domains::they-say-they-are-ours", "Their root certifies an issuing CA that bears our trust domain's id.",
         "untrusted", [leaf(lying), lying], [ours], others=others)
    crossing = issuing(ours, label="crossing", td=EVIL)
    case("trust-domains::our-root-certifies-theirs", "Our root certifies an issuing CA of theirs, which issues an id of ours.",
         "issuer_profile", [leaf(crossing), crossing], [ours], others=others)
    case("trust-domains::and-theirs-by-it", "The same issuing CA issues an id of theirs: our root does not vouch for it.",
         "untrusted", [leaf(crossing, uri=theirs_id), crossing], [ours], others=others)
    nameless = root(label="nameless", ext={"san": None})
    below = issuing(nameless, label="nameless issuing", ext={"san": None})
    case("trust-domains::one-root-for-two", "A root without an id in both bundles may vouch for both, as their operators say.",
         None, [leaf(below, uri=theirs_id), below], [nameless], id=theirs_id, others={EVIL: [nameless]})


def revoked():
    top = root()
    middle = issuing(top)
    first = leaf(middle)
    spki = lambda made: hashlib.sha256(made.key.spki).hexdigest()
    chain = [first, middle]

    def one(label, description, reason, revoked, chain=chain, roots=None, **rest):
        case(f"revoked::{label}", description, reason, chain, roots or [top], revoked=revoked, **rest)

    one("root-tainted", "The root is on the taint list.", "tainted", {"authorities": [top.key_id.hex()]})
    one("issuing-tainted", "The issuing CA is on the taint list.", "tainted", {"authorities": [middle.key_id.hex()]})
    one("root-key-tainted", "The root's key is.", "tainted", {"keys": [spki(top)]})
    one("issuing-key-tainted", "The issuing CA's key is.", "tainted", {"keys": [spki(middle)]})
    one("serial-denied", "The leaf's serial number is on the deny list.", "denied", {"serials": [first.serial.hex()]})
    one("key-denied", "The leaf's key is.", "denied", {"keys": [spki(first)]})
    one("id-denied", "The leaf's id is.", "denied", {"ids": [ID]})
    one("others-denied", "Others are: an id that goes on, a serial number that is cut off, a leaf's key id as an authority's.",
        None, {"ids": [ID + "s", ID[:-1]], "serials": [first.serial[:-1].hex()], "authorities": [first.key_id.hex()]})
    one("authoritys-serial-denied", "The issuing CA's serial number is: the deny list speaks of leaves.", None,
        {"serials": [middle.serial.hex()]})
    new = root(label="root 2")
    crossed = issuing(new, serial=b"\x12")
    one("root-tainted-other-path", "The old root is tainted; the issuing CA was certified by the new one too.", None,
        {"authorities": [top.key_id.hex()]}, [first, middle, crossed], [top, new])
    one("both-roots-tainted", "Both are tainted.", "tainted",
        {"authorities": [top.key_id.hex(), new.key_id.hex()]}, [first, middle, crossed], [top, new])
    rekeyed = issuing(top, key_id=b"\x2a" * 20, serial=b"\x13", ext={"ski": subject_key_id(b"\x2a" * 20)})
    one("key-under-another-id", "A tainted key that was certified again under another key id.", "tainted",
        {"keys": [spki(middle)]}, [leaf(rekeyed), rekeyed])
    bridge = root(label="root 2", parent=root(path_length=2), path_length=1)
    below = issuing(new, label="issuing 2")
    one("bridge-tainted", "The new root is tainted and reached through the old one.", "tainted",
        {"authorities": [new.key_id.hex()]}, [leaf(below), below, bridge], [root(path_length=2)])
