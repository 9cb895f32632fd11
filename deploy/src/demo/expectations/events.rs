//! A long-lived stream of events, watched as it comes in.

use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::{chain, request};
use crate::demo::mesh::Mesh;
use crate::demo::plan::{NAMESPACE, Service};

/// A stream being read from the moment it was opened.
#[derive(Debug)]
pub(super) struct Events {
    seen: Arc<Mutex<Seen>>,
    reader: JoinHandle<()>,
}

/// What has come in so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Numbers of the events, in the order of their arrival.
    pub(super) numbers: Vec<u64>,
    pub(super) end: Option<(Instant, End)>,
}

/// How a stream ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// As if the server had said everything.
    Complete,
    /// With an error, as a reset must look to a client.
    Broken(String),
}

impl Events {
    /// Opens `orders`' stream at `path` as the storefront, through both sidecars.
    pub(super) async fn open(mesh: &Mesh, path: &str) -> Result<Self, Failure> {
        let uri = format!("http://orders.{NAMESPACE}{path}");
        let call = request(Method::GET, &uri, &[]).explain("cannot build the request")?;
        let response = mesh.through(Service::Storefront).open(call).await.explain(format!("GET {uri}"))?;
        ensure!(response.status() == StatusCode::OK, "{uri} gives {}", response.status());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let reader = tokio::spawn(read(response.into_body(), Arc::clone(&seen)));
        Ok(Self { seen, reader })
    }

    /// What has come in so far.
    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }
}

impl Seen {
    /// Whether every event so far came once and in order.
    pub(super) fn gapless(&self) -> bool {
        self.numbers.iter().copied().eq((1..).take(self.numbers.len()))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(mut body: Incoming, seen: Arc<Mutex<Seen>>) {
    let mut line = Vec::new();
    loop {
        let end = match body.frame().await {
            Some(Ok(frame)) => {
                for byte in frame.into_data().unwrap_or_default() {
                    if byte != b'\n' {
                        line.push(byte);
                        continue;
                    }
                    let text = String::from_utf8_lossy(&line);
                    if let Some(number) = text.strip_prefix("data: ").and_then(|number| number.parse().ok()) {
                        seen.lock().numbers.push(number);
                    }
                    line.clear();
                }
                continue;
            }
            Some(Err(error)) => End::Broken(chain(&error)),
            None => End::Complete,
        };
        seen.lock().end = Some((Instant::now(), end));
        return;
    }
}
