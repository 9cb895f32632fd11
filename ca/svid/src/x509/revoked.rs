//! What a trust domain no longer stands by, although its dates and signatures are right.
//!
//! Two lists, kept with the bundle of the trust domain that says so, and asked about its own SVIDs only. The **taint list**
//! holds authorities: no path leads through a tainted one, and a leaf that has another path keeps it. The **deny list** holds
//! leaves, by serial number, key or id. There are no CRLs and no OCSP: SVIDs live for an hour, and the lists are as long as
//! what was lost within it.

use std::collections::BTreeSet;
use std::fmt;

use super::cert::Facts;
use super::error::VerifyError;
use crate::SpiffeId;

/// Entries of both lists together. Whoever has more to deny has lost an authority: one taint takes all of its SVIDs.
const MAX_ENTRIES: usize = 4_096;
/// RFC 5280, 4.2.1.2 proposes 20 octets (SHA-1); SHA-256 has 32.
const MAX_KEY_ID: usize = 64;
/// RFC 5280, 4.1.2.2.
const MAX_SERIAL: usize = 20;

/// One entry of a taint or deny list.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Revoked {
    /// Taint: the authority, issuing CA or root, with this subject key id.
    Authority(Vec<u8>),
    /// The key whose `SubjectPublicKeyInfo` has this SHA-256, wherever it stands: a leaf with it is denied, an authority
    /// with it tainted. Its holder cannot choose it, as it can a key id or a serial number.
    Key([u8; 32]),
    /// Deny: the leaf with this serial number, big-endian, whichever CA of the trust domain issued it.
    Serial(Vec<u8>),
    /// Deny: every SVID of this id.
    Id(SpiffeId),
}

impl Revoked {
    /// For the bundle's digest: what kind of entry, and its content.
    pub(super) fn digest(&self) -> [u8; 32] {
        let (kind, content): (u8, &[u8]) = match self {
            Self::Authority(key_id) => (1, key_id),
            Self::Key(digest) => (2, digest),
            Self::Serial(serial) => (3, serial),
            Self::Id(id) => (4, id.as_str().as_bytes()),
        };
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        context.update(&[kind]);
        context.update(content);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority(key_id) => write!(f, "the authority's key id {}", Hex(key_id)),
            Self::Key(digest) => write!(f, "the key with the SHA-256 {}", Hex(digest)),
            Self::Serial(serial) => write!(f, "the serial number {}", Hex(serial)),
            Self::Id(id) => write!(f, "the id {id}"),
        }
    }
}

/// The taint list and the deny list of one trust domain.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Revocations(BTreeSet<Revoked>);

impl Revocations {
    /// Takes at most 4,096 entries; the same one twice counts once.
    pub fn new(entries: impl IntoIterator<Item = Revoked>) -> Result<Self, RevocationsError> {
        let mut set = BTreeSet::new();
        for entry in entries {
            set.insert(checked(entry)?);
            if set.len() > MAX_ENTRIES {
                return Err(RevocationsError::TooMany);
            }
        }
        Ok(Self(set))
    }

    /// All entries, in an order of no meaning.
    pub fn iter(&self) -> impl Iterator<Item = &Revoked> {
        self.0.iter()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this very entry is there.
    pub fn contains(&self, entry: &Revoked) -> bool {
        self.0.contains(entry)
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether everything in `other` is here too.
    pub fn hold_all_of(&self, other: &Self) -> bool {
        other.0.is_subset(&self.0)
    }

    /// Holds the deny list against a leaf.
    pub(super) fn check_leaf(&self, facts: &Facts, id: &SpiffeId) -> Result<(), VerifyError> {
        if self.is_empty() {
            return Ok(());
        }
        let candidates = [
            Revoked::Id(id.clone()),
            Revoked::Serial(facts.serial.clone()),
            Revoked::Key(facts.key_digest()),
        ];
        match candidates.into_iter().find(|one| self.0.contains(one)) {
            Some(entry) => Err(VerifyError::Denied(entry)),
            None => Ok(()),
        }
    }

    /// Holds the taint list against an issuing CA or a root.
    pub(super) fn check_authority(&self, facts: &Facts) -> Result<(), VerifyError> {
        if self.is_empty() {
            return Ok(());
        }
        let key_id = facts.subject_key_id.iter().map(|(id, _)| Revoked::Authority(id.clone()));
        match key_id.chain([Revoked::Key(facts.key_digest())]).find(|one| self.0.contains(one)) {
            Some(_) => Err(VerifyError::Tainted),
            None => Ok(()),
        }
    }
}

/// An entry that can match nothing is a mistake of whoever wrote it, and would be missed where it counts.
fn checked(entry: Revoked) -> Result<Revoked, RevocationsError> {
    match entry {
        Revoked::Authority(id) if id.is_empty() || id.len() > MAX_KEY_ID => {
            Err(RevocationsError::KeyId(id.len()))
        }
        Revoked::Serial(serial) => {
            let leading = serial.iter().take_while(|byte| **byte == 0).count();
            let magnitude = &serial[leading..];
            if magnitude.is_empty() || magnitude.len() > MAX_SERIAL {
                return Err(RevocationsError::Serial(magnitude.len()));
            }
            Ok(Revoked::Serial(magnitude.to_vec()))
        }
        entry => Ok(entry),
    }
}

/// Why entries make no list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RevocationsError {
    /// A key id of so many bytes.
    KeyId(usize),
    /// A serial number of so many bytes, leading zeros left out.
    Serial(usize),
    /// More than 4,096.
    TooMany,
}

impl fmt::Display for RevocationsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyId(length) => {
                write!(
                    f,
                    "a tainted authority's key id has {length} bytes; 1 to {MAX_KEY_ID} can match a certificate"
                )
            }
            Self::Serial(length) => {
                write!(
                    f,
                    "a denied serial number has {length} bytes; 1 to {MAX_SERIAL} can match a certificate"
                )
            }
            Self::TooMany => write!(
                f,
                "more than {MAX_ENTRIES} certificates are tainted or denied; taint the authority that issued them instead"
            ),
        }
    }
}

impl std::error::Error for RevocationsError {}

/// Bytes of a certificate for people: lower-case hexadecimal, cut off where no honest one is longer.
pub(super) struct Hex<'a>(pub(super) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take(MAX_KEY_ID) {
            write!(f, "{byte:02x}")?;
        }
        if self.0.len() > MAX_KEY_ID { f.write_str("…") } else { Ok(()) }
    }
}
