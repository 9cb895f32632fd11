//! What a request's proof attests, and whether it attests it for this key.

use std::time::SystemTime;

use postern_svid::{PeerSvid, SpiffeId};

use super::{IssueError, Issuer};
use crate::csr::VerifiedKey;
use crate::lineage::{Lineage, Refusal, Step};
use crate::store::{Grant, Issued};
use crate::token::{TokenHash, TokenRecord};

/// What the proof attests, before the request is read.
pub(super) enum Attested {
    Token(TokenRecord),
    Svid { step: Step, predecessor: Issued, lineage: Lineage },
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

    /// What the certificate of the connection attests.
    pub(super) fn predecessor(
        &self,
        peer: &PeerSvid,
        named: &[u8],
        now: SystemTime,
    ) -> Result<Attested, IssueError> {
        // The handshake verified it, but a connection can outlive its certificate.
        if peer.not_after() < now {
            return Err(IssueError::Unauthenticated("the connection's certificate has expired meanwhile"));
        }
        if named != peer.serial() {
            return Err(IssueError::Predecessor);
        }
        let found = self.store.certificate(peer.serial())?;
        let (predecessor, lineage) =
            found.ok_or(IssueError::Unauthenticated("a certificate that this store never issued"))?;
        if predecessor.id != *peer.id() || lineage.spiffe_id != *peer.id() {
            return Err(IssueError::Unauthenticated("the store knows this serial number under another id"));
        }
        match lineage.judge(&predecessor.serial, now) {
            Ok(step) => Ok(Attested::Svid { step, predecessor, lineage }),
            Err(refusal) => {
                if refusal == Refusal::Fork {
                    self.store.mark_forked(lineage.id, now)?;
                    self.metrics.forks.inc();
                    let serial = crate::hex(&predecessor.serial);
                    tracing::error!(
                        id = %lineage.spiffe_id, lineage = %lineage.id, serial,
                        "FORK: two parties hold keys of one lineage; neither renews any more. Find out where the key was copied, then make a new join token"
                    );
                }
                Err(IssueError::Lineage(refusal))
            }
        }
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
            Attested::Token(TokenRecord { bound: Some(bound), .. }) => {
                if bound.key != fingerprint {
                    return Err(IssueError::Unauthenticated("the join token is spent, by another key"));
                }
                let lineage = self.store.lineage(bound.lineage)?;
                let newest =
                    lineage.as_ref().map(|l| self.store.certificate(&l.newest)).transpose()?.flatten();
                match (lineage, newest) {
                    (Some(lineage), _) if lineage.forked.is_some() => {
                        Err(IssueError::Lineage(Refusal::Forked))
                    }
                    (Some(lineage), Some((newest, _))) if newest.key == fingerprint => {
                        let predecessor = newest.serial.clone();
                        let grant = Grant::Lineage { predecessor, newest: lineage.newest };
                        Ok(if now < newest.renew_after { Next::Answer(newest) } else { Next::Make(grant) })
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
            Attested::Svid { step, predecessor, lineage } => {
                let owner = self.store.key_owner(fingerprint)?;
                match owner {
                    Some(owner)
                        if *step == Step::Again
                            && owner.serial == lineage.newest
                            && now < owner.renew_after =>
                    {
                        Ok(Next::Answer(owner))
                    }
                    Some(_) => {
                        Err(IssueError::Key("it was certified before; make a new one for each renewal"))
                    }
                    None => Ok(Next::Make(Grant::Lineage {
                        predecessor: predecessor.serial.clone(),
                        newest: lineage.newest.clone(),
                    })),
                }
            }
        }
    }
}
