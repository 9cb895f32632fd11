//! What a request's proof attests, and whether it attests it for this key.

use std::time::SystemTime;

use postern_svid::{PeerSvid, SpiffeId};

use super::{IssueError, Issuer, Request};
use crate::attest::{Facts, Granted, NoProof, Possession, Process};
use crate::authz::Denied;
use crate::csr::VerifiedKey;
use crate::lineage::{Attestor, Lineage, Refusal, Step};
use crate::store::{Basis, Grant, Issued};
use crate::token::{TokenHash, TokenRecord};

/// What an attestor is shown.
#[derive(Clone, Copy, Debug)]
pub enum Evidence<'a> {
    /// A cluster's service account token.
    Kubernetes(&'a str),
    /// An OIDC provider's token.
    Oidc(&'a str),
    /// A certificate and a signature by its key.
    X509Pop(Possession<'a>),
    /// The process at the other end of a Unix socket.
    Unix(&'a Process),
}

impl Evidence<'_> {
    /// Who looks at it.
    pub fn attestor(&self) -> Attestor {
        match self {
            Self::Kubernetes(_) => Attestor::Kubernetes,
            Self::Oidc(_) => Attestor::Oidc,
            Self::X509Pop(_) => Attestor::X509Pop,
            Self::Unix(_) => Attestor::Unix,
        }
    }

    /// What it proves is true of a moment; whether it still is, when a certificate is about to leave.
    pub(super) fn still_holds(&self) -> Result<(), NoProof> {
        match self {
            Self::Unix(process) if !process.is_alive() => Err("the process has ended meanwhile".into()),
            _ => Ok(()),
        }
    }
}

/// What the proof attests, before the request is read.
pub(super) enum Attested {
    Token(TokenRecord),
    Svid(Renewed),
    Facts { facts: Facts, granted: Granted, renews: Option<Renewed> },
}

/// The certificate that renews, and its lineage.
pub(super) struct Renewed {
    step: Step,
    /// Whether it is the first certificate of the lineage that this replica gives.
    is_adopted: bool,
    pub(super) predecessor: Issued,
    pub(super) lineage: Lineage,
}

/// What the key policy decided.
pub(super) enum Next {
    Answer(Issued),
    Make(Grant),
}

impl Issuer {
    /// What a join token attests.
    pub(super) fn token(&self, token: &str, now: SystemTime) -> Result<Attested, IssueError> {
        let hash = TokenHash::of(token).ok_or(IssueError::Unauthenticated("not a join token"))?;
        let found = self.store.token(hash)?.ok_or(IssueError::Unauthenticated("an unknown join token"))?;
        if now >= found.expires {
            return Err(IssueError::Unauthenticated("the join token has expired"));
        }
        Ok(Attested::Token(found))
    }

    /// What evidence attests, and by which registration. The lineage goes on if the connection has its certificate.
    pub(super) fn attested(
        &self,
        evidence: Evidence<'_>,
        renews: Option<&PeerSvid>,
        request: &Request<'_>,
        now: SystemTime,
    ) -> Result<Attested, IssueError> {
        let attestation = self.attestation.read().clone();
        let facts = match evidence {
            Evidence::Kubernetes(token) => attestation.kubernetes(token, now),
            Evidence::Oidc(token) => attestation.oidc(token, now),
            Evidence::X509Pop(shown) => attestation.x509pop(shown, request.csr, request.id, now),
            Evidence::Unix(process) => attestation.unix(process),
        };
        let facts = facts.map_err(|why| IssueError::NoProof(evidence.attestor(), why))?;
        let asked = SpiffeId::parse(request.id).map_err(IssueError::Id)?;
        let td = self.authority.trust_domain();
        let Some(granted) = attestation.registrations.grant(td, &facts, &asked) else {
            let all = attestation.registrations.explain(td, &facts, &asked);
            let nearest = all.first().map_or_else(String::new, |judged| {
                format!("; nearest is {} ({})", judged.registration.name, judged.outcome)
            });
            return Err(IssueError::Unregistered { asked, facts: facts.to_string(), nearest });
        };
        let renews = match renews {
            None => None,
            // Whoever has another workload's token does not go on with its own lineage under that name.
            Some(peer) if *peer.id() != granted.id => {
                return Err(IssueError::Denied(Denied::Other, peer.id().clone()));
            }
            Some(peer) => Some(self.predecessor(peer, request.predecessor, true, now)?),
        };
        Ok(Attested::Facts { facts, granted, renews })
    }

    /// What the certificate of the connection attests, with or without the attestation `repeated`.
    pub(super) fn predecessor(
        &self,
        peer: &PeerSvid,
        named: &[u8],
        repeated: bool,
        now: SystemTime,
    ) -> Result<Renewed, IssueError> {
        // The handshake verified it, but a connection can outlive its certificate.
        if peer.not_after() < now {
            return Err(IssueError::Unauthenticated("the connection's certificate has expired meanwhile"));
        }
        if named != peer.serial() {
            return Err(IssueError::Predecessor);
        }
        let found = self.known(peer)?;
        let (predecessor, lineage) =
            found.ok_or(IssueError::Unauthenticated("a certificate that this store never issued"))?;
        let is_adopted = self.authority.is_another_replicas(&predecessor.issuer)
            && self.store.lineage(lineage.id)?.is_none();
        if predecessor.id != *peer.id() || lineage.spiffe_id != *peer.id() {
            return Err(IssueError::Unauthenticated("the store knows this serial number under another id"));
        }
        self.pace(lineage.id)?;
        match lineage.judge(&predecessor.serial, repeated, now) {
            Ok(step) => Ok(Renewed { step, is_adopted, predecessor, lineage }),
            Err(refusal) => {
                if refusal == Refusal::Fork {
                    self.store.mark_forked(lineage.id, now)?;
                    self.metrics.forks.inc();
                    let serial = crate::hex(&predecessor.serial);
                    tracing::error!(
                        id = %lineage.spiffe_id, lineage = %lineage.id, serial,
                        "FORK: two parties hold keys of one lineage; neither renews any more. Find out where the key was copied, then make a new join token; who attests begins a new lineage"
                    );
                }
                Err(IssueError::Lineage(refusal))
            }
        }
    }

    /// Whether a certificate may be handed out once more: not when it is due, nor when what signed it is on its way out.
    fn is_good(&self, issued: &Issued, now: SystemTime) -> bool {
        now < issued.renew_after
            && self.authority.stands_by(&issued.issuer)
            && self.authority.renew_before().is_none_or(|before| before <= issued.issued)
    }

    /// Decides whether the key may be certified, and whether the answer has been given before.
    pub(super) fn key_policy(
        &self,
        attested: &Attested,
        id: &SpiffeId,
        key: &VerifiedKey,
        now: SystemTime,
    ) -> Result<Next, IssueError> {
        let fingerprint = key.fingerprint();
        if self.authority.holds_key(&fingerprint) {
            return Err(IssueError::Key("it is a CA's"));
        }
        match attested {
            Attested::Token(TokenRecord { bound: Some(bound), hash, .. }) => {
                if bound.key != fingerprint {
                    return Err(IssueError::Unauthenticated("the join token is spent, by another key"));
                }
                let lineage = self.store.lineage(bound.lineage)?;
                let newest =
                    lineage.as_ref().map(|l| self.store.certificate(&l.newest)).transpose()?.flatten();
                match (lineage, newest) {
                    // Spent at another replica, whose answer did not arrive: whoever has the key gets it here.
                    (None, _) if self.store.replica().is_some() => Ok(Next::Make(Grant::Token(*hash))),
                    (Some(lineage), _) if lineage.forked.is_some() => {
                        Err(IssueError::Lineage(Refusal::Forked))
                    }
                    (Some(lineage), Some((newest, _))) if newest.key == fingerprint => {
                        let predecessor = newest.serial.clone();
                        let grant = Grant::Lineage { predecessor, newest: lineage.newest };
                        Ok(if self.is_good(&newest, now) { Next::Answer(newest) } else { Next::Make(grant) })
                    }
                    _ => Err(IssueError::Unauthenticated(
                        "the join token's lineage has moved on to other keys",
                    )),
                }
            }
            Attested::Token(token) => match self.store.key_owner(fingerprint)? {
                Some(owner) if owner.id != *id => Err(IssueError::Key("it was certified under another id")),
                _ => Ok(Next::Make(Grant::Token(token.hash))),
            },
            Attested::Svid(renewed) => self.next(renewed, fingerprint, now, |predecessor, newest| {
                Grant::Lineage { predecessor, newest }
            }),
            Attested::Facts { facts, granted, renews } => {
                let basis = Basis {
                    attestor: facts.attestor(),
                    registration: granted.registration.clone(),
                    facts: facts.to_string(),
                };
                match renews {
                    Some(renewed) => self.next(renewed, fingerprint, now, |predecessor, newest| {
                        Grant::Attested { basis, renews: Some((predecessor, newest)) }
                    }),
                    None => self.first(basis, id, fingerprint, now),
                }
            }
        }
    }

    /// A renewal: by a new key each time, unless its answer got lost.
    fn next(
        &self,
        renewed: &Renewed,
        key: [u8; 32],
        now: SystemTime,
        grant: impl FnOnce(Vec<u8>, Vec<u8>) -> Grant,
    ) -> Result<Next, IssueError> {
        let Renewed { step, is_adopted, predecessor, lineage } = renewed;
        match self.store.key_owner(key)? {
            Some(owner)
                if *step == Step::Again && owner.serial == lineage.newest && self.is_good(&owner, now) =>
            {
                Ok(Next::Answer(owner))
            }
            Some(_) => Err(IssueError::Key("it was certified before; make a new one for each renewal")),
            None => {
                let grant = grant(predecessor.serial.clone(), lineage.newest.clone());
                if !is_adopted {
                    return Ok(Next::Make(grant));
                }
                let basis = match grant {
                    Grant::Attested { basis, .. } => Some(basis),
                    _ => None,
                };
                let (attestor, attested) = (lineage.attestor, lineage.attested);
                let from = Box::new(predecessor.clone());
                Ok(Next::Make(Grant::Adopted { from, attestor, attested, basis }))
            }
        }
    }

    /// The first certificate by attestation: a lineage begins, unless its answer got lost.
    fn first(&self, basis: Basis, id: &SpiffeId, key: [u8; 32], now: SystemTime) -> Result<Next, IssueError> {
        let Some(owner) = self.store.key_owner(key)? else {
            return Ok(Next::Make(Grant::Attested { basis, renews: None }));
        };
        if owner.id != *id {
            return Err(IssueError::Key("it was certified under another id"));
        }
        let lineage = self.store.lineage(owner.lineage)?;
        let is_newest = lineage.is_some_and(|own| own.forked.is_none() && own.newest == owner.serial);
        if is_newest && self.is_good(&owner, now) {
            Ok(Next::Answer(owner))
        } else {
            Err(IssueError::Key("it was certified before; make a new one"))
        }
    }
}
