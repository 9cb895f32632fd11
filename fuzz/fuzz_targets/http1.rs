//! A stranger's HTTP/1, whole: through the server, the policy and the workload's connection. The workload sees at most what a
//! strict reader sees in the same bytes, request by request; however they are cut the verdict is the same; and nothing waits for
//! longer than the deadlines say.

#![no_main]

mod http;

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use http::strict::{Message, Reader};
use http::workload::Seen;
use http::{H1, Pipe, SIDECAR};
use libfuzzer_sys::fuzz_target;
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use postern_proxy::connections::Direction;
use postern_proxy::fuzzing;
use postern_proxy::http::{headers, inbound, server};
use postern_proxy::worker::Worker;
use postern_svid::SpiffeId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

// The first byte says how the rest is cut, and whether the caller leaves at its end.
fuzz_target!(|data: &[u8]| {
    let Some((how, bytes)) = data.split_first() else { return };
    let (cut, leaves) = (1 + usize::from(how >> 1), how & 1 == 0);
    same_in_every_cut(bytes, cut);
    let strict = strictly(bytes);
    for message in &strict {
        hygiene(message);
    }
    let seen = http::runtime().block_on(serve(bytes, cut, leaves));
    at_most(&seen, &strict, bytes);
});

fn same_in_every_cut(bytes: &[u8], cut: usize) {
    let whole = fuzzing::framing(4_096, [bytes]);
    for cut in [cut, 1, 7] {
        assert_eq!(fuzzing::framing(4_096, bytes.chunks(cut)), whole, "in parts of {cut}");
    }
}

/// What a strict reader sees, up to where nobody knows what comes.
fn strictly(bytes: &[u8]) -> Vec<Message> {
    let (mut reader, mut all) = (Reader::new(bytes), Vec::new());
    while let Ok(Some(message)) = reader.request() {
        let is_last = message.may_switch() || !message.whole;
        all.push(message);
        if is_last {
            break;
        }
    }
    all
}

/// Everything goes in, then nothing; what reached the workload.
async fn serve(bytes: &[u8], cut: usize, leaves: bool) -> Vec<Message> {
    let registered = http::caller();
    let connection = Arc::clone(registered.connection());
    let worker = Worker::new(Arc::clone(&SIDECAR));
    let seen = Seen::default();
    let mut recording = Vec::new();
    for _ in 0..4 {
        let far = http::lend(&worker, &connection).await;
        recording.push(tokio::spawn(http::workload::record(far, Arc::clone(&seen))));
    }
    let (caller, edge) = tokio::io::duplex(64 << 10);
    let limits = SIDECAR.snapshots.limits();
    let counts = SIDECAR.metrics.server(Direction::Inbound);
    let of_handler = Arc::clone(&worker);
    let serving = tokio::spawn(async move {
        let handler = move |request, pending| {
            inbound::request(Arc::clone(&of_handler), Arc::clone(&connection), Some(H1), request, pending)
        };
        server::serve_h1(Pipe(edge), &limits, &counts, handler, std::future::pending()).await;
    });
    let (mut reads, mut writes) = tokio::io::split(caller);
    let reading = tokio::spawn(async move {
        let mut answers = Vec::new();
        let _ = reads.read_to_end(&mut answers).await;
        answers.len()
    });
    for part in bytes.chunks(cut) {
        if writes.write_all(part).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    if !leaves {
        // Longer than every deadline: what still waits then waits for a body, which may take its time.
        sleep(Duration::from_secs(200)).await;
    }
    let _ = writes.shutdown().await;
    let ended = timeout(Duration::from_secs(200), serving).await;
    ended.expect("a connection ends with its caller").expect("no panic");
    let answered = timeout(Duration::from_secs(1), reading).await.expect("it is closed").expect("no panic");
    assert!(answered < 1 << 20, "{answered} bytes of answers");
    drop(worker);
    for one in recording {
        timeout(Duration::from_secs(200), one).await.expect("nothing is kept").expect("no panic");
    }
    Arc::try_unwrap(seen).expect("all have ended").into_inner().expect("no panic")
}

/// Each message that the workload saw is one of the strict reader's, in their order, and canonical.
fn at_most(seen: &[Message], strict: &[Message], bytes: &[u8]) {
    let mut left = strict.iter();
    for one in seen {
        let is_same = |other: &Message| {
            let body = if one.whole {
                other.whole && other.body == one.body
            } else {
                other.body.starts_with(&one.body)
            };
            body && other.line[0] == one.line[0] && Some(one.line[1].as_str()) == path(other).as_deref() && {
                let sent: Vec<_> = host(other).into_iter().collect();
                let host: Vec<_> =
                    one.all("host").iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
                sent == host
            }
        };
        assert!(
            left.any(is_same),
            "the workload saw {one:?}\na strict reader sees {strict:#?}\nin {:?}",
            String::from_utf8_lossy(bytes)
        );
    }
}

/// The canonical path of a request's target, whatever its form.
fn path(message: &Message) -> Option<String> {
    let target = message.line[1].as_str();
    let target = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', '?']) => match rest.find(['/', '?']) {
            Some(at) if rest[at..].starts_with('/') => rest[at..].to_owned(),
            Some(at) => format!("/{}", &rest[at..]),
            None => "/".to_owned(),
        },
        _ => target.to_owned(),
    };
    let method = CanonMethod::parse(&message.line[0]).ok()?;
    let path = CanonPath::parse_for(&method, &target, &PathOptions::default()).ok()?;
    Some(path.path_and_query().to_owned())
}

/// The canonical host.
fn host(message: &Message) -> Option<String> {
    let target = message.line[1].as_str();
    let of_target =
        target.split_once("://").map(|(_, rest)| rest.split(['/', '?']).next().unwrap_or_default());
    let line = message.all("host").first().map(|line| String::from_utf8_lossy(line).into_owned());
    let text = of_target.filter(|_| !target.starts_with('/')).map(str::to_owned).or(line)?;
    Some(CanonHost::parse(&text).ok()?.to_string())
}

/// Whatever fields a head has, several `Connection` lines among them: what is passed on names no hop, and nobody but the caller.
fn hygiene(message: &Message) {
    let mut fields = HeaderMap::new();
    for (name, value) in &message.fields {
        let (name, value) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value));
        if let (Ok(name), Ok(value)) = (name, value) {
            fields.append(name, value);
        }
    }
    let named: Vec<HeaderName> = fields
        .get_all("connection")
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !["host", "content-length", "content-type", "te"].contains(&name.as_str()))
        .collect();
    headers::strip_hop_by_hop(&mut fields);
    headers::strip_postern(&mut fields);
    headers::strip_forged_identity(&mut fields);
    headers::strip_overrides(&mut fields);
    for name in named {
        assert!(!fields.contains_key(&name), "{name} was named by Connection: {message:?}");
    }
    let caller = SpiffeId::parse(http::CALLER).expect("a literal");
    headers::add_identity(&mut fields, Some(&caller));
    let mut forwarded = Message { line: ["GET", "/", "HTTP/1.1"].map(str::to_owned), ..Message::default() };
    fields.insert("host", HeaderValue::from_static("orders.shop"));
    for (name, value) in &fields {
        forwarded.fields.push((name.as_str().to_owned(), value.as_bytes().to_vec()));
    }
    assert!(!fields.contains_key("transfer-encoding"));
    http::workload::check(&forwarded);
}
