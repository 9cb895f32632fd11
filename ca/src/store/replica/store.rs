//! The store as the CA and its control plane call it: what is shared is edited as the leader, everything else is this replica's
//! own.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use postern_svid::{Revoked, TrustDomain};

use super::{Replicated, Summary};
use crate::lineage::{Lineage, LineageId};
use crate::store::{
    Authority, AuthorityChange, Counts, Federated, FederationStore, Grant, Issued, JwtChange, JwtIssued,
    JwtKey, JwtStore, Live, Reason, Revocation, Sqlite, Store, StoreError, Trust,
};
use crate::token::{TokenHash, TokenRecord};

impl Store for Replicated {
    fn authorities(&self) -> Result<Vec<Authority>, StoreError> {
        self.local.authorities()
    }

    fn change_authorities(&self, change: AuthorityChange) -> Result<(), StoreError> {
        if self.is_local(&change)? {
            return self.local.change_authorities(change);
        }
        self.edit(Some(change.clone()), |document| document.change(&change, &self.replica))
    }

    fn bundle_sequence(&self) -> Result<u64, StoreError> {
        self.local.bundle_sequence()
    }

    fn trust(&self) -> Result<Trust, StoreError> {
        self.local.trust()
    }

    fn revoke(&self, entry: Revocation) -> Result<u64, StoreError> {
        self.edit(None, |document| document.revoke(entry.clone()))
    }

    fn allow_again(
        &self,
        entry: Revoked,
        _reason: Reason,
        _at: SystemTime,
    ) -> Result<Option<u64>, StoreError> {
        self.edit(None, |document| Ok(document.allow_again(&entry)))
    }

    fn end_revocations(&self, now: SystemTime) -> Result<Option<u64>, StoreError> {
        if !self.lead.is_held() {
            return Ok(None);
        }
        self.edit(None, |document| Ok(document.end_revocations(now)))
    }

    fn taint(&self, label: String, reason: Reason, at: SystemTime) -> Result<bool, StoreError> {
        self.edit(None, |document| Ok(document.taint(&label, reason.clone(), at)))
    }

    fn live(&self, now: SystemTime) -> Result<Vec<Live>, StoreError> {
        self.local.live(now)
    }

    fn raise_bundle_sequence(&self, to: u64) -> Result<(), StoreError> {
        self.edit(None, |document| {
            if document.sequence >= to {
                return Err(StoreError::Conflict("the trust bundle's version never goes down"));
            }
            document.sequence = to;
            Ok(())
        })
    }

    fn add_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        self.share_token(&token)?;
        self.local.add_token(token)
    }

    fn token(&self, hash: TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        self.find_token(hash)
    }

    fn certificate(&self, serial: &[u8]) -> Result<Option<(Issued, Lineage)>, StoreError> {
        self.local.certificate(serial)
    }

    fn lineage(&self, id: LineageId) -> Result<Option<Lineage>, StoreError> {
        self.local.lineage(id)
    }

    fn key_owner(&self, key: [u8; 32]) -> Result<Option<Issued>, StoreError> {
        self.local.key_owner(key)
    }

    fn record(&self, issued: Issued, grant: Grant) -> Result<(), StoreError> {
        if let Grant::Token(hash) = &grant {
            self.spend_token(*hash, &issued)?;
        }
        self.local.record(issued, grant)
    }

    fn mark_forked(&self, lineage: LineageId, at: SystemTime) -> Result<(), StoreError> {
        self.local.mark_forked(lineage, at)
    }

    fn is_settled(&self) -> Result<(), StoreError> {
        self.local.is_settled()
    }

    fn valid_certificates(
        &self,
        now: SystemTime,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<Issued>, StoreError> {
        self.local.valid_certificates(now, after, limit)
    }

    fn last_issued(&self) -> Result<Option<SystemTime>, StoreError> {
        self.local.last_issued()
    }

    fn counts(&self, now: SystemTime) -> Result<Counts, StoreError> {
        self.local.counts(now)
    }

    fn prune(&self, before: SystemTime) -> Result<u64, StoreError> {
        let gone = self.local.prune(before)?;
        if let Err(error) = self.prune_shared(before) {
            tracing::debug!(%error, "what is shared was not cleared of what is over; the next time");
        }
        Ok(gone)
    }

    fn probe(&self, now: SystemTime) -> Result<(), StoreError> {
        self.local.probe(now)
    }

    fn replica(&self) -> Option<&str> {
        Some(&self.replica)
    }

    fn leads(&self) -> bool {
        self.lead.is_held()
    }

    fn others(&self) -> Vec<Summary> {
        self.heard()
    }
}

impl JwtStore for Replicated {
    fn jwt_keys(&self) -> Result<Vec<JwtKey>, StoreError> {
        self.local.jwt_keys()
    }

    fn change_jwt_keys(&self, change: JwtChange) -> Result<(), StoreError> {
        self.edit(None, |document| document.change_jwt_keys(&change))
    }

    fn record_jwt(&self, issued: JwtIssued) -> Result<(), StoreError> {
        self.local.record_jwt(issued)
    }
}

/// Each replica follows the endpoints of other trust domains itself: their bundles are no secret and have one source.
impl FederationStore for Replicated {
    fn federated(&self) -> Result<Vec<Federated>, StoreError> {
        self.local.federated()
    }

    fn put_federated(&self, row: Federated) -> Result<(), StoreError> {
        self.local.put_federated(row)
    }

    fn forget_federated(&self, trust_domain: &TrustDomain, at: SystemTime) -> Result<(), StoreError> {
        self.local.forget_federated(trust_domain, at)
    }
}

/// The store of a control plane: its own database, with others beside it or not.
pub trait ControlStore: JwtStore + FederationStore {
    /// This control plane's own database.
    fn local(&self) -> &Sqlite;
    /// The others, if there may be some.
    fn replicas(&self) -> Option<&Replicated>;
    /// A number that changes when what is stored was changed by another: a process, or a replica. Costs next to nothing.
    fn changes(&self) -> Result<i64, StoreError>;
}

impl ControlStore for Sqlite {
    fn local(&self) -> &Sqlite {
        self
    }

    fn replicas(&self) -> Option<&Replicated> {
        None
    }

    fn changes(&self) -> Result<i64, StoreError> {
        self.data_version()
    }
}

impl ControlStore for Replicated {
    fn local(&self) -> &Sqlite {
        &self.local
    }

    fn replicas(&self) -> Option<&Replicated> {
        Some(self)
    }

    fn changes(&self) -> Result<i64, StoreError> {
        // Both only rise, and a change of the sum is all that is asked for.
        Ok(self.local.data_version()?.wrapping_add(self.taken.load(Ordering::Relaxed)))
    }
}
