//! Join tokens: 256 random bits that stand for one identity until a key is bound to them.
//!
//! The store knows only their SHA-256; whoever reads it can use none of them. A token is spent by the first request: it is bound to
//! that request's key, and only the same key gets an answer again, so a lost reply costs nothing and a copied token is worthless.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use postern_svid::{SpiffeId, TrustDomain};
use zeroize::Zeroizing;

use crate::authz::{self, Denied};
use crate::keys::{self, KeyError};
use crate::store::{Store, StoreError};

/// Scanners for leaked secrets find the prefix.
const PREFIX: &str = "postern-join-";
const RANDOM: usize = 32;

/// The longest life that is given: a token is for the next few minutes, not for an image.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3_600);

/// The shortest: somebody has to carry it to the workload.
pub const MIN_TTL: Duration = Duration::from_secs(10);

/// A token in clear. Its text leaves only through [`Token::reveal`].
pub struct Token(Zeroizing<String>);

/// What the store keeps of a token.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct TokenHash(pub(crate) [u8; 32]);

/// A token as the store holds it.
#[derive(Clone, Debug)]
pub struct TokenRecord {
    /// Its hash.
    pub hash: TokenHash,
    /// The identity that it stands for.
    pub id: SpiffeId,
    /// When it was made.
    pub created: SystemTime,
    /// When it ends.
    pub expires: SystemTime,
    /// The key that it was spent for and the lineage that began with it.
    pub bound: Option<Bound>,
}

/// What a spent token is bound to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bound {
    /// Fingerprint of the key.
    pub key: [u8; 32],
    /// The lineage that the token began.
    pub lineage: crate::lineage::LineageId,
}

impl Token {
    /// A fresh one.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; RANDOM]);
        getrandom::fill(bytes.as_mut())?;
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 2 * RANDOM));
        text.push_str(PREFIX);
        for byte in bytes.iter() {
            for nibble in [byte >> 4, byte & 0xf] {
                text.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
            }
        }
        Ok(Self(text))
    }

    /// Makes a token for `id`, writes it to the new file `out` (mode 0600) and its hash to `store`. The text is shown nowhere else.
    pub fn create(
        store: &dyn Store,
        td: &TrustDomain,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
        out: &Path,
    ) -> Result<(), TokenError> {
        Draft::write(td, id, ttl, now, out)?.enter(store)
    }

    /// The text that goes into the file.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Its hash.
    pub fn hash(&self) -> TokenHash {
        hash(&self.0)
    }
}

/// A token whose file is written and which no store knows yet. All that can be wrong with the id and the file is found
/// before a store is opened, which may make one. Dropped without [`enter`](Self::enter) it takes its file with it: a file
/// that looks like a token and is none would mislead.
pub struct Draft {
    record: Option<TokenRecord>,
    out: PathBuf,
}

impl Draft {
    /// Checks that `id` may be in `td` and writes a fresh token for it to the new file `out` (mode 0600).
    pub fn write(
        td: &TrustDomain,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
        out: &Path,
    ) -> Result<Self, TokenError> {
        authz::may_exist(td, id)?;
        let ttl = ttl.clamp(MIN_TTL, MAX_TTL);
        let token = Token::random().map_err(|_| TokenError::Random)?;
        // If it exists already, no token is made at all.
        keys::write_private(out, token.reveal().as_bytes())?;
        let record =
            TokenRecord { hash: token.hash(), id: id.clone(), created: now, expires: now + ttl, bound: None };
        Ok(Self { record: Some(record), out: out.to_owned() })
    }

    /// Makes it valid.
    pub fn enter(mut self, store: &dyn Store) -> Result<(), TokenError> {
        if let Some(record) = &self.record {
            store.add_token(record.clone())?;
        }
        self.record = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.record.is_some() {
            // The error that broke it off is the one to tell.
            let _ = std::fs::remove_file(&self.out);
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl TokenHash {
    /// The hash of what a caller presents as a token; `None` if it cannot be one.
    pub fn of(presented: &str) -> Option<Self> {
        let random = presented.strip_prefix(PREFIX)?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (random.len() == 2 * RANDOM && random.bytes().all(hex)).then(|| hash(presented))
    }

    /// The first bytes, for the log: enough to tell tokens apart, useless to find one.
    pub fn short(&self) -> String {
        crate::hex(&self.0[..4])
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

fn hash(text: &str) -> TokenHash {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    TokenHash(out)
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Nobody may ever have this id.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The file cannot be written, or exists.
    #[error(transparent)]
    File(#[from] KeyError),
    /// The system's random source failed.
    #[error("the system's random source failed")]
    Random,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_apart_and_stay_hidden() {
        let (a, b) = (Token::random().unwrap(), Token::random().unwrap());
        assert_ne!(a.reveal(), b.reveal());
        assert_eq!(TokenHash::of(a.reveal()), Some(a.hash()));
        assert_ne!(a.hash(), b.hash());
        assert!(!format!("{a:?} {:?}", a.hash()).contains(&a.reveal()[PREFIX.len()..PREFIX.len() + 12]));
    }

    #[test]
    fn only_tokens_are_hashed() {
        let good = Token::random().unwrap();
        let good = good.reveal();
        for bad in [
            "",
            PREFIX,
            &good[..good.len() - 1],
            &format!("{good}0"),
            &format!("{good}\n"),
            &good.to_uppercase(),
            &good[PREFIX.len()..],
            &"x".repeat(1 << 20),
        ] {
            assert_eq!(TokenHash::of(bad), None);
        }
    }
}
