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

// The first byte says in which protocol, to which method, how it is cut, and whether the workload leaves then.
fuzz_target!(|data: &[u8]| {
    let Some((how, bytes)) = data.split_first() else { return };
    let (is_h2, method, leaves) = (how & 1 == 1, ["GET", "HEAD"][usize::from(how >> 1 & 1)], how & 4 == 0);
    let cut = 1 + usize::from(how >> 3) * 9;
    let answers = http::runtime().block_on(ask(bytes, is_h2, method, cut, leaves));
    check(&answers, bytes, is_h2, method, leaves, cut);
});

async fn ask(bytes: &[u8], is_h2: bool, method: &str, cut: usize, leaves: bool) -> Vec<u8> {
    let registered = http::caller();
    let connection = Arc::clone(registered.connection());
    let worker = Worker::new(Arc::clone(&SIDECAR));
    // The second is asked if the first is of no use any more.
    let good = if is_h2 { None } else { Some(http::lend(&worker, &connection).await) };
    let (near, evil) = tokio::io::duplex(64 << 10);
    let evil = tokio::spawn(answer(evil, bytes.to_vec(), cut, leaves, is_h2));
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

/// Waits for a question, and answers with these bytes.
async fn answer(mut io: DuplexStream, bytes: Vec<u8>, cut: usize, leaves: bool, is_h2: bool) {
    let mut buffer = vec![0; 16 << 10];
    if !is_h2 && !matches!(io.read(&mut buffer).await, Ok(1..)) {
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
    if let Ok(Some(second)) = final_answer(&mut reader, "GET") {
        let is_decent = second.line[1] == "200" && second.body == b"decent";
        // In pieces, what comes late may be an answer to the second question.
        let is_late = bytes.len() > cut;
        assert!(is_h2 || is_decent || is_ours(&second) || is_late, "{}", told("one answer became another's"));
    }
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
