//! What a sidecar keeps towards its workload, and how it puts what it was given into the workload's own protocol.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use postern_tests::{Mesh, Origin, Plan, wait};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
    to: [{ports: [8080, 8081]}]
"#;

fn plan() -> Plan {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").serves(8081, 8081, "http2").limit("workloadIdle", "1s");
    plan.document("policy.yaml", POLICY);
    plan
}

/// How long the origin takes to answer: longer than opening connections does.
const ANSWER: Duration = Duration::from_secs(1);

/// An HTTP/2 workload that allows two streams on a connection.
#[derive(Default)]
struct Narrow {
    connections: AtomicUsize,
    open: AtomicUsize,
}

impl Narrow {
    async fn start(address: (IpAddr, u16)) -> Arc<Self> {
        let listener = TcpListener::bind(SocketAddr::from(address)).await.expect("the address is free");
        let origin = Arc::new(Self::default());
        let shared = Arc::clone(&origin);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    shared.open.fetch_add(1, Ordering::SeqCst);
                    // How it ends is the sidecar's business.
                    let _ = Self::serve(stream).await;
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        origin
    }

    async fn serve(stream: TcpStream) -> Result<(), h2::Error> {
        let mut builder = h2::server::Builder::new();
        let mut connection = builder.max_concurrent_streams(2).handshake::<_, Bytes>(stream).await?;
        while let Some(request) = connection.accept().await {
            let (_, mut respond) = request?;
            tokio::spawn(async move {
                tokio::time::sleep(ANSWER).await;
                let _ = respond.send_response(Response::new(()), true);
            });
        }
        Ok(())
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// The statuses of requests made at the same time, all through the same worker: on one HTTP/2 connection.
async fn at_once(mesh: &Mesh, requests: Vec<Request<()>>) -> Vec<StatusCode> {
    let stream = TcpStream::connect(mesh.sidecar("web").outbound()).await.expect("the sidecar speaks HTTP/2");
    let (client, connection) = h2::client::handshake(stream).await.expect("the sidecar speaks HTTP/2");
    let driver = tokio::spawn(connection);
    let mut waiting = Vec::new();
    for request in requests {
        let mut client = client.clone().ready().await.expect("the sidecar speaks HTTP/2");
        waiting.push(client.send_request(request, true).expect("a test's own request is well formed").0);
    }
    let mut statuses = Vec::new();
    for response in waiting {
        statuses.push(response.await.expect("every call is answered").status());
    }
    driver.abort();
    statuses
}

fn get(uri: &str) -> Request<()> {
    Request::get(uri).body(()).expect("a test's own request is well formed")
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads start")
}

#[test]
fn a_workload_that_allows_few_streams_gets_more_connections_until_they_are_idle() {
    let runtime = runtime();
    let plan = plan();
    let origin = runtime.block_on(Narrow::start((plan.address("orders"), 8081)));
    let mesh = plan.start();
    let started = Instant::now();
    let statuses = runtime.block_on(at_once(&mesh, vec![get("http://orders.shop:8081/"); 5]));
    assert_eq!(statuses, [StatusCode::OK; 5]);
    assert!(started.elapsed() < ANSWER * 2, "side by side, not in turn: {:?}", started.elapsed());
    assert_eq!(origin.connections.load(Ordering::SeqCst), 3, "two streams each");
    wait::until("idle connections are closed", wait::PATIENCE, || origin.open() == 0);
    let statuses = runtime.block_on(at_once(&mesh, vec![get("http://orders.shop:8081/")]));
    assert_eq!(statuses, [StatusCode::OK], "and opened again");
}

#[test]
fn cookie_crumbs_reach_an_http1_workload_as_one_line() {
    let plan = plan();
    let origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let request = Request::get("http://orders.shop/").header("cookie", "a=1").header("cookie", "b=2");
    let statuses = runtime()
        .block_on(at_once(&mesh, vec![request.body(()).expect("a test's own request is well formed")]));
    assert_eq!(statuses, [StatusCode::OK]);
    assert_eq!(origin.last().header("cookie"), ["a=1; b=2"]);
}
