//! From a request to a certificate, in this order: limits, proof, id, lineage, request, key, clock, life, signature, own test,
//! record, reply. What is cheap comes first, and nothing leaves before its record is on the disk.
//!
//! Calls block (the store's disk, the signature): serve them from a blocking thread.

mod admission;
mod adopt;
mod error;
mod proof;
mod published;
mod stages;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use postern_svid::{Bundle, Clock, PeerSvid, Revoked, SpiffeId, spread};
use rustls_pki_types::CertificateDer;

use crate::attest::Attestation;
use crate::authority::{self, Authority};
use crate::authz;
use crate::check;
use crate::csr::{self, VerifiedKey};
use crate::lineage::{Attestor, Lineage, LineageId};
use crate::metrics::{AuthorityKind, Metrics, Proven, Reason};
use crate::profile::{self, Serial, Validity};
use crate::store::{Grant, Issued, Store, StoreError, check_leap};
use crate::token::TokenRecord;
use admission::Admission;
use proof::{Attested, Next, Renewed};
use stages::Stages;

pub use admission::Permit;
pub(crate) use admission::{Full, Replicas};
pub use adopt::from_another_replica;
pub use error::IssueError;
pub(crate) use error::busy;
pub use proof::Evidence;

/// The shortest life outside tests: below it clocks and renewals have no room.
pub const MIN_TTL: Duration = Duration::from_secs(300);
/// The shortest life at all.
pub const MIN_TEST_TTL: Duration = Duration::from_secs(5);
/// The longest: a stolen key must not live longer than anybody watches.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3_600);

/// How far the clock may step back: NTP corrects by less.
const CLOCK_SLACK: Duration = Duration::from_secs(5);
/// 2024-01-01: a machine whose clock says less woke up without one.
const CLOCK_FLOOR: Duration = Duration::from_secs(1_704_067_200);

/// How leaves are made.
#[derive(Clone, Copy, Debug)]
pub struct LeafPolicy {
    /// The life of a leaf; also the longest that a caller may ask for.
    pub ttl: Duration,
    /// Allows lives under [`MIN_TTL`].
    pub test: bool,
}

/// The pipeline.
pub struct Issuer {
    authority: Arc<Authority>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    policy: LeafPolicy,
    metrics: Metrics,
    /// What attestors believe, and what their facts are granted; nothing until it is told.
    attestation: RwLock<Arc<Attestation>>,
    admission: Admission,
    /// When the latest certificate was made.
    last: Mutex<SystemTime>,
    /// The latest time that the store has seen.
    seen: Mutex<Option<SystemTime>>,
    /// The CAs whose ends the metrics tell.
    shown: Mutex<Vec<AuthorityKind>>,
}

/// A request as it came in.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// PKCS#10.
    pub csr: &'a [u8],
    /// The id asked for.
    pub id: &'a str,
    /// Seconds of life asked for; 0 leaves it to the CA.
    pub ttl_seconds: u32,
    /// Serial number of the certificate that renews; empty with a token.
    pub predecessor: &'a [u8],
    /// What the caller shows for it.
    pub proof: Proof<'a>,
}

/// What a caller shows.
#[derive(Clone, Copy)]
pub enum Proof<'a> {
    /// A join token.
    JoinToken(&'a str),
    /// The verified SVID of its connection.
    Svid(&'a PeerSvid),
    /// Evidence for an attestor; to renew, with the verified SVID of the connection as well.
    Attested(Evidence<'a>, Option<&'a PeerSvid>),
}

impl Proof<'_> {
    /// Its word in metrics and logs.
    fn name(&self) -> &'static str {
        match self {
            Self::JoinToken(_) => Attestor::JoinToken.as_str(),
            Self::Svid(_) => "svid",
            Self::Attested(evidence, _) => evidence.attestor().as_str(),
        }
    }
}

/// A certificate to be.
struct Wanted<'a> {
    id: &'a SpiffeId,
    key: &'a VerifiedKey,
    ttl: Duration,
    lineage: LineageId,
    /// How that began, and when.
    began: (Attestor, SystemTime),
}

/// What goes back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Leaf, issuing CA, and the tier if the root is offline.
    pub chain: Vec<CertificateDer<'static>>,
    /// The trust bundle.
    pub bundle: Arc<Bundle>,
    /// When to come again.
    pub renew_after: SystemTime,
    /// End of the leaf.
    pub not_after: SystemTime,
    /// The CA's clock.
    pub now: SystemTime,
}

impl Issuer {
    /// A pipeline that signs with `authority` and writes to `store`.
    pub fn new(
        authority: Arc<Authority>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        policy: LeafPolicy,
        metrics: Metrics,
    ) -> Result<Self, IssueError> {
        let last = store.last_issued()?.unwrap_or(SystemTime::UNIX_EPOCH);
        let seen = store.trust()?.seen;
        let issuer = Self {
            authority,
            store,
            clock,
            policy,
            metrics,
            attestation: RwLock::default(),
            admission: Admission::new(),
            last: Mutex::new(last),
            seen: Mutex::new(seen),
            shown: Mutex::default(),
        };
        issuer.prove()?;
        issuer.publish_metrics();
        Ok(issuer)
    }

    /// From now on attestors believe this, and their facts are granted this.
    pub fn attest_by(&self, attestation: Attestation) {
        *self.attestation.write() = Arc::new(attestation);
    }

    /// The certificate and lineage of a verified peer, if this CA has issued it, here or at another replica.
    pub fn known(&self, peer: &PeerSvid) -> Result<Option<(Issued, Lineage)>, StoreError> {
        let found = self.store.certificate(peer.serial())?;
        Ok(found.or_else(|| from_another_replica(&self.authority, self.store.as_ref(), peer)))
    }

    /// Serves one request.
    pub fn issue(&self, request: Request<'_>) -> Result<Reply, IssueError> {
        let began = self.clock.monotonic();
        let proof = request.proof.name();
        let result =
            self.steps(request, &mut Stages::begin(&self.metrics, self.clock.as_ref())).and_then(|reply| {
                match request.proof {
                    Proof::Attested(evidence, _) => {
                        let held = evidence.still_holds();
                        held.map(|()| reply).map_err(|why| IssueError::NoProof(evidence.attestor(), why))
                    }
                    Proof::JoinToken(_) | Proof::Svid(_) => Ok(reply),
                }
            });
        self.metrics.seconds.observe(self.clock.monotonic().duration_since(began).as_secs_f64());
        match &result {
            Ok(_) => {
                self.metrics.issued.get_or_create(&Proven { proof }).inc();
            }
            // The id asked for may be anything; only one that parses may stand in a log line.
            Err(error) => {
                let asked = SpiffeId::parse(request.id).ok();
                let asked = asked.as_ref().map(SpiffeId::as_str);
                tracing::warn!(asked, proof, reason = error.reason(), %error, "certificate refused");
            }
        }
        result.map_err(|error| self.refused(error))
    }

    /// A certificate for the control plane itself.
    pub fn issue_own(&self, key: &rcgen::KeyPair) -> Result<Reply, IssueError> {
        let id = self.authority.trust_domain().control_plane();
        let key = csr::verify(&csr::own(key)?, &id)?;
        let now = self.clock.wall();
        self.check_clock(now)?;
        let lineage = LineageId::random().map_err(|_| profile::ProfileError::Random)?;
        let stages = &mut Stages::begin(&self.metrics, self.clock.as_ref());
        let wanted =
            Wanted { id: &id, key: &key, ttl: self.policy.ttl, lineage, began: (Attestor::Own, now) };
        let reply = self.make(wanted, now, Grant::New(Attestor::Own), stages)?;
        self.metrics.issued.get_or_create(&Proven { proof: "own" }).inc();
        Ok(reply)
    }

    /// Proves that a request would be served: the clock is right, the store takes a write, and a throwaway leaf verifies.
    pub fn self_test(&self) -> Result<(), IssueError> {
        self.look_at_clock()?;
        self.prove()
    }

    /// Holds the clock against what the store has seen, which takes a write. Until an operator says otherwise, nothing happens at a
    /// time that is before that, or far after it.
    pub fn look_at_clock(&self) -> Result<(), IssueError> {
        let now = self.clock.wall();
        self.store.probe(now)?;
        *self.seen.lock() = Some(now);
        if self.is_behind(now) {
            // Unless that was said meanwhile.
            *self.last.lock() = self.store.last_issued()?.unwrap_or(SystemTime::UNIX_EPOCH);
        }
        self.check_clock(now)
    }

    /// Proves that what the issuing CA signs now verifies, by a leaf that is thrown away.
    pub fn prove(&self) -> Result<(), IssueError> {
        let authority = &self.authority;
        let now = self.clock.wall();
        check::issuing(authority.trust_domain(), &authority.active(), &authority.bundles(), now)?;
        Ok(())
    }

    fn refused(&self, error: IssueError) -> IssueError {
        let reason = error.reason();
        debug_assert!(IssueError::REASONS.contains(&reason), "{reason}");
        self.metrics.rejected.get_or_create(&Reason { reason }).inc();
        error
    }

    fn steps(&self, request: Request<'_>, stages: &mut Stages<'_>) -> Result<Reply, IssueError> {
        let now = self.clock.wall();
        // Everything would look expired by then; who asks is told the true reason.
        self.check_leap(now)?;
        let attested = match request.proof {
            Proof::JoinToken(token) => self.token(token, now)?,
            Proof::Svid(peer) => Attested::Svid(self.predecessor(peer, request.predecessor, false, now)?),
            Proof::Attested(evidence, renews) => self.attested(evidence, renews, &request, now)?,
        };
        self.serve(request, &attested, now, stages)
    }

    /// Renews as whoever repeats its attestation does, without one: for a rehearsal, on a copy, which has nobody's proofs.
    pub(crate) fn rehearse(&self, request: Request<'_>, renews: &PeerSvid) -> Result<Reply, IssueError> {
        let now = self.clock.wall();
        let attested = Attested::Svid(self.predecessor(renews, request.predecessor, true, now)?);
        self.serve(request, &attested, now, &mut Stages::begin(&self.metrics, self.clock.as_ref()))
    }

    fn serve(
        &self,
        request: Request<'_>,
        attested: &Attested,
        now: SystemTime,
        stages: &mut Stages<'_>,
    ) -> Result<Reply, IssueError> {
        let asked = SpiffeId::parse(request.id).map_err(IssueError::Id)?;
        let from_proof = match attested {
            Attested::Token(token) => &token.id,
            Attested::Svid(renewed) => &renewed.lineage.spiffe_id,
            Attested::Facts { granted, .. } => &granted.id,
        };
        let id = authz::grant(self.authority.trust_domain(), from_proof, &asked)
            .map_err(|denied| IssueError::Denied(denied, from_proof.clone()))?;
        stages.done("proof");
        let key = csr::verify(request.csr, id)?;
        stages.done("csr");
        self.check_denied(attested, id, &key)?;
        let grant = match self.key_policy(attested, id, &key, now)? {
            Next::Answer(issued) => return self.again(&issued, now),
            Next::Make(grant) => grant,
        };
        self.check_clock(now)?;
        let mut ttl = self.life(request.ttl_seconds)?;
        if let Attested::Facts { granted, .. } = attested {
            ttl = granted.ttl.map_or(ttl, |most| ttl.min(most.max(self.least())));
        }
        let random = || LineageId::random().map_err(|_| profile::ProfileError::Random);
        let lineage = match attested {
            Attested::Svid(Renewed { lineage, .. })
            | Attested::Facts { renews: Some(Renewed { lineage, .. }), .. } => {
                (lineage.id, (lineage.attestor, lineage.attested))
            }
            Attested::Token(TokenRecord { bound: Some(bound), created, .. }) => {
                (bound.lineage, (Attestor::JoinToken, *created))
            }
            Attested::Token(_) => (random()?, (Attestor::JoinToken, now)),
            Attested::Facts { facts, .. } => (random()?, (facts.attestor(), now)),
        };
        stages.done("policy");
        let (lineage, began) = lineage;
        self.make(Wanted { id, key: &key, ttl, lineage, began }, now, grant, stages)
    }

    /// Whoever is denied gets nothing new either: the handshake has asked about the certificate that renews, and not about a join
    /// token's id, nor about the new key.
    fn check_denied(&self, attested: &Attested, id: &SpiffeId, key: &VerifiedKey) -> Result<(), IssueError> {
        let mut candidates = vec![Revoked::Id(id.clone()), Revoked::Key(key.fingerprint())];
        if let Attested::Svid(Renewed { predecessor, .. })
        | Attested::Facts { renews: Some(Renewed { predecessor, .. }), .. } = attested
        {
            candidates.push(Revoked::Serial(predecessor.serial.clone()));
            candidates.push(Revoked::Key(predecessor.key));
        }
        self.authority.denies(candidates).map_or(Ok(()), |entry| Err(IssueError::Revoked(entry)))
    }

    /// A clock that went back would make certificates that seem older than they are, and revive what has expired.
    fn check_clock(&self, now: SystemTime) -> Result<(), IssueError> {
        if self.is_behind(now) || now < SystemTime::UNIX_EPOCH + CLOCK_FLOOR {
            let behind = self.last.lock().duration_since(now).unwrap_or_default();
            return Err(IssueError::Clock { behind });
        }
        self.check_leap(now)
    }

    fn check_leap(&self, now: SystemTime) -> Result<(), IssueError> {
        let check = |seen: Option<SystemTime>| seen.map_or(Ok(()), |seen| check_leap(seen, now));
        if check(*self.seen.lock()).is_ok() {
            return Ok(());
        }
        // Others write to the store as well, an operator among them.
        let seen = self.store.trust()?.seen;
        check(seen)?;
        *self.seen.lock() = seen;
        Ok(())
    }

    fn is_behind(&self, now: SystemTime) -> bool {
        now + CLOCK_SLACK < *self.last.lock()
    }

    fn life(&self, asked: u32) -> Result<Duration, IssueError> {
        let least = self.least();
        match Duration::from_secs(asked.into()) {
            Duration::ZERO => Ok(self.policy.ttl),
            asked if asked < least => Err(IssueError::Ttl { asked, least }),
            asked => Ok(asked.min(self.policy.ttl)),
        }
    }

    fn least(&self) -> Duration {
        if self.policy.test { MIN_TEST_TTL } else { MIN_TTL }
    }

    fn make(
        &self,
        wanted: Wanted<'_>,
        now: SystemTime,
        grant: Grant,
        stages: &mut Stages<'_>,
    ) -> Result<Reply, IssueError> {
        let Wanted { id, key, ttl, lineage, began: (attestor, attested) } = wanted;
        // It ends with its root at the latest.
        let issuing = self.authority.active();
        let end = issuing.not_after();
        let whole = Validity::from_now(now, ttl);
        let validity = whole.ending_by(end);
        let left = validity.not_after.duration_since(now).unwrap_or_default();
        if validity != whole {
            self.metrics.truncated.inc();
            if left < self.least() {
                return Err(IssueError::NoTime);
            }
        }
        let serial = match self.store.replica() {
            Some(_) => adopt::telling(attestor, attested)?,
            None => Serial::random()?,
        };
        let leaf = profile::leaf(id, key, issuing.signer(), validity, serial)?;
        let chain: Vec<_> = std::iter::once(leaf).chain(issuing.chain()).collect();
        stages.done("sign");
        check::leaf(&chain, id, key, &self.authority.bundles(), now)?;
        stages.done("verify");

        let renew_after = now + left.mul_f64(renewal_point());
        let issued = Issued {
            serial: serial.as_bytes().to_vec(),
            id: id.clone(),
            lineage,
            issuer: issuing.key_id().to_vec(),
            key: key.fingerprint(),
            issued: now,
            not_before: validity.not_before,
            not_after: validity.not_after,
            renew_after,
            certificate: chain[0].to_vec(),
        };
        self.store.record(issued, grant)?;
        stages.done("record");
        let mut last = self.last.lock();
        *last = (*last).max(now);
        drop(last);
        *self.seen.lock() = Some(now);
        let serial = crate::hex(serial.as_bytes());
        let (seconds, lineage) = (left.as_secs(), lineage);
        tracing::info!(%id, serial, %lineage, life_s = seconds, "certificate issued");
        Ok(Reply { chain, bundle: self.authority.bundle(), renew_after, not_after: validity.not_after, now })
    }

    /// The same answer once more: the first one may never have arrived.
    fn again(&self, issued: &Issued, now: SystemTime) -> Result<Reply, IssueError> {
        self.store.is_settled()?;
        let rows = self.store.authorities()?;
        let above = authority::chain(&rows, &issued.issuer);
        let above = above.ok_or(IssueError::Unauthenticated("its issuing CA is forgotten"))?;
        let leaf = CertificateDer::from(issued.certificate.clone());
        let chain = std::iter::once(leaf).chain(above).collect();
        Ok(Reply {
            chain,
            bundle: self.authority.bundle(),
            renew_after: issued.renew_after,
            not_after: issued.not_after,
            now,
        })
    }
}

/// Where in its life a leaf is to be renewed: 45 to 55 %, spread so that a mesh started at once does not come back at once.
fn renewal_point() -> f64 {
    spread::fraction().mul_add(0.10, 0.45)
}

#[cfg(test)]
mod attested_tests;
#[cfg(test)]
mod clock_tests;
#[cfg(test)]
mod tests;
