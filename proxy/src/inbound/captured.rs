//! A redirected connection, inbound: somebody who has proven nothing wants one of the workload's ports.
//!
//! It is an unauthenticated peer whatever it speaks, TLS as well: only at the mesh listener does anybody prove who they
//! are. What the policy says of such peers is all that opens the way.

use std::net::SocketAddr;
use std::sync::Arc;

use postern_policy::Protocol as Declared;

use super::check_port;
use super::tunnel::{Found, asks_sni, carry, detect_and_serve};
use crate::connections::{Direction, Peer, Registered};
use crate::detect::ServerName;
use crate::error::{Error, Reason, Side};
use crate::http::upgrade::Io;
use crate::listener::HandshakePermit;
use crate::net::{self, TcpStream};
use crate::observe::log;
use crate::sidecar::Sidecar;
use crate::snapshot::Snapshot;
use crate::worker::Worker;

/// Serves one connection that was made to `to`.
pub(super) async fn serve(
    worker: Arc<Worker>,
    stream: TcpStream,
    address: SocketAddr,
    to: SocketAddr,
    permit: HandshakePermit,
) {
    let sidecar = Arc::clone(&worker.sidecar);
    let snapshot = sidecar.snapshots.held();
    if let Err(error) = is_for_workload(&sidecar, &snapshot, to) {
        return refuse(&sidecar, &stream, address, &error);
    }
    let peer =
        Peer { identity: None, address, local: Some(to.ip()), serial: None, not_after: None, proof: None };
    let registered = Registered::open(&sidecar, Direction::Inbound, peer);
    let connection = Arc::clone(registered.connection());
    let declared = sidecar.config.workload.ports.get(&to.port()).copied();
    let is_hopeless = snapshot.policy.as_ref().is_none_or(|policy| connection.is_denied_everything(policy));
    let looked_for = match declared {
        // Who speaks HTTP is told that it may not, and under which id that can be looked up.
        Some(protocol) if protocol.is_http() => Some(Found::Http),
        _ if is_hopeless => None,
        Some(Declared::Tls) if asks_sni(&snapshot, to.port()) => Some(Found::Tls),
        Some(_) => None,
        None => Some(Found::Anything),
    };
    let (io, limits) = (Io::tcp(stream), Arc::clone(&snapshot.limits));
    // What follows may last for days, and must not keep this policy for as long.
    drop(snapshot);
    match looked_for {
        Some(found) => detect_and_serve(worker, connection, to, io, None, limits, found).await,
        None => carry(&worker, &connection, to, io, None, None, &ServerName::Unread, &limits).await,
    }
    // Held to the end: whoever proves nothing has no more connections than it may have unfinished handshakes, or it could
    // take all that there are from those who would prove themselves.
    drop(permit);
}

/// Refuses what was not for one of the workload's ports at one of its own addresses: to forward it would make this sidecar
/// anybody's deputy, or lead it to itself.
fn is_for_workload(sidecar: &Sidecar, snapshot: &Snapshot, to: SocketAddr) -> Result<(), Error> {
    let capture = sidecar.config.capture.as_ref();
    if !capture.is_some_and(|capture| capture.addresses.contains(&to.ip())) {
        let detail = format!("{to} is none of the workload's own addresses (capture.addresses)");
        return Err(Error::new(Side::Peer, Reason::Misdirected, detail));
    }
    if sidecar.config.is_own_door(to) {
        return Err(Error::new(Side::Peer, Reason::Loop, format!("{to} is this sidecar's own door")));
    }
    check_port(sidecar, snapshot, to.port())
}

fn refuse(sidecar: &Sidecar, stream: &TcpStream, address: SocketAddr, error: &Error) {
    sidecar.metrics.failure(Direction::Inbound, error.reason);
    if log::FAILURES.admits(error.reason.label()) {
        tracing::info!(%error, peer = %address, "a redirected connection was refused");
    }
    net::reset_on_close(stream);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fuzzing, testing};

    const POLICY: &str = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules: [{name: anybody, from: [{unauthenticated: true, cidrs: [0.0.0.0/0]}], to: [{ports: [8080]}]}]
";

    /// Where a connection was made to is the kernel's word, and the rules of redirection may be anybody's mistake.
    #[test]
    fn what_is_not_for_the_workload_is_refused() {
        let capture = "capture: {mode: redirect, addresses: [10.0.0.7, \"fd00::7\"]}\n";
        let config = testing::CONFIG
            .replace("127.0.0.1:24143", "[::]:24143")
            .replace("address: 127.0.0.1\n", "address: 10.0.0.7\n");
        let sidecar = fuzzing::sidecar(&(config + capture), POLICY).expect("literals");
        let snapshot = sidecar.snapshots.held();
        let of = |to: &str| {
            let to = to.parse().expect("an address");
            is_for_workload(&sidecar, &snapshot, to).map_err(|error| error.reason)
        };
        assert_eq!((of("10.0.0.7:8080"), of("[fd00::7]:9000")), (Ok(()), Ok(())));
        for (to, reason) in [
            ("10.0.0.8:8080", Reason::Misdirected),
            ("127.0.0.1:8080", Reason::Misdirected),
            ("169.254.169.254:80", Reason::Misdirected),
            ("[fd00::8]:8080", Reason::Misdirected),
            ("10.0.0.7:24143", Reason::Loop),
            ("10.0.0.7:22", Reason::PortNotDeclared),
        ] {
            assert_eq!(of(to), Err(reason), "{to}");
        }
    }
}
