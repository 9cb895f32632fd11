//! Signed tree heads, as C2SP's tlog-checkpoint and signed-note have them: text that a person reads and other programs verify.

use std::fmt::Write as _;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{PKCS_ED25519, PublicKeyData as _, SigningKey as _};

use super::{Hash, Identity, KEY, LedgerError, Tree, sha256};
use crate::keys::{Key, KeyStore};

/// The longest head: 64 subtrees of 57 bytes, and 1 KiB for the rest.
pub(super) const MAX_HEAD: u64 = 8 * 1_024;
/// Ed25519 in signed-note.
const ALGORITHM: u8 = 1;

/// The public key that heads are verified with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HeadKey(pub [u8; 32]);

impl HeadKey {
    /// As `signed-note` writes it, for other programs.
    pub fn text(&self, identity: &Identity) -> String {
        let origin = identity.origin();
        let id = crate::hex(&self.id(&origin));
        format!("{origin}+{id}+{}", STANDARD.encode([&[ALGORITHM], &self.0[..]].concat()))
    }

    /// The four bytes before each signature.
    fn id(&self, origin: &str) -> [u8; 4] {
        let hash = sha256(&[origin.as_bytes(), b"\n", &[ALGORITHM], &self.0]);
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

/// Signs heads.
pub struct Signer {
    key: Key,
    public: HeadKey,
    identity: Identity,
}

impl Signer {
    /// With the key in `keys`, which is made if none is `known` yet.
    pub fn open(
        keys: &dyn KeyStore,
        identity: Identity,
        known: Option<HeadKey>,
    ) -> Result<Self, LedgerError> {
        // A key without a ledger that knows it: a first start broke off between the two.
        let is_there = keys.names()?.iter().any(|name| name == KEY);
        let key = if known.is_none() && !is_there {
            keys.create(KEY, &PKCS_ED25519)?
        } else {
            keys.load(KEY, &PKCS_ED25519)?
        };
        let public = HeadKey(key.der_bytes().try_into().map_err(|_| LedgerError::KeyMismatch)?);
        if known.is_some_and(|known| known != public) {
            return Err(LedgerError::KeyMismatch);
        }
        Ok(Self { key, public, identity })
    }

    /// What its heads are verified with.
    pub fn public(&self) -> HeadKey {
        self.public
    }

    /// Whose ledger it signs.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The head of `tree`, after whose last record the chain's hash is `chain`.
    pub fn sign(&self, tree: &Tree, chain: Hash, time_ms: u64) -> Result<String, LedgerError> {
        let head = Head { time_ms, chain, tree: tree.clone() };
        let origin = self.identity.origin();
        let body = head.body(&origin);
        let signature = self.key.sign(body.as_bytes()).map_err(|_| LedgerError::Sign)?;
        let signature: [u8; 64] = signature.try_into().map_err(|_| LedgerError::Sign)?;
        Ok(signed(&body, &origin, self.public, &signature))
    }
}

/// A head whose signature was verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Head {
    /// When it was signed, in milliseconds since 1970.
    pub time_ms: u64,
    /// The chain's hash after its last record.
    pub chain: Hash,
    /// Its tree.
    pub tree: Tree,
}

impl Head {
    /// Reads a head of `identity` that `key` has signed. Exactly one text says a head.
    pub fn verify(text: &str, identity: &Identity, key: HeadKey) -> Result<Self, &'static str> {
        const FORM: &str = "it is no signed head";
        let origin = identity.origin();
        let (body, note) = text.split_once("\n\n").ok_or(FORM)?;
        let mut lines = body.lines();
        if lines.next() != Some(origin.as_str()) {
            return Err("it is the head of another ledger");
        }
        let size = lines.next().and_then(|line| line.parse().ok()).ok_or(FORM)?;
        // The root follows from the subtrees below.
        let _root = lines.next();
        let time_ms = lines.next().and_then(|line| line.strip_prefix("time ")?.parse().ok()).ok_or(FORM)?;
        let chain = lines.next().and_then(|line| hash(line.strip_prefix("chain ")?)).ok_or(FORM)?;
        let subtrees: Option<_> = lines.map(|line| hash(line.strip_prefix("subtree ")?)).collect();
        let tree = subtrees.and_then(|subtrees| Tree::of(size, subtrees)).ok_or(FORM)?;
        let head = Self { time_ms, chain, tree };

        let signature = note.trim_end_matches('\n').rsplit(' ').next();
        let signature = signature.and_then(|text| STANDARD.decode(text).ok()).ok_or(FORM)?;
        let signature: [u8; 64] = signature.get(4..).and_then(|s| s.try_into().ok()).ok_or(FORM)?;
        let body = head.body(&origin);
        UnparsedPublicKey::new(&ED25519, key.0)
            .verify(body.as_bytes(), &signature)
            .map_err(|_| "its signature does not verify")?;
        // Whatever was passed over above shows here.
        if signed(&body, &origin, key, &signature) == text {
            Ok(head)
        } else {
            Err("it is not as it was written")
        }
    }

    fn body(&self, origin: &str) -> String {
        let Self { time_ms, chain, tree } = self;
        let root = STANDARD.encode(tree.root());
        let mut text =
            format!("{origin}\n{}\n{root}\ntime {time_ms}\nchain {}\n", tree.size(), STANDARD.encode(chain));
        for subtree in tree.subtrees() {
            let _ = writeln!(text, "subtree {}", STANDARD.encode(subtree));
        }
        text
    }
}

fn signed(body: &str, origin: &str, key: HeadKey, signature: &[u8; 64]) -> String {
    let signature = STANDARD.encode([&key.id(origin)[..], signature].concat());
    format!("{body}\n\u{2014} {origin} {signature}\n")
}

fn hash(text: &str) -> Option<Hash> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyFiles;
    use crate::ledger::merkle::tests::{leaves, tree};

    #[test]
    fn one_byte_changed_anywhere_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyFiles::new(dir.path());
        let identity = Identity { trust_domain: crate::testing::td(), id: [7; 16] };
        let signer = Signer::open(&keys, identity.clone(), None).unwrap();
        let tree = tree(&leaves(6));
        let text = signer.sign(&tree, [9; 32], 1_000).unwrap();
        let head = Head::verify(&text, &identity, signer.public()).unwrap();
        assert_eq!(head, Head { time_ms: 1_000, chain: [9; 32], tree });
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let read = String::from_utf8(bytes).ok();
                let read = read.and_then(|text| Head::verify(&text, &identity, signer.public()).ok());
                assert_eq!(read, None, "byte {at}, bit {bit}");
            }
        }
        assert!(Head::verify(&format!("{text}\n"), &identity, signer.public()).is_err());
        assert!(Head::verify(&text, &identity, HeadKey([1; 32])).is_err());

        let again = Signer::open(&keys, identity.clone(), Some(signer.public())).unwrap();
        assert_eq!(again.sign(&head.tree, [9; 32], 1_000).unwrap(), text);
        let other = Signer::open(&keys, identity.clone(), Some(HeadKey([1; 32])));
        assert!(matches!(other, Err(LedgerError::KeyMismatch)));
        std::fs::remove_file(dir.path().join("ledger.key")).unwrap();
        assert!(Signer::open(&keys, identity, Some(signer.public())).is_err(), "none is made in its place");
    }
}
