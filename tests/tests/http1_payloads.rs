//! What no decent client would send over HTTP/1, at both doors that read it: the workload's way out, and a tunnel to an
//! undeclared port, whose far end reads it behind the mesh. The table is in `http1_payloads.json`: what is sent, the status
//! of every answer, what the origin may see of it, whether the connection must end, and why. A row's columns are those of
//! a strict reader; the origin never sees more.
//!
//! `POSTERN_TEST_LONG=1 cargo test -p postern-tests --test http1_payloads -- --nocapture` prints the figures of
//! docs/threat-model.md, with Envoy beside.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use postern_tests::{Block, Envoy, Mesh, Origin, Plan, foreign, is_long, wire};
use serde_json::Value;

const TABLE: &str = include_str!("http1_payloads.json");

const DOCUMENTS: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
    to: [{ports: [8080, 9000]}]
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: raw, namespace: shop}
spec:
  identity: spiffe://demo.postern/ns/shop/sa/orders
  ports: [{port: 9000, protocol: tcp, targetPort: 9000}]
  endpoints: [{address: ADDRESS}]
"#;

/// After it nothing more comes: the connection is still in step if this is answered.
const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";

const PATIENCE: Duration = Duration::from_secs(10);

struct Row {
    name: String,
    send: Vec<u8>,
    answers: Vec<u16>,
    /// Where the tunnel's far end answers otherwise.
    in_tunnel: Option<Vec<u16>>,
    origin: Vec<String>,
    closed: bool,
    /// What `/p` became.
    own: String,
}

/// Characters stand for bytes, and `{{a*9}}` for nine of them.
fn bytes(text: &str) -> Vec<u8> {
    let mut sent = Vec::new();
    let mut rest = text;
    while let Some((before, (macro_, after))) =
        rest.split_once("{{").and_then(|(before, rest)| Some((before, rest.split_once("}}")?)))
    {
        let (piece, count) = macro_.split_once('*').expect("a piece and how often");
        sent.extend(before.chars().map(|c| u8::try_from(c).expect("a byte")));
        sent.extend(piece.repeat(count.parse().expect("a number")).into_bytes());
        rest = after;
    }
    sent.extend(rest.chars().map(|c| u8::try_from(c).expect("a byte")));
    sent
}

fn table() -> Vec<Row> {
    let rows: Vec<Value> = serde_json::from_str(TABLE).expect("the table is JSON");
    let codes = |list: &Value| -> Option<Vec<u16>> {
        Some(list.as_array()?.iter().map(|code| code.as_u64().expect("a status") as u16).collect())
    };
    let row = |(at, row): (usize, &Value)| {
        // What comes late must not be taken for the next row's.
        let named = |text: &str| text.replace("/p", &format!("/p{at}"));
        let text = |name: &str| row[name].as_str().unwrap_or_else(|| panic!("{row}: {name}")).to_owned();
        let list = |name: &str| row[name].as_array().unwrap_or_else(|| panic!("{row}: {name}"));
        assert!(!text("why").is_empty(), "{}: a row has its reason", text("name"));
        Row {
            name: text("name"),
            send: bytes(&named(&text("send"))),
            answers: codes(&row["answers"]).unwrap_or_else(|| panic!("{row}: answers")),
            in_tunnel: codes(&row["tunnel"]["answers"]),
            origin: list("origin").iter().map(|path| named(path.as_str().expect("a target"))).collect(),
            own: format!("/p{at}"),
            closed: row["closed"].as_bool().expect("said"),
        }
    };
    rows.iter().enumerate().map(row).collect()
}

/// The status of each answer in a flow of HTTP/1.
fn statuses(flow: &[u8]) -> Vec<u16> {
    const LINE: &[u8] = b"HTTP/1.";
    let code = |at: usize| {
        let digits = flow.get(at + LINE.len() + 2..at + LINE.len() + 5)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    };
    (0..flow.len()).filter(|at| flow[*at..].starts_with(LINE)).filter_map(code).collect()
}

/// Reads until there are so many answers or the end; whether the end came.
fn read(stream: &mut TcpStream, flow: &mut Vec<u8>, answers: usize, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a positive time");
    let mut buffer = [0; 16 << 10];
    while statuses(flow).len() < answers && Instant::now() < deadline {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(count) => flow.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
    }
    false
}

struct Door {
    name: &'static str,
    open: fn(SocketAddr) -> TcpStream,
    origin: Origin,
}

fn through_a_tunnel(outbound: SocketAddr) -> TcpStream {
    let mut stream = wire::connect(outbound);
    stream.write_all(b"CONNECT raw.shop:9000 HTTP/1.1\r\nHost: raw.shop:9000\r\n\r\n").expect("it reads");
    assert_eq!(wire::status(wire::read_head(&mut stream).as_bytes()), 200);
    // From here on it is a connection with HTTP/1, whatever comes.
    stream.write_all(b"GET /first HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("it reads");
    let head = wire::read_head(&mut stream);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("it says");
    stream.read_exact(&mut vec![0; length.parse().expect("a number")]).expect("it is whole");
    stream
}

/// What is wrong with a row at a door.
fn wrong(mesh: &Mesh, door: &Door, row: &Row) -> Option<String> {
    let mut stream = (door.open)(mesh.sidecar("web").outbound());
    door.origin.forget();
    let _ = stream.write_all(&row.send);
    let mut flow = Vec::new();
    let mut expected =
        row.in_tunnel.as_ref().filter(|_| door.name == "tunnel").unwrap_or(&row.answers).clone();
    let mut ended = read(&mut stream, &mut flow, expected.len(), PATIENCE);
    if !row.closed && !ended {
        let _ = stream.write_all(PROBE.as_bytes());
        expected.push(200);
    }
    if !ended {
        // All that comes, and the end.
        ended = read(&mut stream, &mut flow, usize::MAX, PATIENCE);
    }
    let seen = door.origin.requests();
    let probes = seen.iter().filter(|one| one.target == "/probe").count();
    let is_late = |one: &str| one.starts_with("/p") && one != row.own;
    let targets: Vec<&str> = seen.iter().map(|one| one.target.as_str()).filter(|one| !is_late(one)).collect();
    let may_see = match row.origin.as_slice() {
        // A body that breaks: its head may have gone on before.
        [any] if any == "?" => targets.is_empty() || targets == [row.own.as_str()],
        listed => targets == listed,
    };
    let is_clean = seen.iter().all(|one| {
        let is_one = |name: &str| one.header(name).len() <= 1;
        is_one("host")
            && is_one("content-length")
            && is_one("transfer-encoding")
            && !(one.headers.iter().any(|(name, _)| name.contains('_')))
            && (one.header("content-length").is_empty() || one.header("transfer-encoding").is_empty())
    });
    let found = statuses(&flow);
    let is_right = found == expected && may_see && is_clean && ended && probes == usize::from(!row.closed);
    (!is_right).then(|| {
        format!(
            "{}, {}: answers {found:?} for {expected:?}, origin saw {targets:?} for {:?} ({}), ended: {ended}, probes {probes}",
            row.name, door.name, row.origin, if is_clean { "clean" } else { "not clean" },
        )
    })
}

#[test]
fn what_no_decent_client_sends() {
    let mut plan = Plan::new();
    plan.sidecar("web").limit("head", "1s");
    plan.sidecar("orders").serves(80, 8080, "http").limit("head", "1s");
    let address = plan.address("orders");
    plan.document("policy.yaml", &DOCUMENTS.replace("ADDRESS", &address.to_string()));
    let doors = [
        Door { name: "way out", open: |to| wire::connect(to), origin: Origin::http((address, 8080)) },
        Door { name: "tunnel", open: through_a_tunnel, origin: Origin::http((address, 9000)) },
    ];
    plan.document(
        "services.yaml",
        &format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: orders, namespace: shop}}\nspec:\n  \
             identity: spiffe://demo.postern/ns/shop/sa/orders\n  ports: [{{port: 80, targetPort: 8080, protocol: http}}]\n  \
             endpoints: [{{address: {address}}}]\n"
        ),
    );
    let mesh = plan.start();
    let rows = table();
    assert!(rows.len() >= 100, "the table is here");
    let cases = doors.iter().flat_map(|door| rows.iter().map(move |row| (door, row)));
    let wrong: Vec<String> = cases.filter_map(|(door, row)| wrong(&mesh, door, row)).collect();
    println!("| with | {} of {} rows, at each of two doors |", wrong.len(), rows.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), 2 * rows.len(), wrong.join("\n"));
    for (name, direction) in [("web", "outbound"), ("orders", "inbound")] {
        let series = format!("postern_failures_total{{direction=\"{direction}\",reason=\"bad_request\"}}");
        let count = mesh.sidecar(name).metrics().value(&series);
        assert!(count >= 60.0, "{name} counts what it refuses: {count}");
    }
}

/// What a stock Envoy makes of the same table: rows of which its origin sees more requests than a strict reader reads.
#[test]
fn beside_envoy() {
    if !is_long() || !foreign::need(&["envoy"]) {
        return;
    }
    let (block, directory) = (Block::take(), tempfile::tempdir().expect("a directory can be made"));
    let origin = Origin::http((block.address(1), 8080));
    let at = SocketAddr::from((block.address(2), 8000));
    let _envoy = Envoy::new(at, origin.address()).start(directory.path());
    let rows = table();
    let (mut more, mut behind) = (Vec::new(), 0);
    for row in &rows {
        origin.forget();
        let mut stream = wire::connect(at);
        let _ = stream.write_all(&row.send);
        read(
            &mut stream,
            &mut Vec::new(),
            row.answers.len().max(row.origin.len()) + 1,
            Duration::from_secs(1),
        );
        let seen = origin.requests();
        if seen.len() > row.origin.len() {
            more.push(row.name.as_str());
        }
        behind += usize::from(seen.iter().any(|one| one.target == "/smuggled"));
    }
    println!("| Envoy | {} of {} rows: {more:?} | {behind} with what came behind |", more.len(), rows.len());
}
