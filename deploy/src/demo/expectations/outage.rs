//! The control plane is killed, stays dead while every sidecar wants to renew, and comes back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use postern_svid::{Clock, SystemClock};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::load::Load;
use super::{Expectation, Finding, Scene};
use crate::demo::admin::Identity;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::files::SVID_TTL_S;
use crate::demo::mesh::{Mesh, Role, within};
use crate::demo::plan::Service;

const TTL: Duration = Duration::from_secs(SVID_TTL_S);
/// From the last due renewal to the first expiry there must be time for a failed try, the restart of a sidecar, the
/// control plane's start, and the sidecars' next try (at most a twentieth of life later, plus a fifth).
const SLACK: Duration = Duration::from_millis(4500);
/// A restarted sidecar comes back without the control plane within this time.
const COMES_BACK: Duration = Duration::from_secs(5);
/// Failed renewals that every single sidecar must have behind it before the control plane comes back.
const MISSED_EACH: u64 = 2;
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) const SCENE: Scene = Scene {
    expectations: &[
        Expectation {
            name: "control-plane-outage",
            claim: "With the control plane dead through due renewals nothing fails, and renewals resume after it",
        },
        Expectation {
            name: "sidecar-restart",
            claim: "A sidecar killed meanwhile comes back from its state directory, without the control plane",
        },
    ],
    limit: Duration::from_secs(SVID_TTL_S * 4),
    play: |mesh| {
        Box::pin(async move {
            let mut restart = Err(Failure::new("not tried: the control plane's outage went wrong before"));
            let outage = outage(mesh, &mut restart).await;
            vec![outage, restart]
        })
    },
};

async fn outage(mesh: &Mesh, restart: &mut Finding) -> Finding {
    right_moment(mesh).await?;
    let load = Load::start(mesh);
    mesh.crash(Role::Control).await?;
    let killed = Instant::now();
    let missed = renewals_missed(mesh).await;
    let during = load.finish().await;
    let dead = killed.elapsed();
    // Not under load: a sidecar that is killed takes its requests with it.
    *restart = sidecar_restart(mesh).await;

    let before = identities(mesh).await?;
    let load = Load::start(mesh);
    mesh.start(Role::Control).await?;
    let resumed = resumed(mesh, &before).await;
    let after = load.finish().await;
    let (missed, during, resumed, after) = (missed?, during?, resumed?, after?);
    Ok(format!("dead for {:.1} s, {missed}; {during}; back: {resumed}; {after}", dead.as_secs_f64()))
}

/// Waits for a moment at which every due renewal falls into an outage that ends before any certificate does.
async fn right_moment(mesh: &Mesh) -> Result<(), Failure> {
    within(TTL, "a moment to kill the control plane", async || {
        let now = identities(mesh).await?;
        let last_due = now.values().map(due).collect::<Result<Vec<_>, _>>()?.into_iter().max();
        let first_end = now.values().map(|identity| identity.not_after).min();
        let (last_due, first_end) = (last_due.explain("no sidecars")?, first_end.explain("no sidecars")?);
        let slack = first_end.duration_since(last_due).unwrap_or_default();
        ensure!(slack >= SLACK, "{slack:?} between the last due renewal and the first expiry");
        Ok(())
    })
    .await?;
    Ok(())
}

/// Waits until every sidecar's renewal was due, and two tries of each failed since then.
async fn renewals_missed(mesh: &Mesh) -> Finding {
    let address = mesh.plan.control();
    ensure!(TcpStream::connect(address).await.is_err(), "something still listens on {address}");
    let at_death = identities(mesh).await?;
    let mut missed = BTreeMap::new();
    let begun = Instant::now();
    while missed.len() < Service::ALL.len() {
        for (service, then) in &at_death {
            let now = mesh.admin(*service).identity().await?;
            ensure!(
                now.serial == then.serial,
                "{service}'s certificate was renewed with nobody there to do it"
            );
            let failed = now.failures - then.failures;
            if SystemClock.wall() >= due(then)? && failed >= MISSED_EACH {
                ensure!(!now.connected, "{service}'s sidecar believes that the control plane is there");
                missed.insert(*service, failed);
            }
        }
        let seen: Vec<&str> = missed.keys().map(|service| service.name()).collect();
        ensure!(begun.elapsed() < TTL, "after {TTL:?} only {seen:?} have tried to renew {MISSED_EACH} times");
        sleep(LOOK_EVERY).await;
    }
    let failed: u64 = missed.values().sum();
    Ok(format!("renewals due in all {} sidecars, {failed} tries failed", missed.len()))
}

/// Kills the store's sidecar with SIGKILL and starts it again, nobody there to give it a new certificate.
async fn sidecar_restart(mesh: &Mesh) -> Finding {
    let service = Service::Store;
    let before = mesh.admin(service).identity().await?;
    mesh.crash(Role::Sidecar(service)).await?;
    let begun = Instant::now();
    mesh.start(Role::Sidecar(service)).await?;
    mesh.ready(Role::Sidecar(service)).await?;
    let ready = begun.elapsed();
    ensure!(ready < COMES_BACK, "ready only after {ready:?}");
    let (_, served) = within(COMES_BACK, "a call through the restarted sidecar", async || {
        let reply =
            mesh.direct(Service::Storefront).get("/v1/checkout/restart", &[]).await.explain("checkout")?;
        ensure!(reply.status.is_success(), "{}: {}", reply.status, reply.excerpt());
        Ok(())
    })
    .await?;
    let after = mesh.admin(service).identity().await?;
    ensure!(after.serial == before.serial, "it came back with another certificate: {}", after.serial);
    let address = mesh.plan.control();
    ensure!(TcpStream::connect(address).await.is_err(), "the control plane is not dead: {address} is open");
    Ok(format!(
        "ready after {} ms with the same certificate, serving {} ms later",
        ready.as_millis(),
        served.as_millis()
    ))
}

/// Waits until every sidecar holds another certificate than in `before`.
async fn resumed(mesh: &Mesh, before: &BTreeMap<Service, Identity>) -> Finding {
    mesh.ready(Role::Control).await?;
    let (_, took) = within(TTL, "renewals after the control plane is back", async || {
        for (service, old) in before {
            let now = mesh.admin(*service).identity().await?;
            ensure!(now.serial != old.serial, "{service} still holds {}", old.serial);
            ensure!(
                now.connected && now.last_error.is_none(),
                "{service} is not connected: {:?}",
                now.last_error
            );
        }
        Ok(())
    })
    .await?;
    Ok(format!("all renewed within {:.1} s", took.as_secs_f64()))
}

async fn identities(mesh: &Mesh) -> Result<BTreeMap<Service, Identity>, Failure> {
    let mut all = BTreeMap::new();
    for service in Service::ALL {
        all.insert(service, mesh.admin(service).identity().await?);
    }
    Ok(all)
}

fn due(identity: &Identity) -> Result<SystemTime, Failure> {
    identity.next_renewal.explain(format!("{} does not say when it renews", identity.id))
}
