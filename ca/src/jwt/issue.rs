//! From a request to a token, in this order: audience, proof, id, revocation, life, signature, own test, record, reply.

use std::time::{Duration, SystemTime};

use postern_svid::jwt::verify;
use postern_svid::{Bundles, PeerSvid, Revoked, SpiffeId};
use serde_json::{Map, Value};

use super::{JwtAuthority, JwtIssueError};
use crate::issue::from_another_replica;
use crate::metrics::Reason;
use crate::store::JwtIssued;

/// Values of `aud`. One is advised (JWT-SVID, 6.2): whoever gets the token can show it to the others.
const MAX_AUDIENCES: usize = 8;
/// Bytes of all of them together: they stand in the ledger, and the token has to fit into a header.
const MAX_AUDIENCE: usize = 2_048;

/// A request as it came in.
#[derive(Clone, Copy)]
pub struct JwtRequest<'a> {
    /// The verified SVID of its connection.
    pub peer: &'a PeerSvid,
    /// The id asked for; empty for the connection's own, and no other is granted.
    pub id: &'a str,
    /// For whom the token is.
    pub audience: &'a [String],
    /// Seconds of life asked for; 0 leaves it to the CA.
    pub ttl_seconds: u32,
}

/// What goes back.
#[derive(Clone, Debug)]
pub struct JwtReply {
    /// The token in compact form.
    pub token: String,
    /// Its end.
    pub expires: SystemTime,
    /// The CA's clock.
    pub now: SystemTime,
}

impl JwtAuthority {
    /// Serves one request. Blocks, as [`crate::issue`] does.
    pub fn issue(&self, request: JwtRequest<'_>) -> Result<JwtReply, JwtIssueError> {
        let reply = self.steps(request).map_err(|error| {
            tracing::warn!(id = %request.peer.id(), reason = error.reason(), %error, "JWT-SVID refused");
            self.refused(error)
        })?;
        self.metrics.jwt_issued.inc();
        Ok(reply)
    }

    pub(super) fn refused(&self, error: JwtIssueError) -> JwtIssueError {
        let reason = error.reason();
        debug_assert!(JwtIssueError::REASONS.contains(&reason), "{reason}");
        self.metrics.jwt_rejected.get_or_create(&Reason { reason }).inc();
        error
    }

    fn steps(&self, request: JwtRequest<'_>) -> Result<JwtReply, JwtIssueError> {
        let JwtRequest { peer, id, audience, ttl_seconds } = request;
        let audience = checked(audience)?;
        let now = self.clock.wall();
        // The handshake verified it, but a connection can outlive its certificate.
        if peer.not_after() < now {
            return Err(JwtIssueError::Unauthenticated(
                "the connection's certificate has expired meanwhile; connect with the renewed one",
            ));
        }
        if !id.is_empty() && id != peer.id().as_str() {
            return Err(JwtIssueError::Denied(peer.id().clone()));
        }
        self.check_standing(peer)?;
        let asked = Duration::from_secs(ttl_seconds.into());
        let ttl = match asked {
            Duration::ZERO => self.lives.token,
            asked if asked < self.lives.least => {
                return Err(JwtIssueError::Ttl { asked, least: self.lives.least });
            }
            asked => asked.min(self.lives.token),
        };

        let begin = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let end = begin.saturating_add(ttl.as_secs());
        let signer = self.active();
        let token = signer.sign(self.claims(peer.id(), &audience, begin, end)).ok_or(JwtIssueError::Sign)?;
        let bundle = Bundles::default().with(self.authority.bundle());
        for one in &audience {
            verify(&token, one, &bundle, now).map_err(JwtIssueError::Check)?;
        }
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(end);
        self.store.record_jwt(JwtIssued {
            id: peer.id().clone(),
            audience: audience.join(" "),
            key_id: signer.key_id().to_owned(),
            predecessor: peer.serial().to_vec(),
            issued: now,
            expires,
        })?;
        tracing::info!(id = %peer.id(), life_s = ttl.as_secs(), "JWT-SVID issued");
        Ok(JwtReply { token, expires, now })
    }

    fn claims(&self, id: &SpiffeId, audience: &[&str], begin: u64, end: u64) -> Map<String, Value> {
        let mut claims = Map::new();
        claims.insert("sub".to_owned(), id.as_str().into());
        claims.insert("aud".to_owned(), audience.into());
        claims.insert("exp".to_owned(), end.into());
        claims.insert("iat".to_owned(), begin.into());
        if let Some(issuer) = &self.issuer {
            claims.insert("iss".to_owned(), issuer.as_str().into());
        }
        claims
    }

    /// Whether the certificate of the connection is one that would still renew.
    fn check_standing(&self, peer: &PeerSvid) -> Result<(), JwtIssueError> {
        let bundle = self.authority.bundle();
        let entries = [
            Revoked::Id(peer.id().clone()),
            Revoked::Serial(peer.serial().to_vec()),
            Revoked::Authority(peer.issuer_key_id().to_vec()),
        ];
        if entries.iter().any(|entry| bundle.revocations().contains(entry)) {
            return Err(JwtIssueError::Revoked("the connection's certificate is denied, or its CA tainted"));
        }
        let unknown = JwtIssueError::Unauthenticated("this CA does not know the connection's certificate");
        let found = self.store.certificate(peer.serial())?;
        let found = found.or_else(|| from_another_replica(&self.authority, self.store.as_ref(), peer));
        let Some((issued, lineage)) = found else { return Err(unknown) };
        if issued.id != *peer.id() {
            return Err(unknown);
        }
        if bundle.revocations().contains(&Revoked::Key(issued.key)) {
            return Err(JwtIssueError::Revoked("the key of the connection's certificate is denied"));
        }
        if lineage.forked.is_some() {
            return Err(JwtIssueError::Revoked(
                "two parties have presented keys of this lineage, so one of them is a copy. Find out which, then make a new join token",
            ));
        }
        Ok(())
    }
}

/// At least one, each of printable ASCII without spaces, as the ledger writes them.
fn checked(audience: &[String]) -> Result<Vec<&str>, JwtIssueError> {
    let wrong = |why| Err(JwtIssueError::Audience(why));
    if audience.is_empty() {
        return wrong("none was given; a token without one is for anybody");
    }
    if audience.len() > MAX_AUDIENCES || audience.iter().map(String::len).sum::<usize>() > MAX_AUDIENCE {
        return wrong("more than 8, or more than 2 KiB in all");
    }
    let mut checked: Vec<&str> = Vec::with_capacity(audience.len());
    for one in audience {
        if one.is_empty() || !one.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong("one is empty or has other characters than printable ASCII without spaces");
        }
        if !checked.contains(&one.as_str()) {
            checked.push(one);
        }
    }
    Ok(checked)
}
