//! A hostile workload's bytes as answers, over HTTP/1 and HTTP/2. The caller never gets a part that looks whole, nothing of one
//! answer becomes another's, and it never waits when the workload has left.

#![no_main]

mod http;

use std::sync::Arc;
use std::time::Duration;

use http::strict::{Malformed, Message, Reader};
use http::{H1, H2, Pipe, SIDECAR};
use libfuzzer_sys::fuzz_target;
use postern_proxy::connections::Direction;
use postern_proxy::fuzzing;
use postern_proxy::http::{inbound, server};
use postern_proxy::worker::Worker;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::{sleep, timeout};

// The first byte says in which protocol, to which method, how it is cut, whether the workload leaves then, and whether it waits
// for a question over HTTP/2.
fuzz_target!(|data: &[u8]| {
    let Some((how, bytes)) = data.split_first() else { return };
    let (is_h2, method, leaves) = (how & 1 == 1, ["GET", "HEAD"][usize::from(how >> 1 & 1)], how & 4 == 0);
    let cut = 1 + usize::from(how >> 3 & 15) * 9;
    let way = match (is_h2, how >> 7 == 1) {
        (false, _) => Way::H1,
        (true, false) => Way::H2,
        (true, true) => Way::H2Unasked,
    };
    let answers = http::runtime().block_on(ask(bytes, way, method, cut, leaves));
    check(&answers, bytes, is_h2, method, leaves, cut);
});

/// How the workload answers.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Way {
    /// Over HTTP/1, once it is asked.
    H1,
    /// Over HTTP/2, once it is asked: the preliminaries are in order.
    H2,
    /// Over HTTP/2 at once: these are the preliminaries.
    H2Unasked,
}

async fn ask(bytes: &[u8], way: Way, method: &str, cut: usize, leaves: bool) -> Vec<u8> {
    let is_h2 = way != Way::H1;
    let registered = http::caller();
    let connection = Arc::clone(registered.connection());
    let worker = Worker::new(Arc::clone(&SIDECAR));
    // The second is asked if the first is of no use any more.
    let good = if is_h2 { None } else { Some(http::lend(&worker, &connection).await) };
    let (near, evil) = tokio::io::duplex(64 << 10);
    let evil = tokio::spawn(answer(evil, bytes.to_vec(), cut, leaves, way));
    let lent = match is_h2 {
        true => {
            timeout(Duration::from_secs(60), fuzzing::lend_h2(&worker, H2, &connection, Pipe(near))).await
        }
        false => Ok(fuzzing::lend_h1(&worker, H1, &connection, Pipe(near)).await),
    };
    if !matches!(lent, Ok(Ok(()))) {
        // It is none of HTTP/2's.
        return Vec::new();
    }
    if let Some(good) = good {
        tokio::spawn(decent(good));
    }
    let (mut caller, edge) = tokio::io::duplex(64 << 10);
    let limits = SIDECAR.snapshots.limits();
    let counts = SIDECAR.metrics.server(Direction::Inbound);
    let to = if is_h2 { H2 } else { H1 };
    let serving = tokio::spawn(async move {
        let handler = move |request, pending| {
            inbound::request(Arc::clone(&worker), Arc::clone(&connection), Some(to), request, pending)
        };
        server::serve_h1(Pipe(edge), &limits, &counts, handler, std::future::pending()).await;
    });
    let first = format!("{method} /first HTTP/1.1\r\nHost: orders.shop\r\n\r\n");
    let second = "GET /second HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";
    // Behind a question that waits, hyper reads no further, and does not see that its caller has gone.
    let asked = if leaves { format!("{first}{second}") } else { first };
    let _ = caller.write_all(asked.as_bytes()).await;
    let mut answers = Vec::new();
    // A workload that stays and says nothing more may take its time; who asked has gone by then.
    let whole = timeout(Duration::from_secs(3_600), caller.read_to_end(&mut answers)).await;
    assert!(whole.is_ok() || !leaves, "the workload left, and its caller still waits");
    drop(caller);
    let ended = timeout(Duration::from_secs(200), serving).await;
    ended.expect("a connection ends with its caller").expect("no panic");
    timeout(Duration::from_secs(200), evil).await.expect("so does the workload's").expect("no panic");
    answers
}

/// Says hello over HTTP/2, and waits for a request.
async fn greet(io: &mut DuplexStream) -> std::io::Result<()> {
    const PREFACE: usize = 24;
    const HEADERS: u8 = 1;
    // SETTINGS that say nothing, and the answer to the other's.
    io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0]).await?;
    io.read_exact(&mut [0; PREFACE]).await?;
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        io.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] == HEADERS {
            return Ok(());
        }
    }
}

/// Waits for a question, and answers with these bytes.
async fn answer(mut io: DuplexStream, bytes: Vec<u8>, cut: usize, leaves: bool, way: Way) {
    let mut buffer = vec![0; 16 << 10];
    let is_asked = match way {
        Way::H1 => matches!(io.read(&mut buffer).await, Ok(1..)),
        Way::H2 => greet(&mut io).await.is_ok(),
        Way::H2Unasked => true,
    };
    if !is_asked {
        return;
    }
    for part in bytes.chunks(cut) {
        if io.write_all(part).await.is_err() {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    if leaves {
        let _ = io.shutdown().await;
    }
    while matches!(io.read(&mut buffer).await, Ok(1..)) {}
}

/// Answers as it should.
async fn decent(mut io: DuplexStream) {
    let mut buffer = vec![0; 16 << 10];
    while matches!(io.read(&mut buffer).await, Ok(1..)) {
        let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\ndecent").await;
    }
}

fn check(answers: &[u8], bytes: &[u8], is_h2: bool, method: &str, leaves: bool, cut: usize) {
    let mut reader = Reader::new(answers);
    let told = |what: &str| {
        format!("{what}: {:?} of {:?}", String::from_utf8_lossy(answers), String::from_utf8_lossy(bytes))
    };
    let Ok(first) = final_answer(&mut reader, method) else {
        panic!("{}", told("no answer of ours is malformed"))
    };
    let Some(first) = first else { return };
    let is_ours = |message: &Message| !message.all("postern-error").is_empty();
    // A workload that closes while it is asked may be asked again, elsewhere.
    let is_repeated = first.body == b"decent" || first.all("content-length") == [b"6"];
    if first.whole && !is_ours(&first) && !is_repeated && !is_h2 && leaves {
        match final_answer(&mut Reader::new(bytes), method) {
            // It is no answer to a strict reader; to a lenient one it may be.
            Err(Malformed) => {}
            Ok(said) => {
                let said = said.unwrap_or_else(|| panic!("{}", told("nothing became an answer")));
                assert!(said.whole, "{}", told("a part looks whole"));
                assert_eq!(
                    (&said.line[1], &said.body),
                    (&first.line[1], &first.body),
                    "{}",
                    told("another answer")
                );
            }
        }
    }
    if first.whole && !is_ours(&first) && is_h2 {
        let (ended, body) = said_over_h2(bytes);
        let is_bodiless = method == "HEAD" || matches!(first.line[1].as_str(), "204" | "205" | "304");
        if is_bodiless || first.all("content-length").is_empty() {
            assert!(ended, "{}", told("a part looks whole"));
        }
        if !is_bodiless {
            // As many bytes as were promised are an answer, whatever comes behind them.
            let is_all = if first.all("content-length").is_empty() {
                body == first.body
            } else {
                body.starts_with(&first.body)
            };
            assert!(is_all, "{}", told("another answer"));
        }
    }
    if let Ok(Some(second)) = final_answer(&mut reader, "GET") {
        let is_decent = second.line[1] == "200" && second.body == b"decent";
        // In pieces, what comes late may be an answer to the second question.
        let is_late = bytes.len() > cut;
        assert!(is_h2 || is_decent || is_ours(&second) || is_late, "{}", told("one answer became another's"));
    }
}

/// What the frames of the only stream say, read as generously as can be: whether it ends in order, and its body.
fn said_over_h2(mut bytes: &[u8]) -> (bool, Vec<u8>) {
    const PADDED: u8 = 8;
    let mut body = Vec::new();
    while let [high, middle, low, kind, flags, _, _, _, stream, rest @ ..] = bytes {
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        let Some((payload, behind)) = rest.split_at_checked(length) else { break };
        if *stream == 1 && *kind == 0 {
            let padding =
                payload.first().filter(|_| flags & PADDED != 0).map(|count| 1 + usize::from(*count));
            let end = payload.len().saturating_sub(padding.unwrap_or(1) - 1);
            body.extend_from_slice(payload.get(usize::from(padding.is_some())..end).unwrap_or_default());
        }
        if *stream == 1 && *kind < 2 && flags & 1 == 1 {
            return (true, body);
        }
        bytes = behind;
    }
    (false, body)
}

/// The answer behind the informational ones.
fn final_answer(reader: &mut Reader<'_>, method: &str) -> Result<Option<Message>, Malformed> {
    loop {
        match reader.answer(method)? {
            Some(message) if message.line[1].starts_with('1') => {}
            other => return Ok(other),
        }
    }
}
