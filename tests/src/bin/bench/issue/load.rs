//! Clients that ask as fast as they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use postern_svid::{Bundles, Clock as _, SystemClock, verify_both};
use postern_tests::Mesh;
use postern_tests::identity::{self, Client};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::place::{self, Holder};
use crate::Failure;
use crate::machine::{self, CpuTime};
use crate::options::Options;

/// More certificates a second than anybody gets: so many requests are made before the clock runs.
const MOST: usize = 6_000;
/// Of the answers, one in so many is verified anew by the client, after the round.
const CHECKED: usize = 10;

/// One round.
pub(crate) struct Round {
    pub(crate) latencies: Vec<Duration>,
    seconds: f64,
    server: CpuTime,
    client: CpuTime,
}

impl Round {
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }

    /// The control plane's processor time for each certificate.
    pub(crate) fn server_us(&self) -> f64 {
        self.server.total() * 1e6 / self.latencies.len() as f64
    }

    pub(crate) fn client_us(&self) -> f64 {
        self.client.total() * 1e6 / self.latencies.len() as f64
    }

    /// In milliseconds.
    pub(crate) fn percentile(&self, of: f64) -> f64 {
        let at = (self.latencies.len() as f64 * of) as usize;
        self.latencies[at.min(self.latencies.len() - 1)].as_secs_f64() * 1e3
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "per_second": self.per_second(),
            "p50_ms": self.percentile(0.5),
            "p99_ms": self.percentile(0.99),
            "server_us": self.server_us(),
            "client_us": self.client_us(),
        })
    }
}

/// A connection and whose it is.
struct Lane {
    client: Client,
    holder: Holder,
}

/// All rounds.
pub(crate) fn run(mesh: &Mesh, holders: Vec<Holder>, options: &Options) -> Result<Vec<Round>, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("threads: {error}"))?;
    let bundles = identity::bundles(&mesh.control);
    runtime.block_on(async {
        eprintln!("connecting {} clients", holders.len());
        let mut lanes = Vec::with_capacity(holders.len());
        for (at, holder) in holders.into_iter().enumerate() {
            // New connections of one address are bounded; sidecars are on machines of their own.
            let address = [127, 0, 1, (at % 200) as u8 + 1].into();
            let client = Client::connect_from(Some(address), &mesh.control, Some(&holder.svid)).await;
            let client = client.ok_or_else(|| {
                let log = mesh.control.process().log();
                let last: Vec<&str> = log.lines().rev().take(3).collect();
                format!("client {at} was not let in; the control plane's last lines:\n{}", last.join("\n"))
            })?;
            lanes.push(Lane { client, holder });
        }
        let mut rounds = Vec::new();
        for round in 1..=options.rounds {
            eprintln!("round {round} of {}", options.rounds);
            let (done, same) = measure(mesh, lanes, options, &bundles).await?;
            (lanes, _) = (same, rounds.push(done));
        }
        Ok(rounds)
    })
}

async fn measure(
    mesh: &Mesh,
    lanes: Vec<Lane>,
    options: &Options,
    bundles: &Bundles,
) -> Result<(Round, Vec<Lane>), Failure> {
    let count = MOST * options.length.as_secs() as usize;
    let requests: Result<Vec<_>, Failure> =
        (0..count).map(|_| place::request().map(|(_, csr)| csr)).collect();
    let (requests, next) = (Arc::new(requests?), Arc::new(AtomicUsize::new(0)));
    let mut shares: Vec<Vec<Lane>> = (0..options.connections).map(|_| Vec::new()).collect();
    for (at, lane) in lanes.into_iter().enumerate() {
        shares[at % options.connections].push(lane);
    }
    let server = mesh.control.process().id();
    let before = (machine::cpu_time(server)?, machine::cpu_time(std::process::id())?);
    let began = Instant::now();
    let ends = began + options.length;
    let workers: Vec<_> = shares
        .into_iter()
        .map(|mut lanes| {
            let (requests, next) = (requests.clone(), next.clone());
            tokio::spawn(async move {
                let (mut latencies, mut chains, mut at) = (Vec::new(), Vec::new(), 0);
                while Instant::now() < ends {
                    let Some(csr) = requests.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let share = lanes.len();
                    let Lane { client, holder } = &mut lanes[at % share];
                    let request = identity::request(csr.clone(), &holder.id, None, Some(&holder.svid));
                    let asked = Instant::now();
                    let answer = client.ask(request).await.map_err(|status| format!("refused: {status}"))?;
                    latencies.push(asked.elapsed());
                    if at % CHECKED == 0 {
                        chains.push((holder.id.clone(), answer.chain_der));
                    }
                    at += 1;
                }
                Ok::<_, Failure>((lanes, latencies, chains))
            })
        })
        .collect();
    let (mut lanes, mut latencies, mut chains) = (Vec::new(), Vec::new(), Vec::new());
    for worker in workers {
        let (share, own, some) = worker.await.map_err(|error| error.to_string())??;
        lanes.extend(share);
        latencies.extend(own);
        chains.extend(some);
    }
    let seconds = began.elapsed().as_secs_f64();
    let server = machine::cpu_time(server)? - before.0;
    let client = machine::cpu_time(std::process::id())? - before.1;
    for (id, chain) in chains {
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let peer = verify_both(&chain, bundles, SystemClock.wall()).map_err(|error| error.to_string())?;
        if *peer.id() != id {
            return Err(format!("{id} got a certificate of {}", peer.id()));
        }
    }
    if latencies.is_empty() {
        return Err("nothing was answered".to_owned());
    }
    latencies.sort();
    Ok((Round { latencies, seconds, server, client }, lanes))
}
