//! R11: callers that read nothing, next to nothing, or send a byte a second.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postern_tests::frames::{Raw, flag};
use postern_tests::{Mesh, Paced, Told, is_long, resident, wait, wire};

use super::{Stops, allowance, alone, before, expect_alive, expect_as_fast, pair};

/// More than all buffers between the two ends hold.
const MUCH: usize = 64 << 20;

/// The slow ones, of each kind as many.
struct Slow {
    deaf: Vec<TcpStream>,
    shut: Vec<Raw>,
    readers: Vec<TcpStream>,
    writers: Vec<TcpStream>,
}

impl Slow {
    fn open(to: SocketAddr, each: usize) -> Self {
        let lines = |head: &str| -> Vec<TcpStream> {
            (0..each)
                .map(|_| {
                    let mut stream = wire::connect(to);
                    stream.write_all(head.as_bytes()).expect("the sidecar reads");
                    stream.set_nonblocking(true).expect("it is a socket");
                    stream
                })
                .collect()
        };
        let get = format!("GET /bytes/{MUCH} HTTP/1.1\r\nHost: orders.shop\r\n\r\n");
        let shut = (0..each).map(|_| {
            let mut raw = Raw::plain(to, "orders.shop");
            // SETTINGS_INITIAL_WINDOW_SIZE: not a byte of a body may come.
            raw.hello(&[(4, 0)]);
            let stream = raw.stream();
            let head = raw.head(stream, flag::END_STREAM, "GET", "/bytes/1000000", &[]);
            raw.send(&head).expect("the sidecar reads");
            raw
        });
        Self {
            deaf: lines(&get),
            shut: shut.collect(),
            readers: lines(&get),
            writers: lines("POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 100000\r\n\r\n"),
        }
    }

    /// A byte to and fro for each that moves at all; a reader that has been reset is gone.
    fn tick(&mut self) {
        let is_open = |read: std::io::Result<usize>| match read {
            Ok(count) => count > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        self.readers.retain_mut(|stream| is_open(stream.read(&mut [0])));
        // What they send is not whole: an answer would be none to it.
        self.writers.retain_mut(|stream| {
            let is_unanswered =
                matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
            is_unanswered && stream.write_all(b"a").is_ok()
        });
        for raw in &mut self.shut {
            raw.read(Duration::from_millis(1));
        }
    }
}

fn streams(mesh: &Mesh, name: &str) -> f64 {
    mesh.sidecar(name).metrics().value("postern_streams_active{direction=\"outbound\"}")
}

/// How long a write may go without progress: as by default, or so that it is over soon.
fn stall() -> Duration {
    Duration::from_secs(if is_long() { 30 } else { 2 })
}

/// Within which they are cut. What they do not read lies in the windows of a mesh connection, which are 16 of one stream's:
/// so 16 are cut at a time.
fn cut(each: usize) -> Duration {
    let rounds = u32::try_from(each * 3).expect("few").div_ceil(16);
    stall() * rounds + Duration::from_secs(if is_long() { 5 } else { 9 })
}

/// So many of each kind, cut as soon as they must be, beside others, none of whom fails: those before, those meanwhile, and
/// since when.
fn beside_slow(each: usize) -> (Told, Told, Instant) {
    let (stall, cut) = (stall(), cut(each).as_secs());
    let (mesh, _origin) = pair(&[("stall", &format!("{}s", stall.as_secs()))]);
    let (web, orders) = (mesh.sidecar("web"), mesh.sidecar("orders"));
    let start = [web, orders].map(|sidecar| resident(sidecar.process().id()));
    let before = Paced::during(web.outbound(), "orders.shop", 100, before());

    let mut slow = Slow::open(web.outbound(), each);
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let (took, beside, grown) = std::thread::scope(|scope| {
        let ticking = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                slow.tick();
                wait::pause(Duration::from_secs(1));
            }
            slow
        });
        let stops = Stops(&stop);
        wait::until("all of them are served", wait::PATIENCE, || streams(&mesh, "web") >= 4.0 * each as f64);
        let load = Paced::start(web.outbound(), "orders.shop", 100);
        let mut grown = [0, 0];
        // What neither reads nor moves is cut, and the writers are left, and the load's own streams.
        let left = each as f64 + 4.0;
        wait::until("who does not read is cut", Duration::from_secs(cut + 30), || {
            for (at, sidecar) in [web, orders].iter().enumerate() {
                let now = resident(sidecar.process().id()).saturating_sub(start[at]);
                grown[at] = grown[at].max(now);
            }
            wait::pause(Duration::from_millis(100));
            streams(&mesh, "web") <= left
        });
        let took = begun.elapsed();
        let beside = load.end();
        drop(stops);
        let slow = ticking.join().expect("no panic");
        assert_eq!(slow.writers.len(), each, "who sends a byte a second is served");
        assert!(slow.deaf.len() == each && slow.shut.len() == each);
        (took, beside, grown)
    });
    println!(
        "R11 {} slow callers, memory +{} and +{} MiB, those that do not read are cut after {took:.1?}; before: {}; beside \
         them: {}",
        4 * each,
        grown[0],
        grown[1],
        before.line(),
        beside.line()
    );
    beside.expect_all("beside slow callers", 20);
    assert!(took < Duration::from_secs(cut), "those that do not read are cut after {took:?}");
    assert!(grown.iter().all(|mebibytes| *mebibytes <= 50), "slow callers cost {grown:?} MiB");
    expect_alive(&mesh);
    (before, beside, begun)
}

/// With fewer than 16, nobody waits.
#[test]
fn few_who_are_slow_slow_nobody_else() {
    let _alone = alone();
    let (before, beside, begun) = beside_slow(3);
    // At first they take what the buffers on their way hold, and that is fast.
    let filled = begun + Duration::from_secs(if is_long() { 3 } else { 1 });
    let beside = beside.between(filled, Instant::now());
    println!("R11 from a second on, or three: {}", beside.line());
    expect_as_fast("beside few slow callers", &before, &beside, 20);
}

/// With more of them everybody waits until they are cut, and nobody longer.
#[test]
fn many_who_are_slow_are_cut() {
    let _alone = alone();
    let each = if is_long() { 25 } else { 15 };
    let (_, beside, _) = beside_slow(each);
    let (longest, most) = (beside.longest(), cut(each) + allowance());
    assert!(longest <= most, "beside many slow callers one took {longest:?}, at most {most:?}");
}
