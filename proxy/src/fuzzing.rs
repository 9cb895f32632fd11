//! What the fuzz targets need of the inside, and nobody else: a sidecar without processes, and a workload at the end of a pipe.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use postern_policy::SourceFile;
use postern_svid::SystemClock;

use crate::config::Config;
use crate::connections::Connection;
use crate::documents;
use crate::error::Error;
use crate::http::framing::Framing;
use crate::sidecar::Sidecar;
use crate::tcp::Duplex;
use crate::worker::Worker;
use crate::workload::Caller;

/// A sidecar with this configuration, and these documents in force. None if either is wrong.
pub fn sidecar(config: &str, documents: &str) -> Option<Arc<Sidecar>> {
    let file = |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.as_bytes().to_vec() };
    let config = Config::parse(&file("sidecar.yaml", config)).ok()?;
    let sidecar = Arc::new(Sidecar::new(config, Arc::new(SystemClock), 1));
    let scope = documents::scope(&sidecar);
    let generation = postern_policy::load(&[file("documents.yaml", documents)], &scope, 1).ok()?;
    sidecar.snapshots.publish(|snapshot| snapshot.policy = Some(Arc::new(generation)));
    Some(sidecar)
}

/// Lets what comes on `connection` for the workload at `to` go through `io`, where HTTP/1 is spoken.
pub async fn lend_h1<I>(worker: &Worker, to: SocketAddr, connection: &Connection, io: I) -> Result<(), Error>
where
    I: Duplex + Send + 'static,
{
    let limits = worker.sidecar.snapshots.limits();
    worker.workload.keep_h1(to, Caller::of(connection), io, &limits).await
}

/// The same with HTTP/2.
pub async fn lend_h2<I>(worker: &Worker, to: SocketAddr, connection: &Connection, io: I) -> Result<(), Error>
where
    I: Duplex + Send + 'static,
{
    let limits = worker.sidecar.snapshots.limits();
    worker.workload.keep_h2(to, Caller::of(connection), io, &limits).await
}

/// The byte at which a connection's bytes, cut so, are found to be no HTTP/1 that everybody reads alike, and whether it is in a
/// body; and whether what comes last is not followed any more.
pub fn framing<'a>(
    head_bytes: usize,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> (Option<(usize, bool)>, bool) {
    let mut framing = Framing::new(head_bytes);
    let mut at = 0;
    for part in parts {
        if let Err(fault) = framing.feed(part) {
            return (Some((at + fault.at, fault.in_body)), false);
        }
        at += part.len();
    }
    (None, framing.is_unwatched())
}

/// Where a tunnel to `authority` leads, of a peer that reached the sidecar at `local`.
pub fn tunnel(sidecar: &Sidecar, local: Option<IpAddr>, authority: &str) -> Result<SocketAddr, Error> {
    crate::inbound::destination(&sidecar.config, local, authority)
}
