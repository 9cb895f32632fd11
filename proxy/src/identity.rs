//! From what the agent publishes to what handshakes use.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use postern_agent::Identity;
use postern_svid::tls;
use tokio::sync::watch;

use crate::sidecar::Sidecar;
use crate::snapshot::MeshIdentity;
use crate::trust;

/// What the mesh listener speaks: our transport, and plain mutual TLS with HTTP/2 for foreign peers.
const ALPN: [&[u8]; 2] = [b"postern/1", b"h2"];

/// Publishes every identity of the agent until it ends.
pub async fn follow(sidecar: Arc<Sidecar>, mut identities: watch::Receiver<Option<Arc<Identity>>>) {
    loop {
        let identity = identities.borrow_and_update().clone();
        if let Some(identity) = identity {
            let before = sidecar.snapshots.load().identity.clone();
            publish(&sidecar, identity);
            hold_to_trust(&sidecar, before.as_deref()).await;
        }
        if identities.changed().await.is_err() {
            return;
        }
    }
}

/// Holds the bundles in force against what is open, if a root is gone that vouched for something before, or more is revoked.
async fn hold_to_trust(sidecar: &Arc<Sidecar>, before: Option<&MeshIdentity>) {
    let Some((before, now)) = before.zip(sidecar.snapshots.load().identity.clone()) else { return };
    if now.identity.bundles.keep_all_of(&before.identity.bundles) {
        return;
    }
    tracing::warn!("the trust bundle vouches for less than before: what rests on the rest is closed");
    // Each worker looks through its own pool.
    sidecar.registry.trust_changed.send_replace(());
    let walk = {
        let sidecar = Arc::clone(sidecar);
        move || trust::check_all(&sidecar, &now.identity.bundles)
    };
    match crate::runtime::blocking(walk).await {
        Ok(closed) => tracing::info!(closed, "inbound connections were held against the trust bundle"),
        Err(error) => tracing::error!(%error, "holding connections against the trust bundle broke off"),
    }
}

fn publish(sidecar: &Sidecar, identity: Arc<Identity>) {
    let server =
        match tls::server_config(&identity.svid, &identity.bundles, Arc::clone(&sidecar.clock), &ALPN) {
            Ok(server) => server,
            Err(error) => {
                // The agent has verified what it publishes; should this fail all the same, the old one stays.
                tracing::error!(%error, "a new identity cannot be used");
                return;
            }
        };
    let ends = identity.svid.not_after().duration_since(UNIX_EPOCH).unwrap_or_default();
    let metrics = &sidecar.metrics;
    metrics.svid_not_after.set(ends.as_secs_f64());
    let due = identity.renew_after.duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics.svid_renew_after.set(due.as_secs_f64());
    metrics.svid_renewals.inc();
    let trust_domain = identity.svid.id().trust_domain();
    if let Some(bundle) = identity.bundles.of_trust_domain(&trust_domain) {
        metrics.bundle_sequence.set(i64::try_from(bundle.sequence()).unwrap_or(i64::MAX));
    }
    tracing::info!(generation = identity.generation, "an identity is in force");
    sidecar
        .snapshots
        .publish(|snapshot| snapshot.identity = Some(Arc::new(MeshIdentity { identity, server })));
}
