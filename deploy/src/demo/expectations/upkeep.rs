//! The mesh comes up, and at the end all of it still runs.

use std::time::{Duration, Instant};

use super::{Expectation, Finding, Scene};
use crate::demo::failure::ensure;
use crate::demo::mesh::{Mesh, Role};
use crate::demo::plan::Service;

pub(super) const COMES_UP: Scene = Scene {
    expectations: &[Expectation {
        name: "mesh-comes-up",
        claim: "The control plane and three sidecars are ready, each sidecar with its own certificate",
    }],
    limit: Duration::from_secs(60),
    play: |mesh| Box::pin(async move { vec![comes_up(mesh).await] }),
};

pub(super) const ALL_WELL: Scene = Scene {
    expectations: &[Expectation {
        name: "nothing-crashed",
        claim: "No process of the mesh ended by itself or panicked",
    }],
    limit: Duration::from_secs(5),
    play: |mesh| Box::pin(async move { vec![mesh.all_well().await] }),
};

async fn comes_up(mesh: &Mesh) -> Finding {
    let begun = Instant::now();
    mesh.come_up().await?;
    let took = begun.elapsed();
    let mut serials = Vec::new();
    for service in Service::ALL {
        let identity = mesh.admin(service).identity().await?;
        ensure!(identity.id == service.spiffe_id(), "{service}'s sidecar is {}", identity.id);
        ensure!(!identity.serial.is_empty(), "{service}'s sidecar is ready without a certificate");
        ensure!(!serials.contains(&identity.serial), "two sidecars hold the certificate {}", identity.serial);
        serials.push(identity.serial);
    }
    Ok(format!("in {} ms, {} processes", took.as_millis(), Role::all(mesh.plan.ground).count()))
}
