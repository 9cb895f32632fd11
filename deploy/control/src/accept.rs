//! Letting connections in: accept, handshake, hand over. Nothing that a stranger does here stops the loop.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_ca::limits::Buckets;
use postern_svid::{Channel, Clock, spread, tls};
use rustls::ServerConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::connection::{Connection, Peer};
use crate::health::Health;
use crate::limits::{Full, Limits, Quota};
use crate::net::{Listener, Socket, Source};
use crate::task::Tasks;

/// A handshake takes one round trip and a millisecond; who needs longer is on a bad line or does it on purpose.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes per address: a second, at once. A host full of sidecars starts at once.
const PER_ADDRESS: (u32, u32) = (200, 400);
/// Addresses counted one by one.
const COUNTED: usize = 16_384;

/// What the loop needs.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) tls: Arc<ArcSwap<ServerConfig>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) health: Arc<Health>,
    pub(crate) limits: Limits,
    /// Places of those who have shown no certificate.
    pub(crate) strangers: Arc<Quota>,
    pub(crate) tasks: Tasks,
}

/// Accepts until everything stops. Finished connections go to `ready`.
pub(crate) async fn accept(
    listener: Listener,
    door: Door,
    ready: mpsc::Sender<Result<Connection, Infallible>>,
) {
    let stopped = door.tasks.stopped();
    tokio::pin!(stopped);
    // All taken: accepting waits, for these are workloads, or strangers whose time is short.
    let places = Arc::new(Semaphore::new(door.limits.connections));
    let handshakes = Quota::new(door.limits.handshakes);
    let addresses: Buckets<IpAddr> = Buckets::new(PER_ADDRESS.0, PER_ADDRESS.1, COUNTED);
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        // Dropping `next` loses nothing: a connection that was not taken stays in the kernel's queue.
        let (accepted, place) = crate::task::select! {
            () = &mut stopped => return,
            next = next => match next {
                Some(next) => next,
                None => return,
            },
        };
        let (stream, source) = match accepted {
            Ok(Some(accepted)) => accepted,
            Ok(None) => {
                door.health.refused("peer");
                continue;
            }
            Err(error) => {
                back_off(&error).await;
                continue;
            }
        };
        if addresses.take(source.address.ip(), door.clock.monotonic()).is_err() {
            door.health.refused("rate");
            continue;
        }
        let handshake = match handshakes.take(source.address.ip()) {
            Ok(handshake) => handshake,
            Err(full) => {
                door.health.refused(match full {
                    Full::All => "handshakes",
                    Full::Source => "handshakes_per_source",
                });
                continue;
            }
        };
        let (ready, one) = (ready.clone(), door.clone());
        door.tasks.spawn(async move {
            if let Some(connection) = shake_hands(stream, source, &one, place).await {
                drop(handshake);
                // The server is gone: we are stopping.
                let _ = ready.send(Ok(connection)).await;
            }
        });
    }
}

async fn shake_hands(
    stream: Socket,
    source: Source,
    door: &Door,
    place: OwnedSemaphorePermit,
) -> Option<Connection> {
    let Source { address: source, process } = source;
    let acceptor = TlsAcceptor::from(door.tls.load_full());
    let io = crate::task::select! {
        () = door.tasks.stopped() => return None,
        done = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => match done {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => {
                door.health.refused("tls");
                tracing::debug!(%source, %error, "handshake failed");
                return None;
            }
            Err(_) => {
                door.health.refused("handshake_timeout");
                return None;
            }
        },
    };
    let certificates = io.get_ref().1.peer_certificates();
    let svid = match certificates {
        None => None,
        Some(chain) => match tls::peer(Some(chain)) {
            Ok(svid) => Some(Arc::new(svid)),
            Err(error) => {
                door.health.refused("tls");
                tracing::debug!(%source, %error, "the verified certificate is no SVID");
                return None;
            }
        },
    };
    let stranger = match svid {
        Some(_) => None,
        None => match door.strangers.take(source.ip()) {
            Ok(stranger) => Some(stranger),
            Err(full) => {
                door.health.refused(match full {
                    Full::All => "strangers",
                    Full::Source => "strangers_per_source",
                });
                return None;
            }
        },
    };
    let channel = Channel::of(io.get_ref().1);
    Some(Connection::new(io, Peer { source, svid, process, channel }, door.clock.clone(), (place, stranger)))
}

/// Waits 5 to 100 ms after a failed accept, in random steps: out of descriptors, spinning would take the processor too.
pub(crate) async fn back_off(error: &io::Error) {
    let step = spread::number() >> 56;
    tracing::warn!(%error, "accepting a connection failed");
    tokio::time::sleep(Duration::from_millis(5 + step * 95 / 255)).await;
}
