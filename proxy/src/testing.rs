//! A sidecar without processes, for tests of one step.

use std::sync::Arc;

use postern_policy::{Generation, SourceFile};
use postern_svid::{SpiffeId, SystemClock};

use crate::config::Config;
use crate::connections::{Direction, Peer, Registered};
use crate::documents;
use crate::sidecar::Sidecar;

pub(crate) const CONFIG: &str = r#"
identity: spiffe://demo.postern/ns/shop/sa/orders
stateDir: /nonexistent
controlPlane:
  address: 127.0.0.1:1
  spiffeId: spiffe://demo.postern/postern/control
  trustBundle: /nonexistent/bundle.pem
  joinToken: /nonexistent/token
workload:
  address: 127.0.0.1
  ports: [{port: 8080, protocol: http}, {port: 9000, protocol: tcp}]
  labels: {app: orders}
inbound: {address: "127.0.0.1:24143"}
outbound: {address: "127.0.0.1:24140"}
health: {address: "127.0.0.1:24191"}
admin: {socket: /nonexistent/admin.sock}
documents: /nonexistent
"#;

/// The sidecar of `shop/orders`, with `limits` as in `sidecar.yaml`.
pub(crate) fn sidecar(limits: &str) -> Arc<Sidecar> {
    let text = format!("{CONFIG}limits: {{{limits}}}\n").into_bytes();
    let config = Config::parse(&SourceFile { name: "sidecar.yaml".to_owned(), text }).unwrap();
    Arc::new(Sidecar::new(config, Arc::new(SystemClock), 1))
}

/// What `text` compiles to for this sidecar.
pub(crate) fn generation(sidecar: &Sidecar, number: u64, text: &str) -> Arc<Generation> {
    let file = SourceFile { name: "policy.yaml".to_owned(), text: text.as_bytes().to_vec() };
    Arc::new(postern_policy::load(&[file], &documents::scope(sidecar), number).unwrap())
}

/// A connection of `shop/web`.
pub(crate) fn connection(sidecar: &Arc<Sidecar>, direction: Direction) -> Registered {
    let peer = Peer {
        identity: Some(SpiffeId::parse("spiffe://demo.postern/ns/shop/sa/web").unwrap()),
        address: "127.0.0.2:40000".parse().unwrap(),
        local: None,
        serial: None,
        not_after: None,
        proof: None,
    };
    Registered::open(sidecar, direction, peer)
}
