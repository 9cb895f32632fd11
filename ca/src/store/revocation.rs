//! What the trust bundle is made of, and what is taken out of it.

use std::time::SystemTime;

use postern_svid::jwt::JwtKeys;
use postern_svid::{Revocations, Revoked, SpiffeId, TrustDomain};

use super::{Authority, LEAP, StoreError};
use crate::authz::Denied;
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
    /// The latest time that the store has seen.
    pub seen: Option<SystemTime>,
}

impl Trust {
    /// Refuses a time that is a leap ahead of the latest seen.
    pub fn check_clock(&self, now: SystemTime) -> Result<(), StoreError> {
        self.seen.map_or(Ok(()), |seen| check_leap(seen, now))
    }
}

/// Refuses a time that is more than [`LEAP`] after the latest seen.
pub(crate) fn check_leap(seen: SystemTime, at: SystemTime) -> Result<(), StoreError> {
    match at.duration_since(seen) {
        Ok(ahead) if ahead > LEAP => Err(StoreError::Leapt { at, seen }),
        _ => Ok(()),
    }
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

impl Revocation {
    /// Whether the lists of `own` may name it: they act on its certificates alone, and without the control plane's own nobody would
    /// hear of them.
    pub fn check(&self, own: &TrustDomain) -> Result<(), StoreError> {
        let Revoked::Id(id) = &self.entry else { return Ok(()) };
        match crate::authz::may_exist(own, id) {
            Ok(()) => Ok(()),
            Err(Denied::TrustDomain { asked, .. }) => Err(StoreError::Refused(format!(
                "{id}: the deny list of {own} acts on certificates of {own} alone. Deny it where {asked} has its CA, or take {asked} out of federation.trustDomains here"
            ))),
            Err(_) => Err(StoreError::Refused(format!(
                "{id}: the control plane's own id; without it no sidecar would hear of any denial. If its key is stolen: postern ca deny serial, or postern ca taint its issuing CA"
            ))),
        }
    }

    /// Whether it may stand in the place of `old`, which names the same: a denial does not end earlier because it is repeated.
    pub(crate) fn may_replace(&self, old: &Self) -> Result<(), StoreError> {
        let earlier = match (self.ends, old.ends) {
            (Some(new), Some(old)) => new < old,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if !earlier {
            return Ok(());
        }
        Err(StoreError::Refused(format!(
            "{}: denied for longer already ({}), and it stays so. To let it end earlier, take it off with postern ca allow-again first, and deny it anew",
            self.entry,
            old.reason.as_str()
        )))
    }
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
    /// SHA-256 over its public key.
    pub key: [u8; 32],
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_reason_is_what_everybody_sees() {
        assert_eq!(Reason::parse("laptop stolen, INC-7").unwrap().as_str(), "laptop stolen, INC-7");
        for bad in ["", "   ", "two\nlines", "\u{1b}[2J", "gr\u{fc}n", &"x".repeat(201)] {
            assert_eq!(Reason::parse(bad), Err(ReasonError), "{bad:?}");
        }
    }

    #[test]
    fn what_may_be_denied() {
        let own = TrustDomain::parse("td").unwrap();
        let deny = |entry, ends: Option<u64>| Revocation {
            entry,
            reason: Reason::parse("why").unwrap(),
            at: SystemTime::UNIX_EPOCH,
            ends: ends.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        };
        let id = |text: &str| deny(Revoked::Id(SpiffeId::parse(text).unwrap()), Some(1));
        id("spiffe://td/a").check(&own).unwrap();
        deny(Revoked::Serial(vec![1]), None).check(&own).unwrap();
        for (bad, says) in [
            ("spiffe://td/postern/control", "control plane's own"),
            ("spiffe://other/a", "Deny it where other has its CA"),
        ] {
            let text = id(bad).check(&own).unwrap_err().to_string();
            assert!(text.contains(says), "{text}");
        }
        let until = |ends| deny(Revoked::Key([1; 32]), ends);
        for (old, new, ok) in [
            (Some(9), Some(9), true),
            (Some(9), Some(10), true),
            (Some(9), None, true),
            (Some(9), Some(8), false),
            (None, Some(8), false),
        ] {
            assert_eq!(until(new).may_replace(&until(old)).is_ok(), ok, "{old:?} {new:?}");
        }
    }
}
