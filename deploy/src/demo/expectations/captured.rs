//! In namespaces: calls of workloads that know of no proxy, and callers that have no sidecar.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hyper::Method;

use super::{Expectation, Finding, Scene, marker};
use crate::demo::admin::Decision;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::request;
use crate::demo::mesh::{Mesh, within};
use crate::demo::plan::{Place, Plan, SERVICE_PORT, Service};
use crate::demo_service::MARKER;

const LIMIT: Duration = Duration::from_secs(20);
const RECORDED: Duration = Duration::from_secs(1);
/// For what must get through, on a machine that has everything else to do.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// For what must not: it would take a millisecond.
const ENOUGH: Duration = Duration::from_millis(500);

pub(super) const CALLS: Scene = Scene {
    expectations: &[Expectation {
        name: "captured-calls",
        claim: "A call to a plain address goes through both sidecars, on IPv4 and IPv6",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![calls(mesh).await] }),
};

pub(super) const REFUSED: Scene = Scene {
    expectations: &[Expectation {
        name: "captured-refusal",
        claim: "Policy refuses a call to a plain address, on IPv4 and IPv6",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![refused(mesh).await] }),
};

pub(super) const STRANGER: Scene = Scene {
    expectations: &[Expectation {
        name: "direct-from-outside",
        claim: "A machine without a sidecar reaches no workload, on IPv4 and IPv6",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![stranger(mesh).await] }),
};

pub(super) const TO_STRANGER: Scene = Scene {
    expectations: &[Expectation {
        name: "direct-to-outside",
        claim: "A workload reaches no machine that is no service, on IPv4 and IPv6",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![to_stranger(mesh).await] }),
};

/// Orders' own addresses, and those of its service.
fn orders(mesh: &Mesh) -> [SocketAddr; 4] {
    let [v4, v6] = mesh.plan.both(Place::Service(Service::Orders));
    let [service4, service6] = Plan::called(Service::Orders.name());
    [(v4, SERVICE_PORT), (v6, SERVICE_PORT), (service4, 80), (service6, 80)].map(SocketAddr::from)
}

async fn calls(mesh: &Mesh) -> Finding {
    let caller = mesh.through(Service::Storefront);
    let begun = Instant::now();
    for address in orders(mesh) {
        let marker = marker();
        let path = format!("/v1/orders/{marker}");
        let uri = format!("http://{address}{path}");
        let reply = caller.get(&uri, &[(MARKER, &marker)]).await.explain(format!("GET {uri}"))?;
        ensure!(reply.status.is_success(), "GET {uri} gives {}: {}", reply.status, reply.excerpt());
        let seen = mesh.seen(Service::Orders, &marker).await?;
        ensure!(seen == 1, "orders saw GET {uri} {seen} times");
        let by_name = |decision: &Decision| {
            decision.direction == "inbound"
                && decision.path == path
                && decision.effect == "allow"
                && decision.peer == Service::Storefront.spiffe_id()
        };
        let admin = mesh.admin(Service::Orders);
        let recorded = async || admin.decision(&format!("about {path}"), by_name).await;
        within(RECORDED, "orders judges it as the storefront's", recorded).await?;
    }
    let each = begun.elapsed().as_millis() / 4;
    Ok(format!(
        "200 at {}, each judged by identity, {each} ms with the start of the process that calls",
        orders(mesh).map(|address| address.to_string()).join(", ")
    ))
}

async fn refused(mesh: &Mesh) -> Finding {
    let caller = mesh.through(Service::Storefront);
    let mut told = Vec::new();
    for address in orders(mesh) {
        let marker = marker();
        let uri = format!("http://{address}/v1/orders/42");
        let allowed = caller.get(&uri, &[]).await.explain(format!("GET {uri}"))?;
        ensure!(allowed.status.is_success(), "even GET {uri} gives {}", allowed.status);
        let call = request(Method::DELETE, &uri, &[(MARKER, &marker)]).explain("cannot build the request")?;
        let reply = caller.call(call).await.explain(format!("DELETE {uri}"))?;
        ensure!(reply.status.as_u16() == 403, "DELETE {uri} gives {}", reply.status);
        let id = reply.header("postern-decision").explain("the refusal names no decision")?;
        ensure!(mesh.seen(Service::Orders, &marker).await? == 0, "orders saw DELETE {uri}");
        told.push(id.to_owned());
    }
    Ok(format!(
        "GET 200, DELETE 403 at all four addresses, the last decision {}",
        told.pop().unwrap_or_default()
    ))
}

async fn stranger(mesh: &Mesh) -> Finding {
    let outsider = mesh.caller(Place::Outsider);
    let mut decision = String::new();
    for address in &orders(mesh)[..2] {
        // What is open to everybody shows that the way there is.
        let live = format!(
            "http://{}/live",
            SocketAddr::new(address.ip(), mesh.plan.health(Service::Orders).port())
        );
        let reply = outsider.get(&live, &[]).await.explain(format!("GET {live}"))?;
        ensure!(reply.status.is_success(), "GET {live} gives {}", reply.status);
        let marker = marker();
        let uri = format!("http://{address}/v1/orders/42");
        let reply = outsider.get(&uri, &[(MARKER, &marker)]).await.explain(format!("GET {uri}"))?;
        ensure!(reply.status.as_u16() == 403, "GET {uri} gives {}: {}", reply.status, reply.excerpt());
        decision = reply.header("postern-decision").explain("the refusal names no decision")?.to_owned();
        ensure!(mesh.seen(Service::Orders, &marker).await? == 0, "orders saw GET {uri}");
    }
    let admin = mesh.admin(Service::Orders);
    let recorded = async || admin.decision(&decision, |one| one.id == decision).await;
    let (recorded, _) = within(RECORDED, "the decision's record", recorded).await?;
    let is_nobody = recorded.effect == "deny" && !recorded.peer.contains("spiffe://");
    ensure!(is_nobody, "judged as somebody's: {recorded:?}");
    Ok(format!("403 on both families, {}, decision {decision}", recorded.reason))
}

async fn to_stranger(mesh: &Mesh) -> Finding {
    let before = mesh.arrived(Place::Outsider).await;
    let caller = mesh.through(Service::Storefront);
    for address in mesh.plan.both(Place::Outsider) {
        let uri = format!("http://{}/", SocketAddr::new(address, SERVICE_PORT));
        let reply = caller.get(&uri, &[]).await.explain(format!("GET {uri}"))?;
        let reason = reply.header("postern-error").unwrap_or_default();
        ensure!(
            reply.status.as_u16() == 403 && reason == "unknown_service",
            "GET {uri} gives {} {reason}",
            reply.status
        );
    }
    let arrived = mesh.arrived(Place::Outsider).await - before;
    ensure!(arrived == 0, "{arrived} connections arrived");
    // From a namespace without rules they do arrive.
    for address in mesh.plan.both(Place::Outsider) {
        reaches(mesh, Place::Control, "tcp", address, SERVICE_PORT).await?;
    }
    within(RECORDED, "connections without rules", async || arrivals(mesh, Place::Outsider, before + 2).await)
        .await?;
    Ok("403 unknown_service on both families, nothing arrived; without rules both connections do".to_owned())
}

/// Something that must get through, or a refusal of the same means nothing.
pub(super) async fn reaches(
    mesh: &Mesh,
    from: Place,
    verb: &str,
    to: IpAddr,
    port: u16,
) -> Result<(), Failure> {
    let to = SocketAddr::new(to, port);
    let said = mesh.tries(from, verb, to, PATIENCE).await?;
    ensure!(!said.starts_with("failed"), "{verb} from {} to {to} does not get through: {said}", from.name());
    Ok(())
}

/// Something that must not, and what the one who tries is told.
pub(super) async fn is_stopped(mesh: &Mesh, from: Place, verb: &str, to: IpAddr, port: u16) -> Finding {
    let to = SocketAddr::new(to, port);
    let said = mesh.tries(from, verb, to, ENOUGH).await?;
    let why = said.strip_prefix("failed: ");
    Ok(why.explain(format!("{verb} from {} gets through to {to}: {said}", from.name()))?.to_owned())
}

/// So much has arrived, and no more.
pub(super) async fn arrivals(mesh: &Mesh, place: Place, expected: usize) -> Result<(), Failure> {
    let arrived = mesh.arrived(place).await;
    ensure!(arrived == expected, "{arrived} arrived at {}, expected {expected}", place.name());
    Ok(())
}
