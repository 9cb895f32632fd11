//! The identity API over gRPC: certificates out, bundles down, acknowledgements up.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use postern_ca::attest::Possession;
use postern_ca::bundle::{Acknowledgements, to_proto};
use postern_ca::issue::{Evidence, Issuer, Proof, Reply, Request as CaRequest};
use postern_ca::jwt::{JwtAuthority, JwtRequest};
use postern_ca::lineage::LineageId;
use postern_ca::metrics::Metrics;
use postern_ca::proto::identity_server::{Identity, IdentityServer};
use postern_ca::proto::issue_request::Proof as WireProof;
use postern_ca::proto::{
    Directive, Federation, IssueJwtRequest, IssueJwtResponse, IssueRequest, IssueResponse, RenewNow, Report,
    directive,
};
use postern_ca::store::Issued;
use postern_svid::{Bundle, Clock, PeerSvid, Revoked};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::connection::{Peer, until};
use crate::federation::Published;
use crate::rotation::Renewal;
use crate::task::{self, Tasks};

/// The longest message that is read: a request of 4 KiB, an id of 2 KiB and room.
const MESSAGE: usize = 16 * 1024;
/// For one call; a stream has this long to be set up.
pub(crate) const CALL: Duration = Duration::from_secs(5);
/// A sidecar that does not read for so long is gone.
const STALLED: Duration = Duration::from_secs(30);
/// Reports a second that an honest sidecar stays far below: it reports when something changed.
const REPORTS: u32 = 20;

/// The API.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) jwt: Option<Arc<JwtAuthority>>,
    pub(crate) holders: Arc<Acknowledgements>,
    pub(crate) bundle: watch::Receiver<Arc<Bundle>>,
    pub(crate) renewal: watch::Receiver<Renewal>,
    /// Bundles of other trust domains.
    pub(crate) federated: Published,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
}

impl Api {
    /// As a gRPC service with its limits.
    pub(crate) fn service(self) -> IdentityServer<Self> {
        IdentityServer::new(self).max_decoding_message_size(MESSAGE).max_encoding_message_size(5 << 18)
    }
}

type Directives = Pin<Box<dyn Stream<Item = Result<Directive, Status>> + Send>>;

#[tonic::async_trait]
impl Identity for Api {
    type WatchStream = Directives;

    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let peer = peer_of(&request)?;
        let permit = self.issuer.admit(peer.source.ip(), peer.svid.as_deref())?;
        let issuer = self.issuer.clone();
        let message = request.into_inner();
        let work = task::blocking(move || {
            // The place is taken until the work is done, even if the caller has long hung up.
            let _permit = permit;
            issue(&issuer, &peer, &message)
        });
        match tokio::time::timeout(CALL, work).await {
            Ok(Ok(reply)) => Ok(Response::new(reply?)),
            Ok(Err(_)) => Err(Status::internal("the CA failed; the control plane's log has the reason")),
            Err(_) => Err(Status::deadline_exceeded("the CA took too long; ask again with the same key")),
        }
    }

    async fn issue_jwt(
        &self,
        request: Request<IssueJwtRequest>,
    ) -> Result<Response<IssueJwtResponse>, Status> {
        let peer = peer_of(&request)?;
        let svid = peer.svid.ok_or_else(|| Status::unauthenticated("this call needs a client SVID"))?;
        let jwt = self.jwt.clone().ok_or_else(|| {
            Status::unimplemented(
                "this CA issues no JWT-SVIDs: the control plane's configuration has no `jwt`",
            )
        })?;
        let permit = jwt.admit(&svid)?;
        let message = request.into_inner();
        let work = task::blocking(move || {
            let _permit = permit;
            let IssueJwtRequest { spiffe_id, audience, ttl_seconds } = &message;
            jwt.issue(JwtRequest { peer: &svid, id: spiffe_id, audience, ttl_seconds: *ttl_seconds })
        });
        match tokio::time::timeout(CALL, work).await {
            Ok(Ok(reply)) => {
                let reply = reply?;
                Ok(Response::new(IssueJwtResponse {
                    token: reply.token,
                    expires_unix_ms: unix_ms(reply.expires),
                    ca_time_unix_ms: unix_ms(reply.now),
                }))
            }
            Ok(Err(_)) => Err(Status::internal("the CA failed; the control plane's log has the reason")),
            Err(_) => Err(Status::deadline_exceeded("the CA took too long; ask again")),
        }
    }

    async fn watch(&self, request: Request<Streaming<Report>>) -> Result<Response<Directives>, Status> {
        let peer = peer_of(&request)?;
        let svid = peer.svid.ok_or_else(|| Status::unauthenticated("this stream needs a client SVID"))?;
        if svid.not_after() < self.clock.wall() {
            return Err(expired());
        }
        let (issuer, asked) = (self.issuer.clone(), svid.clone());
        let found = task::blocking(move || issuer.known(&asked)).await;
        let (issued, lineage) = match found {
            Ok(Ok(Some((issued, lineage)))) if issued.id == *svid.id() => (issued, lineage.id),
            Ok(Ok(_)) => {
                return Err(Status::unauthenticated("this CA does not know the connection's certificate"));
            }
            Ok(Err(_)) | Err(_) => {
                return Err(Status::unavailable(
                    "the store cannot be read; the control plane's log has the reason",
                ));
            }
        };
        let (sender, receiver) = mpsc::channel(4);
        let stream = Watch {
            open: Open::new(self, lineage, &svid),
            api: self.clone(),
            svid,
            issued,
            reports: Reports { since: self.clock.monotonic(), count: 0 },
        };
        self.tasks.spawn(stream.serve(request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn issue(issuer: &Issuer, peer: &Peer, message: &IssueRequest) -> Result<IssueResponse, Status> {
    let proof = proof(peer, message)?;
    let reply = issuer.issue(CaRequest {
        csr: &message.csr_der,
        id: &message.spiffe_id,
        ttl_seconds: message.ttl_seconds,
        predecessor: &message.predecessor_serial,
        proof,
    })?;
    Ok(response(&reply))
}

fn proof<'m>(peer: &'m Peer, message: &'m IssueRequest) -> Result<Proof<'m>, Status> {
    let svid = peer.svid.as_deref();
    let evidence = match (&message.proof, svid) {
        (Some(WireProof::JoinToken(token)), _) => return Ok(Proof::JoinToken(token)),
        (None, Some(svid)) => return Ok(Proof::Svid(svid)),
        (None, None) => {
            return Err(Status::unauthenticated(
                "neither a proof nor a client SVID; make a join token (postern ca token create), or attest",
            ));
        }
        (Some(WireProof::KubernetesToken(token)), _) => Evidence::Kubernetes(token),
        (Some(WireProof::OidcToken(token)), _) => Evidence::Oidc(token),
        (Some(WireProof::X509pop(shown)), _) => {
            let channel = peer.channel.as_ref();
            let channel = channel.ok_or_else(|| Status::internal("the connection has no secret to sign"))?;
            Evidence::X509Pop(Possession {
                chain: &shown.chain_der,
                scheme: shown.scheme,
                signature: &shown.signature,
                channel,
            })
        }
        (Some(WireProof::PeerProcess(_)), _) => match &peer.process {
            Some(process) => Evidence::Unix(process),
            None => {
                return Err(Status::invalid_argument(
                    "the kernel tells of processes over the Unix socket alone",
                ));
            }
        },
    };
    let renews = match (message.predecessor_serial.is_empty(), svid) {
        (true, _) => None,
        (false, Some(svid)) => Some(svid),
        (false, None) => {
            return Err(Status::invalid_argument(
                "a predecessor is named, and the connection has no client SVID",
            ));
        }
    };
    Ok(Proof::Attested(evidence, renews))
}

fn response(reply: &Reply) -> IssueResponse {
    IssueResponse {
        chain_der: reply.chain.iter().map(|certificate| certificate.to_vec()).collect(),
        bundle: Some(to_proto(&reply.bundle)),
        renew_after_unix_ms: unix_ms(reply.renew_after),
        ca_time_unix_ms: unix_ms(reply.now),
    }
}

/// One open stream.
struct Watch {
    api: Api,
    svid: Arc<PeerSvid>,
    issued: Issued,
    open: Open,
    reports: Reports,
}

/// Reports within the current second.
struct Reports {
    since: Instant,
    count: u32,
}

impl Watch {
    async fn serve(
        mut self,
        mut reports: Streaming<Report>,
        directives: mpsc::Sender<Result<Directive, Status>>,
    ) {
        let stopped = self.api.tasks.stopped();
        let ended = crate::task::select! {
            ended = self.exchange(&mut reports, &directives) => ended,
            () = stopped => Some(stopping()),
        };
        if let Some(status) = ended {
            tracing::debug!(id = %self.svid.id(), %status, "stream ended");
            let _ = tokio::time::timeout(STALLED, directives.send(Err(status))).await;
        }
    }

    /// `None` when the sidecar has gone.
    async fn exchange(
        &mut self,
        reports: &mut Streaming<Report>,
        directives: &mpsc::Sender<Result<Directive, Status>>,
    ) -> Option<Status> {
        let mut bundle = self.api.bundle.clone();
        let mut renewal = self.api.renewal.clone();
        let mut federated = self.api.federated.clone();
        // The first ones go out at once.
        bundle.mark_changed();
        renewal.mark_changed();
        federated.mark_changed();
        let (mut listening, mut following) = (true, true);
        loop {
            let look = until(self.svid.not_after(), self.api.clock.as_ref());
            crate::task::select! {
                // The bundle first: a renewal may need what is new in it.
                biased;
                changed = bundle.changed() => {
                    // The sender is dropped when the control plane goes.
                    if changed.is_err() {
                        return Some(stopping());
                    }
                    let bundle = bundle.borrow_and_update().clone();
                    if let Some(entry) = self.denied_by(&bundle) {
                        return Some(Status::permission_denied(format!("on the deny list, by {entry}")));
                    }
                    send(directives, directive::Directive::Bundle(to_proto(&bundle))).await?;
                }
                changed = renewal.changed() => {
                    if changed.is_err() {
                        return Some(stopping());
                    }
                    let wish = *renewal.borrow_and_update();
                    if wish.before.is_some_and(|before| self.issued.issued < before) {
                        let spread_ms = u32::try_from(wish.spread.as_millis()).unwrap_or(u32::MAX);
                        send(directives, directive::Directive::RenewNow(RenewNow { spread_ms })).await?;
                    }
                }
                changed = federated.changed(), if following => {
                    // Nobody is followed, or we are stopping.
                    if changed.is_err() {
                        following = false;
                        continue;
                    }
                    let bundles = federated.borrow_and_update().values().map(|one| to_proto(one)).collect();
                    send(directives, directive::Directive::Federation(Federation { bundles })).await?;
                }
                report = reports.message(), if listening => match report {
                    Ok(Some(report)) => {
                        if let Err(status) = self.record(&report) {
                            return Some(status);
                        }
                    }
                    Ok(None) => listening = false,
                    Err(_) => return None,
                },
                () = directives.closed() => return None,
                () = tokio::time::sleep(look) => {
                    if self.svid.not_after() < self.api.clock.wall() {
                        return Some(expired());
                    }
                }
            }
        }
    }

    /// The handshake asked when the connection was made.
    fn denied_by(&self, bundle: &Bundle) -> Option<Revoked> {
        let candidates = [
            Revoked::Id(self.svid.id().clone()),
            Revoked::Serial(self.svid.serial().to_vec()),
            Revoked::Key(self.issued.key),
        ];
        candidates.into_iter().find(|one| bundle.revocations().contains(one))
    }

    fn record(&mut self, report: &Report) -> Result<(), Status> {
        let now = self.api.clock.monotonic();
        if now.saturating_duration_since(self.reports.since) > Duration::from_secs(1) {
            self.reports = Reports { since: now, count: 0 };
        }
        self.reports.count += 1;
        if self.reports.count > REPORTS {
            return Err(Status::resource_exhausted("too many reports; report when something changed"));
        }
        let published = self.api.bundle.borrow().sequence();
        self.api.holders.report(self.open.lineage, report, published, self.api.clock.wall());
        Ok(())
    }
}

/// `None` if the sidecar has gone, or does not read.
async fn send(
    directives: &mpsc::Sender<Result<Directive, Status>>,
    directive: directive::Directive,
) -> Option<()> {
    let directive = Directive { directive: Some(directive) };
    tokio::time::timeout(STALLED, directives.send(Ok(directive))).await.ok()?.ok()
}

/// Counts a stream as long as it lives.
struct Open {
    holders: Arc<Acknowledgements>,
    metrics: Metrics,
    lineage: LineageId,
}

impl Open {
    fn new(api: &Api, lineage: LineageId, svid: &PeerSvid) -> Self {
        api.holders.opened(lineage, svid, api.clock.wall());
        api.metrics.watchers.inc();
        Self { holders: api.holders.clone(), metrics: api.metrics.clone(), lineage }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.holders.closed(self.lineage);
        self.metrics.watchers.dec();
    }
}

fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.cloned().ok_or_else(|| Status::internal("the connection has no peer"))
}

fn stopping() -> Status {
    Status::unavailable("the control plane stops; connect again")
}

fn expired() -> Status {
    Status::unauthenticated("the connection's certificate has expired; connect with the renewed one")
}

fn unix_ms(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
