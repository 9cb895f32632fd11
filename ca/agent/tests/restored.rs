//! A control plane that is back: from a backup, and does not know what it issued since; or from where nobody could reach it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod control;
mod place;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use control::Ca;
use place::{CONTROL, Place, TOKEN, clock, eventually, private};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Bundles and revocations come by the stream, so that a refused one does not wait for half of a certificate's life; nor does
/// the token that ends it wait for what was tried before it.
#[tokio::test]
async fn a_certificate_that_the_ca_does_not_know_is_renewed_at_once_and_a_new_token_tried_when_it_comes() {
    let ca = Ca::new(clock());
    *ca.ttl.lock() = Duration::from_secs(3_600);
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let address = listener.address;
    let place = Place::new(&ca, address);
    let agent = place.run();
    let first = agent.identity().await;
    eventually("the stream", || agent.observer.status().connected).await;
    // Two renewals out of turn are never closer than this.
    place.clock.advance(Duration::from_secs(5));
    *ca.forgotten.lock() = Some("token-after-the-restore".to_owned());
    drop(listener);
    eventually("the loss is noticed", || !agent.observer.status().connected).await;
    let _listener = ca.listen(CONTROL, &address.to_string()).await;
    eventually("a renewal, then the token", || ca.seen().len() >= 3).await;
    let tokens: Vec<_> = ca.seen().into_iter().map(|seen| seen.token).collect();
    assert_eq!(tokens[..3], [Some(TOKEN.to_owned()), None, Some(TOKEN.to_owned())]);
    let error = agent.observer.status().last_stream_error.unwrap();
    assert!(error.contains("does not know the connection's certificate"), "{error}");
    // By now it waits for three seconds and more between two attempts.
    eventually("failures", || agent.observer.status().failures >= 4).await;
    let put = Instant::now();
    private(&place.directory.path().join("token"), "token-after-the-restore");
    agent.renewed(&first).await;
    assert!(put.elapsed() < Duration::from_secs(3), "{:?}", put.elapsed());
    eventually("the stream again", || agent.observer.status().connected).await;
}

/// What becomes of a connection.
enum Fate {
    Pass,
    /// It is taken, and never a byte comes back.
    Hang,
    Close,
}

/// The way to a control plane, on which each connection has its fate, by its number from 1 on.
struct Way {
    address: SocketAddr,
    /// Connections so far.
    count: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Way {
    async fn to(there: SocketAddr, fate: impl Fn(usize) -> Fate + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = count.clone();
        let task = tokio::spawn(async move {
            let (mut passing, mut hanging) = (JoinSet::new(), Vec::new());
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                match fate(counted.fetch_add(1, Ordering::SeqCst) + 1) {
                    Fate::Pass => drop(passing.spawn(async move {
                        let mut there = TcpStream::connect(there).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                    })),
                    Fate::Hang => hanging.push(here),
                    Fate::Close => drop(here),
                }
            }
        });
        Self { address, count, task }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Life of a certificate here: a step of a conversation may take an eighth of it, a twentieth is the longest wait between two
/// attempts and between two looks at the clock.
const LIFE: Duration = Duration::from_secs(60);

/// Else a denial could come a whole step later than it might: a renewal got through, so the control plane can be reached, but
/// the stream is still being opened on a connection that was lost with the link.
#[tokio::test]
async fn an_attempt_at_the_stream_that_hangs_gives_way_to_a_renewal() {
    let ca = Ca::new(clock());
    *ca.ttl.lock() = LIFE;
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let way = Way::to(listener.address, |number| if number == 2 { Fate::Hang } else { Fate::Pass }).await;
    let place = Place::new(&ca, way.address);
    let agent = place.run();
    let first = agent.identity().await;
    eventually("the stream hangs", || way.count() == 2).await;
    let hangs = Instant::now();
    place.clock.advance(LIFE / 2 + Duration::from_secs(1));
    agent.renewed(&first).await;
    assert!(!agent.observer.status().connected);
    eventually("the stream", || agent.observer.status().connected).await;
    assert!(hangs.elapsed() < LIFE / 8, "{:?}", hangs.elapsed());
}

/// The same while it waits for its turn, which in earnest takes minutes.
#[tokio::test]
async fn a_stream_that_is_to_be_tried_later_is_tried_after_a_renewal() {
    let ca = Ca::new(clock());
    *ca.ttl.lock() = LIFE;
    let listener = ca.listen(CONTROL, "127.0.0.1:0").await;
    let away = Arc::new(AtomicBool::new(true));
    let is_away = away.clone();
    let fate = move |number| {
        if number > 1 && is_away.load(Ordering::SeqCst) { Fate::Close } else { Fate::Pass }
    };
    let way = Way::to(listener.address, fate).await;
    let place = Place::new(&ca, way.address);
    let agent = place.run();
    let first = agent.identity().await;
    // Almost due: by the fourth attempt it looks at its clock this often.
    let almost = Duration::from_millis(300);
    place.clock.advance(LIFE / 2 - almost);
    eventually("four attempts at the stream", || way.count() == 5).await;
    let waits = Instant::now();
    away.store(false, Ordering::SeqCst);
    place.clock.advance(almost * 2);
    agent.renewed(&first).await;
    assert!(!agent.observer.status().connected);
    eventually("the stream", || agent.observer.status().connected).await;
    // The wait after the fourth is the longest one, less a fifth at most.
    assert!(waits.elapsed() < LIFE / 20 * 8 / 10, "{:?}", waits.elapsed());
}
