//! Calls between services as they happen all day, and the ones that policy refuses.

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};

use super::{Expectation, Finding, Scene, marker};
use crate::demo::admin::Decision;
use crate::demo::credential::Credential;
use crate::demo::documents::DELETION_GUARD;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::request;
use crate::demo::intruder::{Outcome, tls_request};
use crate::demo::mesh::{Mesh, within};
use crate::demo::plan::{NAMESPACE, Service};
use crate::demo_service::MARKER;

const LIMIT: Duration = Duration::from_secs(15);
/// A decision is recorded beside the answer, not before it.
const RECORDED: Duration = Duration::from_secs(1);

pub(super) const ALLOWED: Scene = Scene {
    expectations: &[Expectation {
        name: "allowed-two-hops",
        claim: "An allowed call goes from the storefront through orders to the store",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![allowed(mesh).await] }),
};

pub(super) const DENIED_METHOD: Scene = Scene {
    expectations: &[Expectation {
        name: "denied-method",
        claim: "A method that a Deny rule names is refused, whatever other rules allow",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![denied_method(mesh).await] }),
};

pub(super) const DEFAULT_DENY: Scene = Scene {
    expectations: &[Expectation { name: "default-deny", claim: "What no rule allows is refused" }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![default_deny(mesh).await] }),
};

pub(super) const OTHER_IDENTITY: Scene = Scene {
    expectations: &[Expectation {
        name: "other-identity",
        claim: "Another service's genuine certificate is refused by policy",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![other_identity(mesh).await] }),
};

/// The customer comes in at the storefront; both hops behind it must have been judged, and counted once.
async fn allowed(mesh: &Mesh) -> Finding {
    let marker = marker();
    let begun = Instant::now();
    let path = format!("/v1/checkout/{marker}");
    let reply =
        mesh.direct(Service::Storefront).get(&path, &[(MARKER, &marker)]).await.explain("the call failed")?;
    let took = begun.elapsed();
    ensure!(reply.status == StatusCode::OK, "{}: {}", reply.status, reply.excerpt());
    let body = reply.json();
    let who = ["/service", "/order/service", "/order/stock/service"]
        .map(|at| body.pointer(at).and_then(|v| v.as_str()));
    ensure!(who == Service::ALL.map(|service| Some(service.name())), "not answered by all three: {body}");
    ensure!(
        body.pointer("/order/stock/item").is_some_and(|item| *item == *marker),
        "an answer to another call: {body}"
    );
    for service in Service::ALL {
        let seen = mesh.seen(service, &marker).await?;
        ensure!(seen == 1, "{service} saw the call {seen} times");
    }
    for (caller, callee, path) in [
        (Service::Storefront, Service::Orders, format!("/v1/orders/{marker}")),
        (Service::Orders, Service::Store, format!("/v1/stock/{marker}")),
    ] {
        let judged = |decision: &Decision| decision.direction == "inbound" && decision.path == path;
        let admin = mesh.admin(callee);
        let recorded = async || admin.decision(&format!("about {path}"), judged).await;
        let (decision, _) = within(RECORDED, "the decision's record", recorded).await?;
        let by_name = decision.effect == "allow" && decision.peer == caller.spiffe_id();
        ensure!(by_name, "{callee} did not judge the hop as the storefront's or orders' call: {decision:?}");
    }
    Ok(format!("200 from all three in {:.1} ms, both hops judged by identity", took.as_secs_f64() * 1e3))
}

/// The same rule set allows the path and even the method by name; only the Deny rule stands against it.
async fn denied_method(mesh: &Mesh) -> Finding {
    let get = allowed_control(mesh, Service::Storefront, "orders", "/v1/orders/42").await?;
    let refusal =
        refused(mesh, Method::DELETE, Service::Storefront, Service::Orders, "/v1/orders/42").await?;
    let rule = DELETION_GUARD.iter().all(|part| refusal.decision.rule.contains(part));
    ensure!(rule, "refused by `{}`, expected {}", refusal.decision.rule, DELETION_GUARD.join("/"));
    Ok(format!("GET {get}, DELETE 403, rule {}, decision {}", refusal.decision.rule, refusal.id))
}

async fn default_deny(mesh: &Mesh) -> Finding {
    let get = allowed_control(mesh, Service::Storefront, "orders", "/v1/orders/42").await?;
    let put = refused(mesh, Method::PUT, Service::Storefront, Service::Orders, "/v1/orders/42").await?;
    let path =
        refused(mesh, Method::GET, Service::Storefront, Service::Orders, "/v1/orders/42/notes").await?;
    for refusal in [&put, &path] {
        let rule = &refusal.decision.rule;
        ensure!(!rule.contains("nobody-deletes"), "refused by the rule {rule}, not by default");
    }
    Ok(format!(
        "GET {get}, PUT 403, a path nobody named 403, reason {}, decision {}",
        put.decision.reason, put.id
    ))
}

/// The storefront's certificate is as good as orders'; the store's policy names orders alone. Both through the sidecars,
/// and by a thief who has the key in hand and needs no sidecar.
async fn other_identity(mesh: &Mesh) -> Finding {
    let path = "/v1/stock/42";
    let orders = allowed_control(mesh, Service::Orders, "store", path).await?;
    let refusal = refused(mesh, Method::GET, Service::Storefront, Service::Store, path).await?;
    for (thief_of, expected, arrivals) in [(Service::Orders, 200, 1), (Service::Storefront, 403, 0)] {
        let marker = marker();
        let stolen = Credential::stolen_from(&mesh.files.svid(thief_of))?;
        let fields = [(MARKER, marker.as_str())];
        let outcome = tls_request(mesh.plan.mesh(Service::Store), Some(&stolen), path, &fields).await?;
        let as_expected = matches!(&outcome, Outcome::Answered(reply) if reply.status.as_u16() == expected);
        ensure!(as_expected, "with {thief_of}'s key in hand: {outcome:?}, expected {expected}");
        let seen = mesh.seen(Service::Store, &marker).await?;
        ensure!(seen == arrivals, "with {thief_of}'s key in hand the store saw the request {seen} times");
    }
    Ok(format!(
        "orders gets {orders}, the storefront 403, even with its key in hand, decision {}",
        refusal.id
    ))
}

struct Refusal {
    id: String,
    decision: Decision,
}

/// Makes sure that a call which differs in one thing alone is allowed, so that the refusal is about that thing.
async fn allowed_control(mesh: &Mesh, caller: Service, callee: &str, path: &str) -> Result<u16, Failure> {
    let uri = format!("http://{callee}.{NAMESPACE}{path}");
    let reply = mesh.through(caller).get(&uri, &[]).await.explain(format!("GET {uri} as {caller}"))?;
    ensure!(
        reply.status == StatusCode::OK,
        "GET {uri} as {caller} gives {}: {}",
        reply.status,
        reply.excerpt()
    );
    Ok(reply.status.as_u16())
}

/// A call that policy must refuse: 403 to the caller without the why, the why on the admin socket, nothing at the callee.
async fn refused(
    mesh: &Mesh,
    method: Method,
    caller: Service,
    callee: Service,
    path: &str,
) -> Result<Refusal, Failure> {
    let marker = marker();
    let uri = format!("http://{callee}.{NAMESPACE}{path}");
    let call = request(method.clone(), &uri, &[(MARKER, &marker)]).explain("cannot build the request")?;
    let reply = mesh.through(caller).call(call).await.explain(format!("{method} {uri} as {caller}"))?;
    ensure!(reply.status == StatusCode::FORBIDDEN, "{method} {uri} as {caller} gives {}", reply.status);
    let id = reply.header("postern-decision").explain("the refusal names no decision")?.to_owned();
    let admin = mesh.admin(callee);
    let recorded = async || admin.decision(&id, |decision| decision.id == id).await;
    let (decision, _) = within(RECORDED, "the decision's record", recorded).await?;
    let whole = decision.effect == "deny"
        && decision.direction == "inbound"
        && decision.peer == caller.spiffe_id()
        && decision.method == method.as_str()
        && decision.path == path;
    ensure!(whole, "decision {id} is about something else: {decision:?}");
    ensure!(!decision.reason.is_empty(), "decision {id} gives no reason");
    let told = String::from_utf8_lossy(&reply.body);
    ensure!(
        !told.contains("nobody-deletes") && !told.contains("spiffe://"),
        "the caller is told why: {told}"
    );
    let seen = mesh.seen(callee, &marker).await?;
    ensure!(seen == 0, "{callee} saw the refused request");
    Ok(Refusal { id, decision })
}
