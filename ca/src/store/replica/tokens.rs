//! Join tokens among replicas: each is spent once, at one of them, by compare-and-swap. While the shared store is away none can be
//! spent.

use std::time::SystemTime;

use postern_svid::SpiffeId;
use serde::{Deserialize, Serialize};

use super::Replicated;
use super::wire::{self, Bytes};
use crate::lineage::LineageId;
use crate::store::shared::{Change, Entry, MAX_CHANGES, SharedError, Swap};
use crate::store::{Issued, Store as _, StoreError};
use crate::token::{Bound, TokenHash, TokenRecord};

const TOKENS: &str = "token/";

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireToken {
    hash: Bytes,
    id: String,
    created_ms: u64,
    expires_ms: u64,
    bound: Option<WireBound>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct WireBound {
    key: Bytes,
    lineage: Bytes,
}

impl From<&TokenRecord> for WireToken {
    fn from(token: &TokenRecord) -> Self {
        let bound = token.bound.map(|bound| WireBound {
            key: Bytes(bound.key.to_vec()),
            lineage: Bytes(bound.lineage.0.to_vec()),
        });
        Self {
            hash: Bytes(token.hash.0.to_vec()),
            id: token.id.as_str().to_owned(),
            created_ms: wire::ms(token.created),
            expires_ms: wire::ms(token.expires),
            bound,
        }
    }
}

impl TryFrom<WireToken> for TokenRecord {
    type Error = &'static str;

    fn try_from(wire: WireToken) -> Result<Self, Self::Error> {
        let bound = wire.bound.map(|bound| {
            let key = bound.key.0.try_into().map_err(|_| "a token is bound to no key")?;
            let lineage = bound.lineage.0.try_into().map_err(|_| "a token began no lineage")?;
            Ok::<_, Self::Error>(Bound { key, lineage: LineageId(lineage) })
        });
        Ok(Self {
            hash: TokenHash(wire.hash.0.try_into().map_err(|_| "a token's hash is none")?),
            id: SpiffeId::parse(&wire.id).map_err(|_| "a token stands for no SPIFFE id")?,
            created: wire::at(wire.created_ms),
            expires: wire::at(wire.expires_ms),
            bound: bound.transpose()?,
        })
    }
}

fn key(hash: TokenHash) -> String {
    format!("{TOKENS}{}", crate::hex(&hash.0))
}

fn read(entry: &Entry) -> Result<TokenRecord, StoreError> {
    let damaged = |detail: String| SharedError::Damaged { key: entry.key.clone(), detail };
    let wire: WireToken = serde_json::from_slice(&entry.value).map_err(|error| damaged(error.to_string()))?;
    let token = TokenRecord::try_from(wire).map_err(|what| damaged(what.to_owned()))?;
    if key(token.hash) == entry.key {
        Ok(token)
    } else {
        Err(damaged("it is another token's".to_owned()).into())
    }
}

fn value(token: &TokenRecord) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&WireToken::from(token)).map_err(|error| StoreError::File(error.to_string()))
}

impl Replicated {
    pub(super) fn share_token(&self, token: &TokenRecord) -> Result<(), StoreError> {
        match self.shared.swap(&[Change::put(key(token.hash), 0, value(token)?)], None)? {
            Swap::Done(_) => Ok(()),
            Swap::Conflict | Swap::Fenced => Err(StoreError::Conflict("this token is there already")),
        }
    }

    pub(super) fn find_token(&self, hash: TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        // Spent here: its answer may have got lost, and needs nobody else.
        if let Some(spent) = self.local.token(hash)?.filter(|token| token.bound.is_some()) {
            return Ok(Some(spent));
        }
        // What is not spent is known to the shared store alone.
        self.shared.read(&key(hash))?.find(&key(hash)).map(read).transpose()
    }

    /// Binds the token to the certificate's key, unless that is done.
    pub(super) fn spend_token(&self, hash: TokenHash, issued: &Issued) -> Result<(), StoreError> {
        const SPENT: StoreError = StoreError::Conflict("the token was spent meanwhile");
        let listing = self.shared.read(&key(hash))?;
        let entry = listing.find(&key(hash)).ok_or(SPENT)?;
        let mut token = read(entry)?;
        let bound = Bound { key: issued.key, lineage: issued.lineage };
        match token.bound {
            // By a replica whose answer did not arrive.
            Some(before) if before == bound => {}
            Some(_) => return Err(SPENT),
            None if token.expires <= issued.issued => return Err(SPENT),
            None => {
                token.bound = Some(bound);
                let change = Change::put(entry.key.clone(), entry.version, value(&token)?);
                match self.shared.swap(&[change], None)? {
                    Swap::Done(_) => {}
                    Swap::Conflict | Swap::Fenced => return Err(SPENT),
                }
            }
        }
        self.local.mirror_token(token)
    }

    pub(super) fn prune_tokens(&self, now: SystemTime) -> Result<(), StoreError> {
        let over: Vec<_> = self
            .shared
            .read(TOKENS)?
            .entries
            .into_iter()
            // One that cannot be read can be spent by nobody either.
            .filter(|entry| read(entry).is_ok_and(|token| token.expires < now))
            .map(|entry| Change::delete(entry.key, entry.version))
            .collect();
        for some in over.chunks(MAX_CHANGES) {
            self.shared.swap(some, None)?;
        }
        Ok(())
    }
}
