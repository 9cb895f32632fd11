//! Who speaks first, at a port of which nobody says what is spoken there.
//!
//! A client that speaks first has its bytes there as soon as its tunnel is open. One that keeps silent may be waiting for its
//! server (SMTP, MariaDB), and would be kept waiting for all of `detect`. So after a moment the workload is listened to as well,
//! if the policy lets this peer have a stream of opaque bytes: without that it does not see so much as a connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout};

use crate::connections::{Connection, Facts, Operation};
use crate::detect::{self, Prefix, Protocol, Rewound};
use crate::http::upgrade::Io;
use crate::limits::Limits;
use crate::net::TcpStream;
use crate::worker::Worker;

/// How long a client has to speak before its workload may. Only on the way is time lost for it, and there it is one mesh
/// connection's, which is open.
const MOMENT: Duration = Duration::from_millis(50);

/// What was heard.
pub(super) struct Heard {
    /// From the client.
    pub(super) prefix: Prefix,
    /// The connection to the workload, if it was listened to, with what it has said.
    pub(super) workload: Option<Rewound<TcpStream>>,
}

/// Reads until it is sure what is spoken, or until time is up.
pub(super) async fn listen(
    worker: &Worker,
    connection: &Arc<Connection>,
    to: SocketAddr,
    io: &mut Io,
    limits: &Limits,
) -> io::Result<Heard> {
    let started = Instant::now();
    let mut bytes = BytesMut::with_capacity(512);
    let silent = match timeout(MOMENT.min(limits.detect), io.read_buf(&mut bytes)).await {
        Ok(read) => {
            read?;
            false
        }
        Err(_) => true,
    };
    let mut workload = None;
    if silent && may_be_opaque(worker, connection, to) {
        // Should it fail, that is found and told where the bytes are carried.
        workload = worker.workload.connect(to, limits).await.ok();
    }
    let mut said = BytesMut::new();
    let prefix = loop {
        let read = detect::read_on(io, &mut bytes, started, limits.detect, limits.head);
        let Some(stream) = &mut workload else { break read.await? };
        crate::runtime::select! {
            read = read => break read?,
            spoke = stream.read_buf(&mut said) => {
                let has_ended = spoke? == 0;
                match detect::is_http2_server(&said) {
                    // It says so to whoever connects; what its client says is still to be read.
                    Some(true) => workload = None,
                    None if !has_ended => {}
                    Some(false) | None => {
                        break Prefix { protocol: Protocol::Opaque, bytes: bytes.split().freeze(), expired: false };
                    }
                }
            }
        }
    };
    Ok(Heard { prefix, workload: workload.map(|stream| Rewound::new(said.freeze(), stream)) })
}

/// Whether the policy in force lets this peer have opaque bytes at the port. It is asked again when they flow.
fn may_be_opaque(worker: &Worker, connection: &Connection, to: SocketAddr) -> bool {
    let sidecar = &worker.sidecar;
    let snapshot = sidecar.snapshots.load();
    let Some(generation) = &snapshot.policy else { return false };
    let facts = Facts { port: to.port(), operation: Operation::Tcp, destination: None, asked: None };
    connection.judge(generation, &facts, sidecar.clock.wall()).is_allowed()
}
