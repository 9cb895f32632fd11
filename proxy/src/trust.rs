//! Trust is held against what is open, too: a connection rests on the roots that vouched for its peer when it was made,
//! and a root that is taken out of the trust bundle takes its connections with it.
//!
//! As with streams and policy, a connection is registered first and checked second, while a changed bundle is published
//! first and held against the registry second: whichever comes first, no connection escapes both. Only trust is asked
//! about. A certificate that has merely ended is the business of `inbound::lifetime`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use postern_svid::{Bundles, Role, VerifyError, verify_again};
use rustls_pki_types::CertificateDer;

use crate::connections::{Connection, Direction};
use crate::sidecar::Sidecar;

/// What a peer has proven itself with, to be verified again. Thousands of peers share their issuing CAs, so only the leaf
/// (some 500 bytes) is its own.
#[derive(Clone, Debug)]
pub struct Proof {
    leaf: CertificateDer<'static>,
    issuers: Arc<[CertificateDer<'static>]>,
    role: Role,
    /// When it was verified.
    at: SystemTime,
    /// The own identity's generation whose bundles vouched for it.
    generation: u64,
}

impl Proof {
    /// Of the chain that a handshake has verified just now under the own identity's `generation`.
    pub fn new(
        sidecar: &Sidecar,
        chain: Option<&[CertificateDer<'static>]>,
        role: Role,
        generation: u64,
    ) -> Result<Self, VerifyError> {
        let (leaf, issuers) = chain.and_then(<[_]>::split_first).ok_or(VerifyError::NoCertificate)?;
        Ok(Self {
            leaf: leaf.clone(),
            issuers: sidecar.registry.issuers.share(issuers),
            role,
            at: sidecar.clock.wall(),
            generation,
        })
    }

    /// The own identity's generation whose bundles vouched for it.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether `bundles` vouches for it.
    pub fn verify(&self, bundles: &Bundles, now: SystemTime) -> Result<(), VerifyError> {
        let chain: Vec<CertificateDer<'_>> = [&self.leaf]
            .into_iter()
            .chain(self.issuers.iter())
            .map(|one| CertificateDer::from(&**one))
            .collect();
        verify_again(&chain, bundles, self.role, self.at, now).map(drop)
    }
}

/// The issuing CAs of all proofs, each set once.
#[derive(Debug, Default)]
pub struct Issuers(Mutex<HashSet<Arc<[CertificateDer<'static>]>>>);

impl Issuers {
    fn share(&self, issuers: &[CertificateDer<'static>]) -> Arc<[CertificateDer<'static>]> {
        let mut known = self.0.lock();
        if let Some(known) = known.get(issuers) {
            return Arc::clone(known);
        }
        // Each set that comes new clears away those that no proof holds any more: there are few, unless peers try to be
        // many, and then no more than connections.
        known.retain(|one| Arc::strong_count(one) > 1);
        let fresh: Arc<[_]> = issuers.into();
        known.insert(Arc::clone(&fresh));
        fresh
    }
}

/// Holds the bundles in force against one connection, if they are others than vouched for it. To be called once it is
/// registered: a bundle that changed between its handshake and now has not found it.
pub fn check(sidecar: &Sidecar, connection: &Connection) {
    let snapshot = sidecar.snapshots.load();
    let Some((proof, own)) = connection.peer.proof.as_ref().zip(snapshot.identity.as_ref()) else { return };
    if proof.generation != own.identity.generation
        && let Err(error) = proof.verify(&own.identity.bundles, sidecar.clock.wall())
    {
        close(sidecar, connection, &error);
    }
}

/// Holds `bundles` against every registered connection and closes at once those whose peer it no longer vouches for.
/// Returns how many those are that nobody had closed. Costs two signatures for each certificate in use: not for a thread that forwards.
pub fn check_all(sidecar: &Sidecar, bundles: &Bundles) -> usize {
    let now = sidecar.clock.wall();
    let connections = sidecar.registry.connections();
    // A peer comes with one certificate, however many connections it has.
    let mut verdicts: HashMap<(&[u8], *const CertificateDer<'static>), Result<(), VerifyError>> =
        HashMap::new();
    let mut closed = 0;
    for connection in &connections {
        let Some(proof) = &connection.peer.proof else { continue };
        let verdict = verdicts
            .entry((&proof.leaf, proof.issuers.as_ptr()))
            .or_insert_with(|| proof.verify(bundles, now));
        if let Err(error) = verdict {
            closed += usize::from(close(sidecar, connection, error));
        }
    }
    closed
}

/// Closes a connection, unless it is being closed: one that registers between the new bundle and the walk is found by
/// both. Returns whether it was open.
fn close(sidecar: &Sidecar, connection: &Connection, error: &VerifyError) -> bool {
    if !connection.distrust() {
        return false;
    }
    sidecar.metrics.distrusted[Direction::Inbound as usize].inc();
    tracing::warn!(
        peer = ?connection.peer.identity,
        address = %connection.peer.address,
        %error,
        "the trust bundle in force no longer vouches for a peer: its connection is closed"
    );
    true
}

#[cfg(test)]
mod tests;
