//! A workload that remembers what reached it, and insists on what every head must be behind a sidecar.

use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::CALLER;
use super::strict::{Message, Reader};

/// What reached the workload.
pub type Seen = Arc<Mutex<Vec<Message>>>;

/// Serves HTTP/1 until the pipe ends.
pub async fn record(mut io: DuplexStream, seen: Seen) {
    let (mut held, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        loop {
            let mut reader = Reader::new(&held);
            let Ok(read) = reader.request() else {
                panic!("the workload got {:?}", String::from_utf8_lossy(&held))
            };
            let Some(message) = read.filter(|message| message.whole) else { break };
            let left = reader.rest().len();
            check(&message);
            let end: &[u8] = if message.line[0] == "HEAD" { b"" } else { b"ok" };
            held.drain(..held.len() - left);
            seen.lock().expect("no panic").push(message);
            let _ = io.write_all(&[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", end].concat()).await;
        }
        match io.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => held.extend_from_slice(&buffer[..count]),
        }
    }
    // What did not come whole.
    if let Ok(Some(message)) = Reader::new(&held).request() {
        check(&message);
        seen.lock().expect("no panic").push(message);
    }
}

/// No field of a head belongs to another hop, to a sidecar or to nobody, whatever the caller sent.
pub fn check(message: &Message) {
    assert_eq!(message.line[2], "HTTP/1.1");
    let identity = format!("URI={CALLER}");
    assert_eq!(message.all("x-forwarded-client-cert"), [identity.as_bytes()], "{message:?}");
    assert_eq!(message.all("host").len(), 1, "{message:?}");
    let forbidden = [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "http2-settings",
        "x-http-method-override",
        "x-method-override",
        "x-http-method",
        "x-original-url",
        "x-rewrite-url",
    ];
    for (name, value) in &message.fields {
        let name = name.to_ascii_lowercase();
        assert!(!name.contains('_') && !name.starts_with("postern-"), "{name} in {message:?}");
        assert!(!forbidden.contains(&name.as_str()), "{name} in {message:?}");
        // What our own connection needs is ours.
        assert!(name != "connection" || value == b"close", "{name} in {message:?}");
        assert!(name != "te" || value == b"trailers", "{name} in {message:?}");
        assert!(name != "upgrade", "{name} in {message:?}");
    }
    for (name, _) in &message.trailers {
        let name = name.to_ascii_lowercase().replace('_', "-");
        let in_heads =
            ["host", "content-length", "transfer-encoding", "authorization", "x-forwarded-client-cert"];
        assert!(!in_heads.contains(&name.as_str()) && !name.starts_with("postern-"), "{name} in {message:?}");
        assert!(!forbidden.contains(&name.as_str()), "{name} in {message:?}");
    }
}
