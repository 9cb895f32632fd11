//! Leaving: what has begun is delivered whole, to callers that read slowly too, and nothing idle holds it up.

use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postern_tests::{Mesh, Origin, Plan, wait, wire};

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
"#;

/// More than the kernel holds between the two ends.
const MUCH: usize = 16 << 20;

fn pair() -> (Mesh, Origin) {
    let mut plan = Plan::new();
    plan.sidecar("web").limit("drainMin", "200ms").limit("drainMax", "20s");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

fn active(mesh: &Mesh) -> bool {
    mesh.sidecar("web").metrics().value("postern_streams_active{direction=\"outbound\"}") > 0.0
}

/// Responses whose last byte web has taken from orders, of which it could not write the last bytes, because nobody has
/// read a single one: as large as the buffers on the way, in small steps, for nobody knows how much the kernel takes.
fn unwritten(mesh: &Mesh, ask: impl Fn(usize) -> TcpStream) -> Vec<(usize, TcpStream)> {
    const STEP: usize = 12 << 10;
    let deaf = ask(MUCH);
    wait::pause(Duration::from_secs(1));
    let shown = mesh.sidecar("web").admin("/v1/connections").to_string();
    let (_, rest) = shown.split_once("\"responseBytes\":").expect("one stream runs");
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let taken: usize = digits.parse().expect("a number");
    drop(deaf);
    wait::until("it is gone", wait::PATIENCE, || !active(mesh));
    let mut all = Vec::new();
    for step in 0..24 {
        let size = taken.saturating_sub(16 * STEP) + step * STEP;
        let stream = ask(size);
        let asked = Instant::now();
        wait::pause(Duration::from_millis(150));
        // A busy machine takes longer.
        while active(mesh) && asked.elapsed() < Duration::from_secs(1) {
            wait::pause(Duration::from_millis(25));
        }
        if active(mesh) {
            drop(stream);
            wait::until("it is gone", wait::PATIENCE, || !active(mesh));
            break;
        }
        all.push((size, stream));
    }
    assert!(!all.is_empty(), "none of the responses fits, around {taken} bytes");
    all
}

fn leaves(mesh: &Mesh) {
    mesh.sidecar("web").process().signal(Signal::SIGTERM);
    // Long after it has closed its doors.
    wait::pause(Duration::from_secs(1));
}

#[test]
fn a_response_is_written_to_its_last_byte_before_the_end() {
    let (mesh, _origin) = pair();
    let ask = |size| {
        let mut stream = wire::connect(mesh.sidecar("web").outbound());
        let request = format!("GET /bytes/{size} HTTP/1.1\r\nHost: orders.shop\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the sidecar reads");
        stream
    };
    let unread = unwritten(&mesh, ask);
    leaves(&mesh);
    for (size, mut stream) in unread {
        assert!(wire::read_head(&mut stream).starts_with("HTTP/1.1 200"));
        let mut body = Vec::new();
        let _ = stream.read_to_end(&mut body);
        assert_eq!(body.len(), size);
    }
    assert_eq!(mesh.sidecar("web").process().wait(wait::PATIENCE).code(), Some(0));
}

#[test]
fn over_http2_too() {
    let (mesh, _origin) = pair();
    let ask = |size| {
        let mut stream = wire::connect(mesh.sidecar("web").outbound());
        let path = format!("/bytes/{size}");
        let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // Windows for everything: only the socket shall keep the sender waiting.
        request.extend(frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
        request.extend(frame(8, 0, 0, &[0x3f, 0xff, 0xff, 0xff]));
        let mut head = vec![0x82, 0x86, 0x04];
        head.push(u8::try_from(path.len()).expect("the path is short"));
        head.extend(path.as_bytes());
        head.extend([0x01, 11]);
        head.extend(b"orders.shop");
        request.extend(frame(1, 0x05, 1, &head));
        stream.write_all(&request).expect("the sidecar reads");
        stream
    };
    let unread = unwritten(&mesh, ask);
    leaves(&mesh);
    for (size, mut stream) in unread {
        let mut told = Frames::default();
        let mut piece = vec![0; 64 << 10];
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            told.take(&piece[..count], &mut stream);
        }
        assert_eq!((told.data, told.ended), (size, true));
    }
    assert_eq!(mesh.sidecar("web").process().wait(wait::PATIENCE).code(), Some(0));
}

#[test]
fn connections_without_a_request_hold_nobody_up() {
    let (mesh, _origin) = pair();
    let web = mesh.sidecar("web");
    let _silent = wire::connect(web.outbound());
    let _stranger = wire::connect(web.inbound());
    let mut kept = wire::connect(web.outbound());
    kept.write_all(b"GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("the sidecar reads");
    assert!(wire::read_head(&mut kept).starts_with("HTTP/1.1 200"));
    web.process().signal(Signal::SIGTERM);
    let begun = Instant::now();
    assert_eq!(web.process().wait(wait::PATIENCE).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// Half a handshake, and half a method in a tunnel whose port nobody declares.
#[test]
fn half_a_sentence_holds_nobody_up() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    let orders = plan.sidecar("orders").serves(80, 8080, "http");
    for (limit, value) in [("drainMin", "200ms"), ("drainMax", "20s"), ("head", "60s"), ("handshake", "60s")]
    {
        orders.limit(limit, value);
    }
    let address = plan.address("orders");
    plan.document("policy.yaml", &POLICY.replace("[web]}]", "[web]}]\n    to: [{ports: [9000]}]"));
    plan.document(
        "raw.yaml",
        &format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: raw, namespace: shop}}\nspec:\n  \
             identity: spiffe://demo.postern/ns/shop/sa/orders\n  ports: [{{port: 9000, protocol: tcp}}]\n  \
             endpoints: [{{address: {address}}}]\n"
        ),
    );
    let mesh = plan.start();
    let orders = mesh.sidecar("orders");
    for case in ["a handshake", "a method"] {
        let mut stream;
        if case == "a handshake" {
            stream = wire::connect(orders.inbound());
            stream.write_all(&[22, 3, 1]).expect("the sidecar reads");
        } else {
            stream = wire::connect(mesh.sidecar("web").outbound());
            let connect = b"CONNECT raw.shop:9000 HTTP/1.1\r\nHost: raw.shop:9000\r\n\r\n";
            stream.write_all(connect).expect("the sidecar reads");
            assert_eq!(wire::status(wire::read_head(&mut stream).as_bytes()), 200);
            stream.write_all(b"GE").expect("the sidecar reads");
        }
        wait::pause(Duration::from_millis(300));
        orders.process().signal(Signal::SIGTERM);
        let begun = Instant::now();
        assert_eq!(orders.process().wait(wait::PATIENCE).code(), Some(0), "{case}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{case}: {:?}", begun.elapsed());
        drop(stream);
        orders.restart();
        orders.wait_ready();
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are small").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What the frames of one response said.
#[derive(Default)]
struct Frames {
    unread: Vec<u8>,
    data: usize,
    ended: bool,
}

impl Frames {
    fn take(&mut self, bytes: &[u8], to: &mut TcpStream) {
        self.unread.extend(bytes);
        let mut at = 0;
        while let Some(head) = self.unread.get(at..at + 9) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let (kind, flags) = (head[3], head[4]);
            let Some(payload) = self.unread.get(at + 9..at + 9 + length) else { break };
            match (kind, flags & 1) {
                (0, end) => {
                    self.data += length;
                    self.ended = end == 1;
                }
                (6, 0) => {
                    let _ = to.write_all(&frame(6, 1, 0, payload));
                }
                _ => {}
            }
            at += 9 + length;
        }
        self.unread.drain(..at);
    }
}
