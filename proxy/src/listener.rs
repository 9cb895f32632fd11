//! Accepting connections: with permits, without delay, and never spinning.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connections::Direction;
use crate::net::{TcpListener, TcpStream};
use crate::runtime::spawn;
use crate::sidecar::Sidecar;

/// What accepted connections share across workers.
#[derive(Clone, Debug)]
pub struct Permits {
    connections: Arc<Semaphore>,
    handshakes: Arc<Handshakes>,
}

impl Permits {
    /// Permits for this sidecar's limits.
    pub fn new(sidecar: &Sidecar) -> Self {
        let limits = &sidecar.config.limits;
        let files = nofile();
        let connections = limits.connections.min((files / 2).saturating_sub(200).max(16));
        Self {
            connections: Arc::new(Semaphore::new(connections)),
            handshakes: Arc::new(Handshakes {
                free: Arc::new(Semaphore::new(limits.handshakes)),
                by_source: Mutex::default(),
                per_source: limits.handshakes_per_source,
                share: (limits.handshakes / 4).max(1),
            }),
        }
    }
}

/// Handshakes that are under way.
#[derive(Debug)]
struct Handshakes {
    free: Arc<Semaphore>,
    by_source: Mutex<HashMap<IpAddr, Unfinished>>,
    per_source: usize,
    /// Of the places in `free`, what one address may take: the rest stays for everybody else.
    share: usize,
}

/// What one address has begun and not finished.
#[derive(Clone, Copy, Debug, Default)]
struct Unfinished {
    connections: usize,
    handshakes: usize,
}

/// A place among the connections that have not finished their handshake. Silence costs a count; only who has begun to
/// speak gets one of the few places that cost signatures, or strangers who say nothing would keep everybody out.
#[derive(Debug)]
pub struct HandshakePermit {
    handshakes: Arc<Handshakes>,
    source: IpAddr,
    has_begun: bool,
    place: Option<OwnedSemaphorePermit>,
}

impl HandshakePermit {
    /// A place for `source`. `None` if that address has too many unfinished already.
    pub fn take(permits: &Permits, sidecar: &Sidecar, source: IpAddr) -> Option<Self> {
        let handshakes = Arc::clone(&permits.handshakes);
        {
            let mut by_source = handshakes.by_source.lock();
            let unfinished = by_source.entry(source).or_default();
            if unfinished.connections >= handshakes.per_source {
                sidecar.metrics.limit("handshakes_per_source");
                return None;
            }
            unfinished.connections += 1;
        }
        Some(Self { handshakes, source, has_begun: false, place: None })
    }

    /// The first byte is there: waits for one of the places where handshakes are done. False if this address has its
    /// share of them already; its share of those who wait counts too, or it could keep the others waiting for ever. The
    /// caller sets the deadline.
    pub async fn begin(&mut self, sidecar: &Sidecar) -> bool {
        {
            let mut by_source = self.handshakes.by_source.lock();
            let unfinished = by_source.entry(self.source).or_default();
            if unfinished.handshakes >= self.handshakes.share {
                sidecar.metrics.limit("handshakes_per_source");
                return false;
            }
            unfinished.handshakes += 1;
            self.has_begun = true;
        }
        let free = Arc::clone(&self.handshakes.free);
        self.place = match Arc::clone(&free).try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => {
                sidecar.metrics.limit("handshakes");
                free.acquire_owned().await.ok()
            }
        };
        self.place.is_some()
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut by_source = self.handshakes.by_source.lock();
        if let Some(unfinished) = by_source.get_mut(&self.source) {
            unfinished.connections -= 1;
            unfinished.handshakes -= usize::from(self.has_begun);
            if unfinished.connections == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

/// Accepts until the sidecar closes, and serves each connection in a task of its own. At the limit it stops accepting:
/// callers wait in the backlog instead of being dropped.
pub async fn accept_loop<F, Fut>(
    sidecar: Arc<Sidecar>,
    permits: Permits,
    listener: TcpListener,
    direction: Direction,
    serve: F,
) where
    F: Fn(TcpStream, SocketAddr) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let closing = sidecar.drain.closing();
    let mut closing = std::pin::pin!(closing);
    let mut backoff = Backoff::default();
    loop {
        let permit = match Arc::clone(&permits.connections).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                sidecar.metrics.limit("connections");
                tokio::select! {
                    permit = Arc::clone(&permits.connections).acquire_owned() => match permit {
                        Ok(permit) => permit,
                        Err(_) => return,
                    },
                    () = &mut closing => return,
                }
            }
        };
        if let Some(limit) = sidecar.pressure.refuses_connections(&sidecar.snapshots.load().limits) {
            sidecar.metrics.limit(limit);
            tokio::select! {
                () = tokio::time::sleep(backoff.pause()) => continue,
                () = &mut closing => return,
            }
        }
        // The whole result is matched: `Ok(x) = accept()` would switch the branch off for good on the first error.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut closing => return,
        };
        match accepted {
            Ok((stream, address)) => {
                backoff = Backoff::default();
                let _ = stream.set_nodelay(true);
                sidecar.metrics.connections_total[direction as usize].inc();
                let active = sidecar.metrics.connections_active[direction as usize].clone();
                active.inc();
                let served = serve(stream, address);
                let guard = Active(active, permit);
                spawn(async move {
                    let _guard = guard;
                    served.await;
                });
            }
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                sidecar.metrics.accept_errors.inc();
                if is_exhaustion(&error) {
                    sidecar.metrics.limit("descriptors");
                }
                let pause = backoff.pause();
                tracing::warn!(%error, ?pause, "accept failed");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

struct Active(
    prometheus_client::metrics::gauge::Gauge,
    #[expect(dead_code, reason = "held")] OwnedSemaphorePermit,
);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// 5 ms to 100 ms, with jitter, so that listeners out of descriptors do not wake together.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let base = 5_u64 << self.0.min(4);
        self.0 += 1;
        let mut byte = [0_u8; 1];
        let _ = aws_lc_rs::rand::fill(&mut byte);
        let jitter = base * u64::from(byte[0]) / 512;
        Duration::from_millis((base + jitter).min(100))
    }
}

/// The connection died between its SYN and our accept: nothing is wrong here.
pub fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// No descriptor is left, for this process or for the machine.
pub fn is_exhaustion(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// The soft limit of open files, as the kernel states it.
pub fn nofile() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_off_is_bounded() {
        let mut backoff = Backoff::default();
        for _ in 0..64 {
            let pause = backoff.pause();
            assert!((5..=100).contains(&pause.as_millis()), "{pause:?}");
        }
    }

    #[test]
    fn the_limit_of_open_files_is_known() {
        assert!(nofile() >= 64);
    }
}
