//! Accepting connections: with permits, without delay, and never spinning.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use postern_svid::spread;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connections::Direction;
use crate::limits::Limits;
use crate::net::{self, TcpListener, TcpStream};
use crate::runtime::spawn;
use crate::sidecar::Sidecar;

/// What accepted connections share across workers.
#[derive(Clone, Debug)]
pub struct Permits {
    /// One for each direction: a flood from outside must not keep the workload from calling, nor its calls keep others
    /// from reaching it.
    connections: [Arc<Semaphore>; 2],
    handshakes: Arc<Handshakes>,
}

impl Permits {
    /// Permits for this sidecar's limits.
    pub fn new(sidecar: &Sidecar) -> Self {
        let limits = sidecar.snapshots.limits();
        let connections = connections(&limits, nofile());
        tracing::info!(connections, "connections of each direction at a time");
        Self {
            connections: [connections; 2].map(|count| Arc::new(Semaphore::new(count))),
            handshakes: Arc::new(Handshakes {
                free: Arc::new(Semaphore::new(limits.handshakes)),
                by_source: Mutex::default(),
                per_source: limits.handshakes_per_source,
                share: (limits.handshakes / 4).max(1),
            }),
        }
    }
}

/// How many connections of one direction may live. A connection costs two descriptors with the one that it leads to; two
/// hundred are for the rest.
fn connections(limits: &Limits, files: usize) -> usize {
    limits.connections.min(((files / 2).saturating_sub(200) / 2).max(16))
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
    let connections = &permits.connections[direction as usize];
    let closing = sidecar.drain.closing();
    let mut closing = std::pin::pin!(closing);
    let mut backoff = Backoff::default();
    loop {
        let permit = match Arc::clone(connections).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                sidecar.metrics.limit("connections");
                crate::runtime::select! {
                    permit = Arc::clone(connections).acquire_owned() => match permit {
                        Ok(permit) => permit,
                        Err(_) => return,
                    },
                    () = &mut closing => return,
                }
            }
        };
        if let Some(limit) = sidecar.pressure.refuses_connections(&sidecar.snapshots.load().limits) {
            sidecar.metrics.limit(limit);
            crate::runtime::select! {
                () = tokio::time::sleep(backoff.pause()) => continue,
                () = &mut closing => return,
            }
        }
        // The whole result is matched: `Ok(x) = accept()` would switch the branch off for good on the first error.
        let accepted = crate::runtime::select! {
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
                let served = serve(stream, net::canonical(address));
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
        let jitter = base * (spread::number() >> 56) / 512;
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

/// The soft limit of open files; POSIX's usual one if the kernel does not say.
pub fn nofile() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft);
    usize::try_from(soft).unwrap_or(usize::MAX)
}

/// Raises the soft limit of open files to the hard one. The soft one is low for programs that use `select`, which breaks
/// past 1,024; this one does not.
pub fn raise_nofile() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, limit = nofile(), "the limit of open files cannot be raised (LimitNOFILE= sets it)");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;
    use crate::testing;

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

    #[test]
    fn the_soft_limit_of_open_files_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        raise_nofile();
        assert_eq!(nofile() as u64, hard);
    }

    #[test]
    fn connections_are_as_many_as_there_are_descriptors_for() {
        let limits = Limits::default();
        for (files, each) in [(64, 16), (1_024, 56 + 100), (65_536, 10_000), (usize::MAX, 10_000)] {
            assert_eq!(connections(&limits, files), each, "{files}");
        }
    }

    /// Few may be silent, fewer may speak, and of those who speak no address has more than its share.
    #[tokio::test(start_paused = true)]
    async fn handshakes_are_few_and_no_address_has_them_all() {
        let sidecar = testing::sidecar("handshakes: '4', handshakesPerSource: '3'");
        let permits = Permits::new(&sidecar);
        let take = |last| HandshakePermit::take(&permits, &sidecar, IpAddr::from([192, 0, 2, last]));
        let mut silent: Vec<_> = (0..3).map(|_| take(1).unwrap()).collect();
        assert!(take(1).is_none(), "a fourth of one address");
        assert!(silent[0].begin(&sidecar).await);
        assert!(!silent[1].begin(&sidecar).await, "a quarter of four is one");
        let mut others: Vec<_> = (2..=4).map(|last| take(last).unwrap()).collect();
        for other in &mut others {
            assert!(other.begin(&sidecar).await);
        }
        let (mut fifth, mut sixth) = (take(5).unwrap(), take(6).unwrap());
        let begun = timeout(Duration::from_secs(60), fifth.begin(&sidecar)).await;
        assert!(begun.is_err(), "a fifth at the same time");
        drop(others.pop());
        assert!(timeout(Duration::from_secs(60), sixth.begin(&sidecar)).await.unwrap(), "a place is free");
        let page = sidecar.metrics.render();
        assert!(page.contains("limit=\"handshakes_per_source\"} 2"), "{page}");
        assert!(page.contains("limit=\"handshakes\"} 1"), "{page}");
        drop((silent, others, fifth, sixth));
        assert!(permits.handshakes.by_source.lock().is_empty(), "who has gone costs nothing");
        assert_eq!(permits.handshakes.free.available_permits(), 4);
    }

    /// A listener that says a byte to whoever it accepts, and holds it.
    async fn accepting(sidecar: &Arc<Sidecar>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let permits = Permits::new(sidecar);
        let serve = |mut stream: TcpStream, _| async move {
            stream.write_all(b"x").await.unwrap();
            let _ = stream.read(&mut [0]).await;
        };
        spawn(accept_loop(Arc::clone(sidecar), permits, listener, Direction::Inbound, serve));
        address
    }

    /// A connection, and whether it is served within this.
    async fn call(to: SocketAddr, within: Duration) -> (TcpStream, bool) {
        let mut stream = net::connect(to).await.unwrap();
        let is_served = matches!(timeout(within, stream.read(&mut [0])).await, Ok(Ok(1)));
        (stream, is_served)
    }

    const SOON: Duration = Duration::from_millis(250);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn nobody_is_accepted_while_memory_or_descriptors_are_short() {
        for (memory, descriptors, limit) in [(95, 0, "memory"), (0, 90, "descriptors")] {
            let sidecar = testing::sidecar("");
            sidecar.pressure.set(memory, descriptors);
            let address = accepting(&sidecar).await;
            let (mut waiting, is_served) = call(address, SOON).await;
            assert!(!is_served, "with {memory} % of memory and {descriptors} % of descriptors");
            let page = sidecar.metrics.render();
            assert!(!page.contains(&format!("limit=\"{limit}\"}} 0")), "{page}");
            sidecar.pressure.set(memory - memory.min(1), descriptors - descriptors.min(1));
            let byte = timeout(PATIENCE, waiting.read(&mut [0])).await;
            assert_eq!(byte.unwrap().unwrap(), 1, "who waited is served");
        }
    }

    #[tokio::test]
    async fn past_the_limit_callers_wait_until_one_leaves() {
        let sidecar = testing::sidecar("connections: '2'");
        let address = accepting(&sidecar).await;
        let (first, second) = (call(address, PATIENCE).await, call(address, PATIENCE).await);
        assert!(first.1 && second.1);
        let (mut third, is_served) = call(address, SOON).await;
        assert!(!is_served, "a third");
        drop(first);
        assert_eq!(timeout(PATIENCE, third.read(&mut [0])).await.unwrap().unwrap(), 1);
        let page = sidecar.metrics.render();
        assert!(!page.contains("limit=\"connections\"} 0"), "{page}");
    }
}
