//! In namespaces: a sidecar that is gone, rules that are gone, rules that come and go.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::captured::{PATIENCE, arrivals, is_stopped};
use super::{Expectation, Finding, Scene, marker};
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::Client;
use crate::demo::mesh::{Mesh, Role, within};
use crate::demo::netns;
use crate::demo::plan::{Place, SERVICE_PORT, Service};
use crate::demo_service::MARKER;

const LIMIT: Duration = Duration::from_secs(40);
/// What is gone is known within this.
const NOTICED: Duration = Duration::from_secs(5);
/// The sidecar forgets what escaped after ten seconds.
const MENDED: Duration = Duration::from_secs(20);
const ORDERS: Place = Place::Service(Service::Orders);

pub(super) const KILLED_SIDECAR: Scene = Scene {
    expectations: &[Expectation {
        name: "killed-sidecar",
        claim: "With its sidecar killed a workload neither calls nor is called",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![killed_sidecar(mesh).await] }),
};

pub(super) const FLUSHED: Scene = Scene {
    expectations: &[Expectation {
        name: "flushed-redirection",
        claim: "With the redirecting rules gone nothing passes in clear, and the sidecar says so within 5 s",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![flushed(mesh).await] }),
};

pub(super) const TWICE: Scene = Scene {
    expectations: &[Expectation {
        name: "rules-twice",
        claim: "Rules are written and taken away again, twice, and nothing stays",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![twice(mesh).await] }),
};

async fn killed_sidecar(mesh: &Mesh) -> Finding {
    mesh.crash(Role::Sidecar(Service::Orders)).await?;
    let told = leaks_nothing(mesh).await;
    mesh.start(Role::Sidecar(Service::Orders)).await?;
    mesh.ready(Role::Sidecar(Service::Orders)).await?;
    let told = told?;
    let back = works_again(mesh).await?;
    Ok(format!("{told}; started again it serves after {} ms", back.as_millis()))
}

async fn flushed(mesh: &Mesh) -> Finding {
    for chain in ["nat_in", "nat_out"] {
        let words = ["nft", "flush", "chain", "inet", "postern", chain];
        netns::privileged(&mesh.files, Service::Orders, &words).await?;
    }
    let begun = Instant::now();
    let health = Client::tcp(mesh.plan.health(Service::Orders));
    let noticed = within(NOTICED, "the sidecar says that redirection is gone", async || {
        let reply = health.get("/ready", &[]).await.explain("GET /ready")?;
        let told = String::from_utf8_lossy(&reply.body).into_owned();
        let both = ["capture_redirect_out", "capture_redirect_in"].iter().all(|code| told.contains(code));
        ensure!(reply.status.as_u16() == 503 && both, "/ready says {}: {told}", reply.status);
        Ok(())
    })
    .await;
    let noticed = noticed.map(|_| begun.elapsed());
    let told = leaks_nothing(mesh).await;
    netns::rules(&mesh.files, &mesh.plan, Service::Orders, "apply").await?;
    let (noticed, told) = (noticed?, told?);
    is_ready(mesh, Service::Orders).await?;
    works_again(mesh).await?;
    Ok(format!("{told}; not ready after {:.1} s; with the rules back it serves", noticed.as_secs_f64()))
}

async fn twice(mesh: &Mesh) -> Finding {
    let service = Service::Storefront;
    let rules = async |verb: &str| netns::rules(&mesh.files, &mesh.plan, service, verb).await;
    let mut lines = 0;
    for round in ["first", "second"] {
        rules("apply").await?;
        rules("check").await?;
        let table = netns::privileged(&mesh.files, service, &["nft", "list", "ruleset"]).await?;
        lines = table.lines().count();
        let tables = table.lines().filter(|line| line.starts_with("table ")).count();
        ensure!(tables == 1, "{tables} tables after the {round} time");
        rules("remove").await?;
        let left = netns::privileged(&mesh.files, service, &["nft", "list", "ruleset"]).await?;
        ensure!(left.trim().is_empty(), "after the {round} time there remains: {left}");
        ensure!(rules("check").await.is_err(), "rules that are not there are called right");
    }
    // It is the rules that hold the workload.
    let before = mesh.arrived(Place::Outsider).await;
    let outsider = SocketAddr::new(mesh.plan.both(Place::Outsider)[0], SERVICE_PORT);
    let said = mesh.tries(Place::Service(service), "tcp", outsider, PATIENCE).await?;
    rules("apply").await?;
    ensure!(said.contains("greeting"), "without rules the workload does not reach the outsider: {said}");
    arrivals(mesh, Place::Outsider, before + 1).await?;
    is_ready(mesh, service).await?;
    works_again(mesh).await?;
    Ok(format!(
        "{lines} lines of rules and then none, both times; without them a call escapes; back, it serves"
    ))
}

/// Whatever orders calls, and whoever calls orders: nothing arrives.
async fn leaks_nothing(mesh: &Mesh) -> Finding {
    let outsider = mesh.arrived(Place::Outsider).await;
    let marker = marker();
    let fields = [(MARKER, marker.as_str())];
    let (mut into, mut out) = (String::new(), String::new());
    for address in mesh.plan.both(ORDERS) {
        let uri = format!("http://{}/v1/orders/42", SocketAddr::new(address, SERVICE_PORT));
        let called = mesh.caller(Place::Outsider).get(&uri, &fields).await;
        into = called.map(|reply| reply.status).err().explain(format!("GET {uri} is answered"))?.to_string();
    }
    for address in mesh.plan.both(Place::Outsider) {
        out = is_stopped(mesh, ORDERS, "tcp", address, SERVICE_PORT).await?;
    }
    let seen = mesh.seen(Service::Orders, &marker).await?;
    ensure!(seen == 0, "orders saw {seen} calls of the outsider's");
    arrivals(mesh, Place::Outsider, outsider).await?;
    Ok(format!("in: {into}; out: {out}"))
}

async fn is_ready(mesh: &Mesh, service: Service) -> Result<(), Failure> {
    let health = Client::tcp(mesh.plan.health(service));
    within(MENDED, &format!("the sidecar of {service} is ready again"), async || {
        let reply = health.get("/ready", &[]).await.explain("GET /ready")?;
        ensure!(reply.status.is_success(), "/ready says {}: {}", reply.status, reply.excerpt());
        Ok(())
    })
    .await
    .map(drop)
}

async fn works_again(mesh: &Mesh) -> Result<Duration, Failure> {
    let (_, took) = within(MENDED, "an allowed call", async || {
        let reply =
            mesh.direct(Service::Storefront).get("/v1/checkout/again", &[]).await.explain("checkout")?;
        ensure!(reply.status.is_success(), "{}: {}", reply.status, reply.excerpt());
        Ok(())
    })
    .await?;
    Ok(took)
}
