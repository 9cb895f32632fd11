//! Calls that the caller's own sidecar refuses, before anything leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;

use super::{Expectation, Finding, Scene, marker};
use crate::demo::documents::PAYMENTS;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::Reply;
use crate::demo::mesh::Mesh;
use crate::demo::plan::{NAMESPACE, Service};
use crate::demo_service::MARKER;

const LIMIT: Duration = Duration::from_secs(15);

pub(super) const UNKNOWN_SERVICE: Scene = Scene {
    expectations: &[Expectation {
        name: "unknown-service",
        claim: "A service that no document names is refused on the way out",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![unknown_service(mesh).await] }),
};

pub(super) const WRONG_ENDPOINT: Scene = Scene {
    expectations: &[Expectation {
        name: "wrong-endpoint-identity",
        claim: "An endpoint that proves another identity than expected gets no request",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![wrong_endpoint(mesh).await] }),
};

/// By a name nobody has, and by the address of a real server that would answer anybody.
async fn unknown_service(mesh: &Mesh) -> Finding {
    let named = unknown(mesh, &format!("http://warehouse.{NAMESPACE}/")).await?;
    let outsider = Outsider::open(mesh).await?;
    let addressed = unknown(mesh, &format!("http://{}/", outsider.address)).await?;
    let connections = outsider.connections.load(Ordering::Relaxed);
    ensure!(connections == 0, "a server outside the mesh got {connections} connections");
    Ok(format!("by name: {named}; by the address of a live server: {addressed}"))
}

/// `payments` points at the store's endpoint. Orders may call the store, so only the identity check can refuse this.
async fn wrong_endpoint(mesh: &Mesh) -> Finding {
    let caller = mesh.through(Service::Orders);
    let sound = caller
        .get(&format!("http://store.{NAMESPACE}/v1/stock/1"), &[])
        .await
        .explain("orders calls the store")?;
    ensure!(sound.status.is_success(), "orders cannot call the store: {}", sound.status);
    let marker = marker();
    let uri = format!("http://{PAYMENTS}.{NAMESPACE}/v1/stock/1");
    let reply = caller.get(&uri, &[(MARKER, &marker)]).await.explain(format!("GET {uri}"))?;
    let told = refusal(&uri, &reply, 502, "remote_identity")?;
    let seen = mesh.seen(Service::Store, &marker).await?;
    ensure!(seen == 0, "the store saw a request meant for {PAYMENTS}");
    Ok(told)
}

async fn unknown(mesh: &Mesh, uri: &str) -> Finding {
    let reply = mesh.through(Service::Storefront).get(uri, &[]).await.explain(format!("GET {uri}"))?;
    refusal(uri, &reply, 403, "unknown_service")
}

/// The caller's own sidecar tells its workload the reason, in a header and in words.
fn refusal(uri: &str, reply: &Reply, status: u16, reason: &str) -> Finding {
    let given = reply.header("postern-error");
    let expected = reply.status.as_u16() == status && given == Some(reason) && !reply.body.is_empty();
    ensure!(
        expected,
        "{uri} gives {} {given:?} {}, expected {status} {reason}",
        reply.status,
        reply.excerpt()
    );
    Ok(format!("{status} {reason}"))
}

/// A server outside the mesh that counts who comes.
struct Outsider {
    address: std::net::SocketAddr,
    connections: Arc<AtomicU64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Outsider {
    async fn open(mesh: &Mesh) -> Result<Self, Failure> {
        let listener = TcpListener::bind((mesh.plan.outsider(), 0))
            .await
            .explain("cannot open a server outside the mesh")?;
        let address = listener.local_addr().explain("a listener has an address")?;
        let connections = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { address, connections, accepting })
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
