//! Connections that cost their holder nothing: silence, half of a handshake, a head or a body byte by byte, an answer that is
//! not read. How many of them are still held after a while.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_svid::{SpiffeId, SystemClock, tls};
use postern_tests::{Envoy, Forge, Mesh, Origin, Plan, foreign, identity, is_long, wait, wire};
use rustls_pki_types::ServerName;
use tokio_rustls::rustls::ClientConnection;

use super::{Line, POLICY};

/// Fewer than one address may have unfinished handshakes, or that would be measured.
const MANY: usize = 100;
/// Large enough for no buffers to hold it.
const MUCH: usize = 64 << 20;
/// Longer than each of `CLOCKS`; filling buffers takes longer than saying nothing.
const LONG: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(5)];

/// The limits, short, so that the test is.
const CLOCKS: [(&str, &str); 4] = [("firstByte", "1s"), ("handshake", "1s"), ("head", "1s"), ("stall", "1s")];
const OUT_OF_REACH: [(&str, &str); 4] =
    [("firstByte", "1h"), ("handshake", "1h"), ("head", "1h"), ("stall", "1h")];

#[derive(Clone, Copy, Eq, PartialEq)]
enum Door {
    Tls,
    Plain,
}

struct Slow {
    name: &'static str,
    /// What stops it; none where a connection may be as slow as it likes.
    limit: Option<&'static str>,
    door: Door,
    count: usize,
    first: fn(&[u8]) -> Vec<u8>,
    /// What follows, ten times a second.
    then: &'static [u8],
    reads: bool,
}

const ATTACKS: [Slow; 6] = [
    Slow {
        name: "silence",
        limit: Some("firstByte"),
        door: Door::Tls,
        count: MANY,
        first: |_| Vec::new(),
        then: b"",
        reads: true,
    },
    Slow {
        name: "half a ClientHello",
        limit: Some("handshake"),
        door: Door::Tls,
        count: MANY,
        first: |hello| hello[..hello.len() / 2].to_vec(),
        then: b"",
        reads: true,
    },
    Slow {
        name: "a ClientHello, and no more",
        limit: Some("handshake"),
        door: Door::Tls,
        count: MANY,
        first: <[u8]>::to_vec,
        then: b"",
        reads: true,
    },
    Slow {
        name: "a head, byte by byte",
        limit: Some("head"),
        door: Door::Plain,
        count: MANY,
        first: |_| b"GET / HTTP/1.1\r\nHost: orders.shop\r\nX-A: ".to_vec(),
        then: b"a",
        reads: true,
    },
    Slow {
        name: "a body, byte by byte",
        limit: None,
        door: Door::Plain,
        count: MANY,
        first: |_| b"POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 10000\r\n\r\n".to_vec(),
        then: b"a",
        reads: true,
    },
    Slow {
        name: "answers of 64 MiB, not read",
        limit: Some("stall"),
        door: Door::Plain,
        count: 10,
        first: |_| format!("GET /bytes/{MUCH} HTTP/1.1\r\nHost: orders.shop\r\n\r\n").into_bytes(),
        then: b"",
        reads: false,
    },
];

/// Two doors to attack, and an honest call past them.
struct Target {
    tls: SocketAddr,
    plain: SocketAddr,
    hello: Vec<u8>,
}

/// How many of the connections are held to the end.
fn held(attack: &Slow, target: &Target) -> usize {
    let to = if attack.door == Door::Tls { target.tls } else { target.plain };
    let first = (attack.first)(&target.hello);
    let mut held: Vec<TcpStream> = (0..attack.count)
        .map(|_| {
            let mut stream = wire::connect(to);
            let _ = stream.write_all(&first);
            stream.set_nonblocking(true).expect("it is a socket");
            stream
        })
        .collect();
    let begun = Instant::now();
    while begun.elapsed() < LONG[usize::from(attack.reads)] && !held.is_empty() {
        held.retain_mut(|stream| is_open(stream, attack));
        wait::pause(Duration::from_millis(100));
    }
    held.len()
}

fn is_open(stream: &mut TcpStream, attack: &Slow) -> bool {
    if !attack.then.is_empty() && stream.write_all(attack.then).is_err() {
        return false;
    }
    if !attack.reads {
        return matches!(stream.take_error(), Ok(None));
    }
    let mut buffer = [0; 4 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

fn mesh(limits: &[(&str, &str)]) -> (Mesh, Origin) {
    let mut plan = Plan::new();
    for name in ["web", "orders"] {
        let sidecar = plan.sidecar(name);
        for (limit, value) in limits {
            sidecar.limit(limit, value);
        }
        if name == "orders" {
            sidecar.serves(80, 8080, "http");
        }
    }
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

fn target(mesh: &Mesh) -> Target {
    let orders = mesh.sidecar("orders");
    Target {
        tls: orders.inbound(),
        plain: mesh.sidecar("web").outbound(),
        hello: client_hello(mesh, orders.inbound()),
    }
}

/// As the mesh's own sidecars say it.
fn client_hello(mesh: &Mesh, to: SocketAddr) -> Vec<u8> {
    let id = SpiffeId::parse(&mesh.sidecar("orders").id()).expect("it has an id");
    let bundles = identity::bundles(&mesh.control);
    let config = tls::client_config(None, &bundles, &[id], Arc::new(SystemClock), &[b"postern/1"]);
    let name = ServerName::IpAddress(to.ip().into());
    let config = config.expect("TLS 1.3 can be spoken");
    let mut session = ClientConnection::new(config, name).expect("it is a configuration");
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("memory takes all");
    hello
}

/// Somebody else is served meanwhile.
fn honest(plain: SocketAddr) -> u16 {
    let mut line = Line::open(plain);
    line.send(b"GET /honest HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n");
    line.status()
}

fn tell(attack: &Slow, of: &str, held: usize) {
    println!(
        "| {} | {of} | {held} of {} held after {} s |",
        attack.name,
        attack.count,
        LONG[usize::from(attack.reads)].as_secs()
    );
}

#[test]
fn who_says_little_is_not_held() {
    let (mesh, _origin) = mesh(&CLOCKS);
    let target = target(&mesh);
    for attack in &ATTACKS {
        let held = held(attack, &target);
        tell(attack, "with", held);
        let expected = if attack.limit.is_some() { 0 } else { attack.count };
        assert_eq!(held, expected, "{}", attack.name);
        assert_eq!(honest(target.plain), 200, "after {}", attack.name);
    }
}

#[test]
fn without_their_clocks_they_are() {
    let (mesh, _origin) = mesh(&OUT_OF_REACH);
    let target = target(&mesh);
    for attack in ATTACKS.iter().filter(|attack| attack.limit.is_some()) {
        let held = held(attack, &target);
        tell(attack, "without", held);
        assert_eq!(held, attack.count, "{}", attack.name);
    }
}

#[test]
fn beside_envoy() {
    if !is_long() || !foreign::need(&["envoy"]) {
        return;
    }
    let (mesh, origin) = mesh(&CLOCKS);
    let [tls, plain] = [8443, 8000].map(|port| SocketAddr::from((mesh.spare_address(0), port)));
    let papers = Forge::foreign(&mesh, "example.org").self_signed("envoy", "spiffe://example.org/envoy");
    let read = |path| std::fs::read_to_string(path).expect("it was written");
    let secure =
        Envoy::new(tls, origin.address()).named("secure").tls(&read(&papers.chain), &read(&papers.key));
    let _secure = secure.start(mesh.directory());
    let _plain = Envoy::new(plain, origin.address()).named("plain").start(mesh.directory());
    let hello = client_hello(&mesh, tls);
    for attack in &ATTACKS {
        tell(attack, "Envoy", held(attack, &Target { tls, plain, hello: hello.clone() }));
    }
}
