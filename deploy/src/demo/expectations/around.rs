//! In namespaces: ways around a sidecar other than TCP to an address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::captured::{arrivals, is_stopped, reaches};
use super::{Expectation, Finding, Scene};
use crate::demo::credential::Credential;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::intruder::tunnel;
use crate::demo::mesh::Mesh;
use crate::demo::netns::{self, MARK, SIDECAR, Who};
use crate::demo::plan::{Apart, Ground, LOOPBACK_PORT as PORT, Place, SERVICE_PORT, Service};
use crate::demo::process::output_of;

const LIMIT: Duration = Duration::from_secs(25);
const STOREFRONT: Place = Place::Service(Service::Storefront);
const ORDERS: Place = Place::Service(Service::Orders);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(super) const UDP: Scene = Scene {
    expectations: &[Expectation { name: "udp", claim: "UDP is refused, out of a workload and into it" }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![udp(mesh, 9999).await] }),
};

pub(super) const QUIC: Scene = Scene {
    expectations: &[Expectation {
        name: "quic",
        claim: "UDP 443, where HTTP/3 would go, is refused both ways",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![udp(mesh, 443).await] }),
};

pub(super) const DNS: Scene = Scene {
    expectations: &[Expectation {
        name: "dns",
        claim: "Names can be looked up at the server that is named, and nowhere else",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![dns(mesh).await] }),
};

pub(super) const IMPOSTOR: Scene = Scene {
    expectations: &[Expectation {
        name: "sidecars-impostor",
        claim: "A workload cannot pass for its sidecar, which alone is not redirected",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![impostor(mesh).await] }),
};

pub(super) const NEIGHBOURS_LOOPBACK: Scene = Scene {
    expectations: &[Expectation {
        name: "neighbours-loopback",
        claim: "What listens on a workload's loopback is no neighbour's to call",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![neighbours_loopback(mesh).await] }),
};

async fn udp(mesh: &Mesh, port: u16) -> Finding {
    let before = (mesh.arrived(Place::Outsider).await, mesh.arrived(ORDERS).await);
    let mut told = [String::new(), String::new()];
    for address in mesh.plan.both(Place::Outsider) {
        told[0] = is_stopped(mesh, STOREFRONT, "udp", address, port).await?;
    }
    for address in mesh.plan.both(ORDERS) {
        told[1] = is_stopped(mesh, Place::Outsider, "udp", address, port).await?;
    }
    let after = (mesh.arrived(Place::Outsider).await, mesh.arrived(ORDERS).await);
    ensure!(before == after, "datagrams arrived: {before:?} before, {after:?} after");
    for address in mesh.plan.both(Place::Outsider) {
        reaches(mesh, Place::Control, "udp", address, port).await?;
    }
    reaches(mesh, ORDERS, "udp", LOOPBACK, port).await?;
    let [out, into] = told;
    Ok(format!("out: {out}; in: {into}; both families, nothing arrived; without rules it does"))
}

async fn dns(mesh: &Mesh) -> Finding {
    for address in mesh.plan.both(Place::Control) {
        reaches(mesh, STOREFRONT, "udp", address, 53).await?;
        reaches(mesh, STOREFRONT, "tcp", address, 53).await?;
    }
    let before = mesh.arrived(Place::Outsider).await;
    let mut told = String::new();
    for address in mesh.plan.both(Place::Outsider) {
        told = is_stopped(mesh, STOREFRONT, "udp", address, 53).await?;
        reaches(mesh, Place::Control, "udp", address, 53).await?;
    }
    arrivals(mesh, Place::Outsider, before + 2).await?;
    Ok(format!("UDP and TCP 53 pass to {}; to others: {told}", mesh.plan.both(Place::Control)[0]))
}

/// Whoever is the sidecar reaches the outsider; a workload tries to become that.
async fn impostor(mesh: &Mesh) -> Finding {
    let Ground::Namespaces(apart) = mesh.plan.ground else { return Err(Failure::new("nobody is apart")) };
    let outsider = SocketAddr::new(mesh.plan.both(Place::Outsider)[0], SERVICE_PORT).to_string();
    let mark = format!("--mark={MARK}");
    let marked: &[&str] = if apart == Apart::Mark { &[&mark] } else { &[] };
    let probe = |who: Who, before: &[&str], more: &[&str]| {
        let mut words = netns::within(&mesh.files, &mesh.plan, STOREFRONT, who);
        let program = words.pop().unwrap_or_default();
        let before = before.iter().map(|word| (*word).to_owned());
        words.extend(before.chain([program]));
        words.extend(["demo-probe", "tcp"].iter().chain(more).map(|word| (*word).to_owned()));
        words.push(outsider.clone());
        words
    };
    let before = mesh.arrived(Place::Outsider).await;
    let told = match apart {
        Apart::User => {
            let user = SIDECAR.to_string();
            let turned = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"];
            let became = output_of(&probe(Who::Workload, &turned, &[])).await;
            let refusal = became.err().explain(format!("a workload became user {SIDECAR}"))?.to_string();
            ensure!(refusal.contains("not permitted"), "not refused by the kernel: {refusal}");
            format!("user {SIDECAR}: not permitted")
        }
        Apart::Mark => {
            let said = output_of(&probe(Who::Workload, &[], &[&mark])).await?;
            let refused = said.contains("no mark") && said.contains("EPERM");
            ensure!(refused, "a workload's connection with the mark: {said}");
            format!("mark {MARK:#x}: {}", said.trim())
        }
    };
    arrivals(mesh, Place::Outsider, before).await?;
    let said = output_of(&probe(Who::Sidecar, &[], marked)).await?;
    ensure!(said.contains("greeting"), "not even the sidecar gets out: {said}");
    arrivals(mesh, Place::Outsider, before + 1).await?;
    Ok(format!("{told}; what the sidecar itself sends arrives"))
}

async fn neighbours_loopback(mesh: &Mesh) -> Finding {
    let before = mesh.arrived(ORDERS).await;
    reaches(mesh, ORDERS, "tcp", LOOPBACK, PORT).await?;
    arrivals(mesh, ORDERS, before + 1).await?;
    let own = is_stopped(mesh, STOREFRONT, "tcp", LOOPBACK, PORT).await?;
    // With the storefront's key in hand policy stands in nobody's way, at orders' own address.
    let stolen = Credential::stolen_from(&mesh.files.svid(Service::Storefront))?;
    let door = mesh.plan.mesh(Service::Orders);
    let opened = tunnel(door, &stolen, SocketAddr::new(door.ip(), PORT)).await?;
    ensure!(opened.is_success(), "a tunnel to orders' own address: {opened}");
    let refused = tunnel(door, &stolen, SocketAddr::new(LOOPBACK, PORT)).await?;
    ensure!(refused.is_client_error(), "a tunnel to orders' loopback: {refused}");
    for address in mesh.plan.both(ORDERS) {
        is_stopped(mesh, Place::Outsider, "tcp", address, PORT).await?;
        is_stopped(mesh, STOREFRONT, "tcp", address, PORT).await?;
    }
    arrivals(mesh, ORDERS, before + 1).await?;
    Ok(format!(
        "at 127.0.0.1 the neighbour finds its own: {own}; a tunnel to orders' 127.0.0.1 {}, to its address {}; nothing arrived",
        refused.as_u16(),
        opened.as_u16()
    ))
}
