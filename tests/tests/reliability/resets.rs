//! R13: connections between sidecars that break, and endpoints that die, again and again under calls.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use postern_tests::{Origin, Plan, is_long, wait, wire};

use super::endpoints::service;
use super::{POLICY, beside_others, expect_alive};

/// Bytes after which a connection breaks: within a handshake, a head, a body.
const BREAKS: [u64; 7] = [700, 9_000, 40_000, 6_000, 90_000, 2_500, 25_000];
/// Bytes of an answer.
const BODY: usize = 20_000;

/// Passes connections on, and resets both ends of each after so many bytes of answers.
struct Breaker {
    broken: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    at: SocketAddr,
}

impl Breaker {
    fn start(at: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).expect("the address is spare");
        let (broken, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&broken), Arc::clone(&stop));
        std::thread::spawn(move || {
            for (number, near) in listener.incoming().enumerate() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(to)) else { continue };
                let after = BREAKS[number % BREAKS.len()];
                let count = Arc::clone(&count);
                let (Ok(up), Ok(down)) = (near.try_clone(), far.try_clone()) else { continue };
                std::thread::spawn(move || std::io::copy(&mut &up, &mut &down));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut (&far).take(after), &mut &near);
                    count.fetch_add(1, Ordering::Relaxed);
                    for end in [&near, &far] {
                        let _ = socket2::SockRef::from(end).set_linger(Some(Duration::ZERO));
                        let _ = end.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        Self { broken, stop, at }
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.at);
    }
}

/// What an answer came to.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Came {
    /// All of it.
    Whole,
    /// A status of the sidecar's, whole.
    Refused(u16),
    /// It broke, and it showed.
    Broken,
    /// It ended as if that were all, and was not.
    Short,
}

fn ask(to: SocketAddr, method: &str, path: &str, more: &str) -> Came {
    let mut stream = wire::connect(to);
    let head = format!("{method} {path} HTTP/1.1\r\nHost: both.shop\r\nConnection: close\r\n{more}");
    if stream.write_all(head.as_bytes()).is_err() {
        return Came::Broken;
    }
    let mut reader = BufReader::new(stream);
    let (mut status, mut length, mut chunked, mut line) = (0, None, false, String::new());
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(count) if count > 0 => {}
            _ => return Came::Broken,
        }
        let text = line.trim_end().to_ascii_lowercase();
        if status == 0 {
            status = wire::status(line.as_bytes());
        } else if let Some(value) = text.strip_prefix("content-length:") {
            length = value.trim().parse::<usize>().ok();
        } else if text.starts_with("transfer-encoding:") {
            chunked = true;
        } else if text.is_empty() {
            break;
        }
    }
    let mut body = Vec::new();
    let ended = reader.read_to_end(&mut body);
    // By the framing it is whole, or a client sees that it is not.
    let is_framed = if chunked { body.ends_with(b"0\r\n\r\n") } else { length == Some(body.len()) };
    let bytes = body.iter().filter(|byte| **byte == b'x').count();
    match (status, is_framed) {
        (200, true) if method == "POST" || bytes == BODY => Came::Whole,
        (200, true) => Came::Short,
        (200, false) if ended.is_ok() && !chunked && length.is_none() => Came::Short,
        (_, false) => Came::Broken,
        (status, true) => Came::Refused(status),
    }
}

#[test]
fn no_call_is_made_twice_and_no_answer_is_cut_short_unseen() {
    let _beside = beside_others();
    let mut plan = Plan::new();
    plan.sidecar("web").log("warn");
    for name in ["orders", "spare"] {
        plan.sidecar(name).serves(80, 8080, "http").log("warn");
    }
    plan.document("policy.yaml", POLICY);
    let fault = plan.spare_address(0);
    plan.document("both.yaml", &service([(fault, "orders"), (plan.address("spare"), "spare")]));
    let origins = ["orders", "spare"].map(|name| Origin::http((plan.address(name), 8080)));
    let mesh = plan.start();
    let breaker = Breaker::start((fault, 24_143).into(), mesh.sidecar("orders").inbound());
    let (to, each) = (mesh.sidecar("web").outbound(), if is_long() { 2_000 } else { 100 });

    let answers: Vec<(String, Came)> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                scope.spawn(move || {
                    let mut answers = Vec::new();
                    for number in 0..each {
                        let path = format!("/post/{caller}-{number}");
                        let came = match number % 3 {
                            0 => ask(to, "POST", &path, "Content-Length: 4\r\n\r\npaid"),
                            1 => ask(to, "GET", &format!("/bytes/{BODY}?{caller}-{number}"), "\r\n"),
                            _ => ask(to, "GET", &format!("/chunked/{BODY}?{caller}-{number}"), "\r\n"),
                        };
                        answers.push((path, came));
                    }
                    answers
                })
            })
            .collect();
        callers.into_iter().flat_map(|caller| caller.join().expect("no panic")).collect()
    });

    let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
    for request in origins.iter().flat_map(Origin::requests) {
        *arrived.entry(request.target).or_default() += 1;
    }
    let twice: Vec<_> = arrived.iter().filter(|(_, count)| **count > 1).collect();
    let mut came: BTreeMap<Came, usize> = BTreeMap::new();
    for (_, one) in &answers {
        *came.entry(*one).or_default() += 1;
    }
    let broken = breaker.broken.load(Ordering::Relaxed);
    println!(
        "R13 {} calls over {broken} connections that break: {came:?}, arrived twice: {}",
        answers.len(),
        twice.len()
    );
    assert!(twice.is_empty(), "calls were made twice: {twice:?}");
    assert!(!came.contains_key(&Came::Short), "answers were cut short and look whole: {came:?}");
    for one in came.keys() {
        assert!(
            matches!(one, Came::Whole | Came::Broken | Came::Refused(502 | 503)),
            "neither whole, 502, 503 nor broken: {came:?}"
        );
    }
    // An endpoint that cannot be dialled is left alone, the longer the more often it failed: how many there are is a matter
    // of time.
    assert!(broken >= each / 40, "only {broken} connections broke");
    // Whoever was told that it is paid has paid.
    for (path, _) in answers.iter().filter(|(path, one)| *one == Came::Whole && is_post(path)) {
        assert_eq!(arrived.get(path), Some(&1), "{path}: answered, and never arrived");
    }
    // Half of the calls go where nothing breaks, and most of the others are asked between two faults.
    let whole = came.get(&Came::Whole).copied().unwrap_or_default();
    assert!(whole * 2 > answers.len(), "few came whole: {came:?}");
    drop(breaker);
    wait::until("nothing is left of it", wait::PATIENCE, || {
        ["web", "orders", "spare"]
            .iter()
            .all(|name| mesh.sidecar(name).metrics().sum("postern_streams_active") == 0.0)
    });
    expect_alive(&mesh);
}

/// Every third is a POST.
fn is_post(path: &str) -> bool {
    path.rsplit_once('-')
        .and_then(|(_, number)| number.parse::<usize>().ok())
        .is_some_and(|number| number % 3 == 0)
}
