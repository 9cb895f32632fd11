//! The mesh admin endpoint: who holds which certificate until when, who acknowledged which bundle, who is connected.
//!
//! It has no authorization yet, so it listens on loopback only, and answers only requests that name this machine as their
//! host: a web page whose name was made to resolve to 127.0.0.1 carries its own name there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use http::header::HOST;
use http::uri::Authority as HostPort;
use http::{Request, Response, StatusCode};
use postern_ca::authority::{Authority, Mode, Outlook};
use postern_ca::bundle::{Acknowledgements, Holder};
use postern_ca::store::{ControlStore, Issued, Summary};
use postern_svid::{Bundle, Clock};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use crate::site::{self, Body};
use crate::task;

/// Certificates on one page unless asked otherwise, and at most.
const PAGE: usize = 1_000;

/// Laggards that are named.
const LAGGARDS: usize = 100;

/// What the endpoint reads from.
pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    pub(crate) store: Arc<dyn ControlStore>,
    pub(crate) holders: Arc<Acknowledgements>,
    pub(crate) bundle: watch::Receiver<Arc<Bundle>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) mode: Mode,
}

impl Admin {
    pub(crate) async fn respond<B>(&self, request: &Request<B>) -> Response<Body> {
        if !self.names_us(request) {
            return site::error(
                StatusCode::MISDIRECTED_REQUEST,
                "the Host header must name this endpoint by its address or as localhost",
            );
        }
        match request.uri().path() {
            "/v1/workloads" => self.workloads(),
            "/v1/certs" => self.certificates(request.uri().query().unwrap_or("")).await,
            "/v1/bundle" => self.trust_bundle(),
            "/v1/rotation" => self.rotation().await,
            "/v1/replicas" => self.replicas().await,
            _ => site::error(
                StatusCode::NOT_FOUND,
                "known here: /v1/workloads /v1/certs /v1/bundle /v1/rotation /v1/replicas",
            ),
        }
    }

    /// Exactly one Host, and it is ours.
    fn names_us<B>(&self, request: &Request<B>) -> bool {
        let mut hosts = request.headers().get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let Ok(host) = HostPort::try_from(host.as_bytes()) else { return false };
        if host.as_str().contains('@') || host.port_u16().is_some_and(|port| port != self.address.port()) {
            return false;
        }
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|ip| ip == self.address.ip() || ip.is_loopback())
    }

    fn workloads(&self) -> Response<Body> {
        let sequence = self.bundle.borrow().sequence();
        let workloads: Vec<_> = self.holders.holders(self.clock.wall()).iter().map(Workload::from).collect();
        site::json(StatusCode::OK, &serde_json::json!({ "bundleSequence": sequence, "workloads": workloads }))
    }

    async fn certificates(&self, query: &str) -> Response<Body> {
        let (mut after, mut limit) = (Vec::new(), PAGE);
        for (name, value) in query.split('&').filter(|q| !q.is_empty()).filter_map(|q| q.split_once('=')) {
            let understood = match name {
                "after" => unhex(value).map(|serial| after = serial).is_some(),
                "limit" => match value.parse() {
                    Ok(n @ 1..=PAGE) => {
                        limit = n;
                        true
                    }
                    _ => false,
                },
                _ => false,
            };
            if !understood {
                return site::error(
                    StatusCode::BAD_REQUEST,
                    "known here: after=<serial in hex>, limit=<1 to 1000>",
                );
            }
        }
        let (store, now) = (self.store.clone(), self.clock.wall());
        let read = task::blocking(move || {
            // One more than the page tells whether there is another.
            let mut rows = store.valid_certificates(now, &after, limit + 1)?;
            let next = (rows.len() > limit).then(|| {
                rows.truncate(limit);
                rows.last().map(|row| postern_ca::hex(&row.serial))
            });
            Ok::<_, postern_ca::store::StoreError>((rows, next.flatten()))
        });
        match read.await {
            Ok(Ok((rows, next))) => {
                let rows: Vec<_> = rows.iter().map(Certificate::from).collect();
                site::json(StatusCode::OK, &serde_json::json!({ "certificates": rows, "next": next }))
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "listing certificates failed");
                site::error(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the store cannot be read; the log has the reason",
                )
            }
            Err(_) => site::error(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        }
    }

    /// The steps of rotations that are to come, and what each waits for.
    async fn rotation(&self) -> Response<Body> {
        let (authority, mode) = (self.authority.clone(), self.mode);
        let holders = self.holders.holders(self.clock.wall());
        match task::blocking(move || authority.outlook(&holders, mode)).await {
            Ok(Ok(steps)) => {
                let steps: Vec<_> = steps.iter().map(Pending::from).collect();
                let sequence = self.bundle.borrow().sequence();
                let body = serde_json::json!({ "bundleSequence": sequence, "steps": steps });
                site::json(StatusCode::OK, &body)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "looking at the gates of a rotation failed");
                site::error(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the store cannot be read; the log has the reason",
                )
            }
            Err(_) => site::error(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        }
    }

    /// This replica and what the others said last.
    async fn replicas(&self) -> Response<Body> {
        let (store, now, bundle) = (self.store.clone(), self.clock.wall(), self.bundle.borrow().clone());
        let body = task::blocking(move || {
            let Some(replicas) = store.replicas() else {
                return serde_json::json!({ "replica": null, "others": [] });
            };
            let others: Vec<_> = replicas.heard().iter().map(|said| Other::of(said, now)).collect();
            serde_json::json!({
                "replica": replicas.name(),
                "leads": store.leads(),
                "leader": replicas.leader(),
                "bundleSequence": bundle.sequence(),
                "sha256": postern_ca::hex(bundle.digest()),
                "sharedStore": replicas.trouble().unwrap_or_else(|| "answers".to_owned()),
                "others": others,
            })
        });
        match body.await {
            Ok(body) => site::json(StatusCode::OK, &body),
            Err(_) => site::error(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        }
    }

    fn trust_bundle(&self) -> Response<Body> {
        let bundle = self.bundle.borrow().clone();
        let holders = self.holders.holders(self.clock.wall());
        let acknowledged: Vec<_> = holders.iter().map(Acknowledged::from).collect();
        let behind: Vec<_> = holders
            .iter()
            .filter(|holder| holder.bundle_sequence < bundle.sequence())
            .map(|holder| holder.id.as_str())
            .collect();
        let body = serde_json::json!({
            "trustDomain": bundle.trust_domain().as_str(),
            "sequence": bundle.sequence(),
            "roots": bundle.roots().len(),
            "revocations": bundle.revocations().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "sha256": postern_ca::hex(bundle.digest()),
            "pem": bundle.to_pem(),
            "acknowledged": acknowledged,
            "behind": behind,
        });
        site::json(StatusCode::OK, &body)
    }
}

/// What another replica said last.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Other {
    replica: String,
    seconds_ago: u64,
    fresh: bool,
    bundle_sequence: u64,
    sha256: String,
    sidecars: u64,
    behind: u64,
    ledger_head: Option<String>,
}

impl Other {
    fn of(said: &Summary, now: SystemTime) -> Self {
        Self {
            replica: said.replica.clone(),
            seconds_ago: now.duration_since(said.at()).unwrap_or_default().as_secs(),
            fresh: said.is_fresh(now),
            bundle_sequence: said.bundle_sequence,
            sha256: said.bundle_digest.clone(),
            sidecars: said.sidecars,
            behind: said.behind(said.bundle_sequence),
            ledger_head: said.ledger_head.clone(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Workload {
    id: String,
    lineage: String,
    connected: bool,
    streams: u32,
    bundle_sequence: u64,
    serial: String,
    not_after: String,
    issuer_key_id: String,
    reported: String,
}

impl From<&Holder> for Workload {
    fn from(holder: &Holder) -> Self {
        Self {
            id: holder.id.as_str().to_owned(),
            lineage: holder.lineage.to_string(),
            connected: holder.streams > 0,
            streams: holder.streams,
            bundle_sequence: holder.bundle_sequence,
            serial: postern_ca::hex(&holder.serial),
            not_after: rfc3339(holder.not_after),
            issuer_key_id: postern_ca::hex(&holder.issuer),
            reported: rfc3339(holder.reported),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    serial: String,
    id: String,
    lineage: String,
    issuer_key_id: String,
    issued: String,
    not_before: String,
    not_after: String,
    renew_after: String,
}

impl From<&Issued> for Certificate {
    fn from(issued: &Issued) -> Self {
        Self {
            serial: postern_ca::hex(&issued.serial),
            id: issued.id.as_str().to_owned(),
            lineage: issued.lineage.to_string(),
            issuer_key_id: postern_ca::hex(&issued.issuer),
            issued: rfc3339(issued.issued),
            not_before: rfc3339(issued.not_before),
            not_after: rfc3339(issued.not_after),
            renew_after: rfc3339(issued.renew_after),
        }
    }
}

/// A step that is to come.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pending {
    step: &'static str,
    ca: Option<String>,
    emergency: bool,
    open: bool,
    by_operator: bool,
    waits: Vec<String>,
    /// At most a hundred; `behind` counts all.
    laggards: Vec<Behind>,
    behind: usize,
    latest: Option<String>,
}

#[derive(Serialize)]
struct Behind {
    id: String,
    lineage: Option<String>,
    why: &'static str,
}

impl From<&Outlook> for Pending {
    fn from(outlook: &Outlook) -> Self {
        let laggards = outlook.laggards.iter().take(LAGGARDS).map(|one| Behind {
            id: one.id.as_str().to_owned(),
            lineage: one.lineage.map(|lineage| lineage.to_string()),
            why: one.why,
        });
        Self {
            step: outlook.step.name(),
            ca: outlook.step.label().map(str::to_owned),
            emergency: outlook.is_emergency,
            open: outlook.is_open(),
            by_operator: outlook.by_operator,
            waits: outlook.waits.clone(),
            laggards: laggards.collect(),
            behind: outlook.laggards.len(),
            latest: outlook.latest.map(rfc3339),
        }
    }
}

#[derive(Serialize)]
struct Acknowledged {
    id: String,
    lineage: String,
    sequence: u64,
}

impl From<&Holder> for Acknowledged {
    fn from(holder: &Holder) -> Self {
        Self {
            id: holder.id.as_str().to_owned(),
            lineage: holder.lineage.to_string(),
            sequence: holder.bundle_sequence,
        }
    }
}

fn rfc3339(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|at| at.format(&Rfc3339).ok())
        // What a sidecar reports may lie beyond the year 9999.
        .unwrap_or_else(|| "never".to_owned())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || text.len() > 40 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
