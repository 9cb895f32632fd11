//! What the trust bundle is made of, and what is taken out of it.

use std::time::SystemTime;

use postern_svid::jwt::JwtKeys;
use postern_svid::{Revocations, Revoked, SpiffeId};

use super::Authority;
use crate::lineage::LineageId;

/// Bytes of all entries together. A bundle must fit into one message to a sidecar, beside its roots.
pub const MAX_LISTS: usize = 128 * 1024;
/// Of each entry on the wire: tag and length.
const OVERHEAD: usize = 4;

/// Roots by their state, taint and deny lists, and the version of it all.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The version; 0 before the first.
    pub sequence: u64,
    /// All CAs, oldest first.
    pub authorities: Vec<Authority>,
    /// Entries of both lists.
    pub revocations: Vec<Revocation>,
    /// The keys that sign JWT-SVIDs, and those whose tokens have not all ended.
    pub jwt_keys: JwtKeys,
    /// Leaves issued before are to be renewed at once.
    pub renew_before: Option<SystemTime>,
}

/// An entry of the taint or deny list.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// Whom it names.
    pub entry: Revoked,
    /// Why.
    pub reason: Reason,
    /// Since when.
    pub at: SystemTime,
    /// When it falls away by itself; a taint never does.
    pub ends: Option<SystemTime>,
}

/// A leaf that is valid.
#[derive(Clone, Debug)]
pub struct Live {
    /// Whose it is.
    pub id: SpiffeId,
    /// Its lineage.
    pub lineage: LineageId,
    /// Key identifier of the CA that signed it.
    pub issuer: Vec<u8>,
    /// Its serial number.
    pub serial: Vec<u8>,
    /// When it was made.
    pub issued: SystemTime,
    /// The last second of its life.
    pub not_after: SystemTime,
    /// Whether it is the newest of its lineage.
    pub is_newest: bool,
    /// Whether it is the control plane's own.
    pub is_own: bool,
}

/// Why somebody did what trust hangs on. It stands in the ledger for good, so it holds nothing that a reader would not see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reason(String);

impl Reason {
    /// From 1 to 200 characters of printable ASCII, not blank.
    pub fn parse(text: &str) -> Result<Self, ReasonError> {
        let is_printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if text.trim().is_empty() || text.len() > 200 || !is_printable {
            return Err(ReasonError);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Reason {
    type Err = ReasonError;

    fn from_str(text: &str) -> Result<Self, ReasonError> {
        Self::parse(text)
    }
}

/// Why a text is no reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a reason has 1 to 200 characters of printable ASCII: it stands in the ledger for good")]
pub struct ReasonError;

/// The entries as sidecars get them.
pub(crate) fn lists(entries: &[Revocation]) -> Result<Revocations, String> {
    let bytes: usize = entries.iter().map(|one| size(&one.entry) + OVERHEAD).sum();
    if bytes > MAX_LISTS {
        return Err(format!("{} entries, {bytes} bytes of {MAX_LISTS}", entries.len()));
    }
    Revocations::new(entries.iter().map(|one| one.entry.clone())).map_err(|error| error.to_string())
}

fn size(entry: &Revoked) -> usize {
    match entry {
        Revoked::Authority(bytes) | Revoked::Serial(bytes) => bytes.len(),
        Revoked::Key(digest) => digest.len(),
        Revoked::Id(id) => id.as_str().len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_what_everybody_sees() {
        assert_eq!(Reason::parse("laptop stolen, INC-7").unwrap().as_str(), "laptop stolen, INC-7");
        for bad in ["", "   ", "two\nlines", "\u{1b}[2J", "gr\u{fc}n", &"x".repeat(201)] {
            assert_eq!(Reason::parse(bad), Err(ReasonError), "{bad:?}");
        }
    }
}
