//! Customers who never stop: constant requests through both hops, each answer checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::Client;
use crate::demo::mesh::Mesh;
use crate::demo::plan::Service;

const WORKERS: u32 = 4;
/// About 200 requests a second over both hops: constant, and far from busy.
const PAUSE: Duration = Duration::from_millis(15);
/// Enough to see what is wrong; all are counted.
const FAILURES_KEPT: usize = 3;
/// Fewer would prove little, and more may be too much for a machine that compiles something beside the demo.
const LEAST_PER_SECOND: u64 = 5;

/// Requests under way until [`Load::finish`].
#[derive(Debug)]
pub(super) struct Load {
    begun: Instant,
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    workers: JoinSet<()>,
}

/// What became of them.
#[derive(Clone, Debug, Default)]
struct Tally {
    requests: u64,
    failed: u64,
    first_failures: Vec<String>,
    slowest: Duration,
}

impl Load {
    /// Starts the workers.
    pub(super) fn start(mesh: &Mesh) -> Self {
        let begun = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let storefront = Arc::new(mesh.direct(Service::Storefront));
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let (storefront, stop, tally) = (Arc::clone(&storefront), Arc::clone(&stop), Arc::clone(&tally));
            workers.spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let sent = Instant::now();
                    let outcome = checkout(&storefront, &format!("load-{worker}-{number}")).await;
                    tally.lock().note(outcome, sent, begun);
                    sleep(PAUSE).await;
                }
            });
        }
        Self { begun, stop, tally, workers }
    }

    /// Lets the requests under way end; fails unless every single one succeeded.
    pub(super) async fn finish(mut self) -> Result<String, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.explain("a worker of the load broke")?;
        }
        let elapsed = self.begun.elapsed();
        let tally = self.tally.lock().clone();
        let summary =
            format!("{} requests in {:.1} s, {} failed", tally.requests, elapsed.as_secs_f64(), tally.failed);
        ensure!(tally.failed == 0, "{summary}: {}", tally.first_failures.join("; "));
        let enough = tally.requests >= LEAST_PER_SECOND * elapsed.as_secs();
        ensure!(enough, "{summary}: too few to tell anything, the slowest took {:?}", tally.slowest);
        Ok(format!("{summary}, the slowest took {} ms", tally.slowest.as_millis()))
    }
}

impl Tally {
    fn note(&mut self, outcome: Result<(), Failure>, sent: Instant, begun: Instant) {
        self.requests += 1;
        self.slowest = self.slowest.max(sent.elapsed());
        if let Err(failure) = outcome {
            self.failed += 1;
            if self.first_failures.len() < FAILURES_KEPT {
                let at = sent.duration_since(begun).as_secs_f64();
                self.first_failures.push(format!("after {at:.1} s: {failure}"));
            }
        }
    }
}

/// One customer: the answer must be for this very call and from all three services.
async fn checkout(storefront: &Client, id: &str) -> Result<(), Failure> {
    let reply = storefront.get(&format!("/v1/checkout/{id}"), &[]).await.explain("no answer")?;
    ensure!(reply.status == StatusCode::OK, "{}: {}", reply.status.as_u16(), reply.excerpt());
    let body = reply.json();
    ensure!(
        body.pointer("/order/stock/item").is_some_and(|item| item == id),
        "a wrong answer: {}",
        reply.excerpt()
    );
    Ok(())
}
