//! Every certificate is renewed twice while customers keep coming.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::load::Load;
use super::{Expectation, Finding, Scene};
use crate::demo::failure::{Failure, ensure};
use crate::demo::files::SVID_TTL_S;
use crate::demo::intruder::served_serial;
use crate::demo::mesh::Mesh;
use crate::demo::plan::Service;

/// The first certificate and two renewals.
const GENERATIONS: usize = 3;
/// Renewals come at about half of life, so two of them take about one life; this leaves half a life of slack.
const DEADLINE: Duration = Duration::from_millis(SVID_TTL_S * 1500);
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) const SCENE: Scene = Scene {
    expectations: &[Expectation {
        name: "renewal-under-load",
        claim: "Certificates are renewed under load without one failed request",
    }],
    limit: Duration::from_secs(SVID_TTL_S * 2),
    play: |mesh| Box::pin(async move { vec![renewal(mesh).await] }),
};

/// Where a certificate can be seen. A renewal counts only when it is seen in all these places.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Place {
    /// What the sidecar says it holds.
    Held(Service),
    /// What its mesh listener presents to whoever connects.
    Presented(Service),
    /// What the sidecar behind it has accepted from it.
    Proven { caller: Service, to: Service },
}

async fn renewal(mesh: &Mesh) -> Finding {
    let load = Load::start(mesh);
    let watched = watch(mesh).await;
    let load = load.finish().await?;
    let renewals = watched?;
    Ok(format!("{load}; {renewals}"))
}

async fn watch(mesh: &Mesh) -> Finding {
    let places = places();
    let mut serials: BTreeMap<Place, BTreeSet<String>> = BTreeMap::new();
    let begun = Instant::now();
    loop {
        for place in places {
            serials.entry(place).or_default().extend(look(mesh, place).await?);
        }
        let lagging = serials.iter().find(|(_, seen)| seen.len() < GENERATIONS);
        let Some((place, seen)) = lagging else { break };
        ensure!(
            begun.elapsed() < DEADLINE,
            "{place:?}: {} different certificates in {DEADLINE:?}, expected {GENERATIONS}",
            seen.len()
        );
        sleep(LOOK_EVERY).await;
    }
    // What a listener presents must be what its sidecar holds, and what a peer accepted too.
    for (place, seen) in &serials {
        if let Place::Presented(service) | Place::Proven { caller: service, .. } = place {
            let held = &serials[&Place::Held(*service)];
            let strange = seen.iter().find(|serial| !held.contains(*serial));
            ensure!(
                strange.is_none(),
                "{place:?}: certificate {strange:?} was never held by {service}'s sidecar"
            );
        }
    }
    let renewals = serials.values().map(|seen| seen.len() - 1).min().unwrap_or(0);
    Ok(format!("{renewals} renewals of each sidecar, served to and by its peers"))
}

fn places() -> [Place; 8] {
    let [storefront, orders, store] = Service::ALL;
    [
        Place::Held(storefront),
        Place::Held(orders),
        Place::Held(store),
        Place::Presented(storefront),
        Place::Presented(orders),
        Place::Presented(store),
        Place::Proven { caller: storefront, to: orders },
        Place::Proven { caller: orders, to: store },
    ]
}

async fn look(mesh: &Mesh, place: Place) -> Result<Vec<String>, Failure> {
    match place {
        Place::Held(service) => Ok(vec![mesh.admin(service).identity().await?.serial]),
        Place::Presented(service) => Ok(vec![served_serial(mesh.plan.mesh(service)).await?]),
        Place::Proven { caller, to } => mesh.admin(to).peer_serials(&caller.spiffe_id()).await,
    }
}
