//! What a replica tells the others of its sidecars: little, and often.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::wire;
use crate::bundle::Holder;
use crate::lineage::LineageId;
use crate::store::Live;
use postern_svid::SpiffeId;

/// Sidecars that are named.
const NAMED: usize = 20;
/// How often one is written.
pub(crate) const EVERY: Duration = Duration::from_secs(3);
/// One that is older tells of nothing any more.
pub const STALE: Duration = Duration::from_secs(15);

/// What a replica said last.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Its name.
    pub replica: String,
    /// Tells two processes of one name apart.
    pub instance: String,
    /// When it said so, by its own clock.
    pub at_ms: u64,
    /// Version of the trust bundle that it sends out.
    pub bundle_sequence: u64,
    /// SHA-256 over that bundle's roots.
    pub bundle_digest: String,
    /// How long its leaves live at most.
    pub leaf_seconds: u64,
    /// Sidecars with a valid certificate of its own issuing.
    pub sidecars: u64,
    /// Of those, how many have acknowledged which version of the bundle; 0: not heard of.
    pub acknowledged: BTreeMap<u64, u64>,
    /// Those furthest behind.
    pub behind: Vec<Behind>,
    /// Valid certificates by the key identifier of their issuing CA, hexadecimal.
    pub leaves: BTreeMap<String, u64>,
    /// The newest signed head of its ledger.
    pub ledger_head: Option<String>,
}

/// A sidecar that is behind.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Behind {
    /// Its identity.
    pub id: String,
    /// Its lineage.
    pub lineage: String,
    /// The version that it has acknowledged; 0: not heard of.
    pub bundle_sequence: u64,
}

/// What a summary is made of.
#[derive(Debug)]
pub struct Standing<'a> {
    /// Version of the trust bundle that is sent out.
    pub bundle_sequence: u64,
    /// SHA-256 over its roots.
    pub bundle_digest: String,
    /// How long leaves live at most.
    pub leaf: Duration,
    /// Sidecars that have reported.
    pub holders: &'a [Holder],
    /// Valid leaves.
    pub live: &'a [Live],
}

impl Summary {
    pub(crate) fn of(replica: &str, instance: &str, standing: &Standing<'_>, now: SystemTime) -> Self {
        let Standing { bundle_sequence, ref bundle_digest, leaf, holders, live } = *standing;
        let holders: BTreeMap<LineageId, &Holder> = holders.iter().map(|one| (one.lineage, one)).collect();
        let (mut acknowledged, mut leaves) = (BTreeMap::new(), BTreeMap::new());
        let mut behind = Vec::new();
        let mut sidecars = 0;
        for leaf in live.iter().filter(|leaf| !leaf.is_own) {
            *leaves.entry(crate::hex(&leaf.issuer)).or_default() += 1;
            if !leaf.is_newest {
                continue;
            }
            sidecars += 1;
            let sequence = holders.get(&leaf.lineage).map_or(0, |holder| holder.bundle_sequence);
            *acknowledged.entry(sequence).or_default() += 1;
            if sequence < bundle_sequence {
                behind.push(Behind {
                    id: leaf.id.as_str().to_owned(),
                    lineage: leaf.lineage.to_string(),
                    bundle_sequence: sequence,
                });
            }
        }
        behind.sort_by(|a, b| (a.bundle_sequence, &a.id).cmp(&(b.bundle_sequence, &b.id)));
        behind.truncate(NAMED);
        Self {
            replica: replica.to_owned(),
            instance: instance.to_owned(),
            at_ms: wire::ms(now),
            bundle_sequence,
            bundle_digest: bundle_digest.clone(),
            leaf_seconds: leaf.as_secs(),
            sidecars,
            acknowledged,
            behind,
            leaves,
            ledger_head: None,
        }
    }

    /// When it was said.
    pub fn at(&self) -> SystemTime {
        wire::at(self.at_ms)
    }

    /// Whether it still tells how things are.
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        // A clock that is ahead of ours makes it no fresher than it is.
        now.duration_since(self.at()).is_ok_and(|age| age <= STALE)
            || self.at().duration_since(now).is_ok_and(|ahead| ahead <= STALE)
    }

    /// Whether every certificate that it may have issued since has ended.
    pub fn is_over(&self, now: SystemTime) -> bool {
        let life = Duration::from_secs(self.leaf_seconds.min(crate::issue::MAX_TTL.as_secs()));
        now.duration_since(self.at()).is_ok_and(|age| age > STALE + life)
    }

    /// How many of its sidecars have not acknowledged version `sequence`.
    pub fn behind(&self, sequence: u64) -> u64 {
        self.acknowledged.range(..sequence).map(|(_, count)| *count).fold(0, u64::saturating_add)
    }

    /// Those of them that are named.
    pub fn laggards(&self, sequence: u64) -> impl Iterator<Item = (SpiffeId, Option<LineageId>)> + '_ {
        let behind = self.behind.iter().take(NAMED).filter(move |one| one.bundle_sequence < sequence);
        behind.filter_map(|one| Some((SpiffeId::parse(&one.id).ok()?, LineageId::parse(&one.lineage))))
    }

    /// How many valid certificates it knows under any of these issuing CAs.
    pub fn leaves_of<'k>(&self, key_ids: impl IntoIterator<Item = &'k [u8]>) -> u64 {
        let counts = key_ids.into_iter().filter_map(|key_id| self.leaves.get(&crate::hex(key_id)));
        counts.fold(0, |sum, count| sum.saturating_add(*count))
    }
}
