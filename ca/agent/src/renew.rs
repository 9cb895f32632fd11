//! Getting the first SVID and every later one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_svid::jwt::JwtKeys;
use postern_svid::{Bundle, Revocations, Revoked, SpiffeId, VerifyError};
use rustls_pki_types::CertificateDer;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tracing::{info, warn};

use crate::config::Attestation;
use crate::connect;
use crate::error::AttemptError;
use crate::identity::{Identity, Live};
use crate::install::Issued;
use crate::pace::Backoff;
use crate::possession::Possession;
use crate::proto::{self, issue_request::Proof};

/// A chain is a leaf and what lies between it and the root.
const MAX_CHAIN: usize = 7;
/// Between two looks for a new token, while without one nothing goes on: whoever puts it there watches.
const TOKEN_LOOK: Duration = Duration::from_secs(1);

/// Keeps an SVID in force, for ever.
pub(crate) async fn run(live: &Live) {
    let mut backoff = Backoff::new();
    let mut by_token = false;
    loop {
        live.store_overdue().await;
        if let Some(wait) = until_due(live) {
            crate::runtime::select! {
                () = sleep(wait) => {}
                () = live.hurry.told() => {}
            }
            continue;
        }
        let hurried = live.hurry.take();
        let proof = proof(live, by_token);
        let had_proof = live.has_fresh_proof();
        match anywhere(live, &proof).await {
            Ok(()) => {
                backoff.reset();
                live.hurry.renewed(live.clock.monotonic());
                by_token = false;
            }
            Err(error) => {
                live.hurry.put_back(hurried);
                live.failed(&error);
                // An SVID renews within limits that only the control plane knows; beyond them a new token is the way, so
                // both are tried in turn. One whose root has left the bundle is not even asked about: the handshake ends it,
                // and what was used up before will not help.
                by_token = proof.is_renewal()
                    && (refused_for_good(&error) && live.can_prove().is_ok()
                        || is_disowned(live) && live.has_fresh_proof());
                // A token that was never tried does not wait for what went before it.
                let is_new = by_token && !live.config.attestation.is_repeated() && live.has_fresh_proof();
                if is_new {
                    backoff.reset();
                }
                let wait = backoff.wait(live.pace());
                match live.current().and_then(|identity| denied(&identity, live.clock.wall())) {
                    Some(by) => warn!(
                        retry_in_ms = wait.as_millis(),
                        "no new SVID: {by}, so the control plane and all peers refuse it until an operator lifts that \
                         (postern ca allow-again): {error}"
                    ),
                    None => warn!(retry_in_ms = wait.as_millis(), "no new SVID: {error}"),
                }
                let was_tried = !proof.is_renewal() && refused_for_good(&error);
                crate::runtime::select! {
                    () = sleep(wait) => {}
                    () = new_proof(live, had_proof && !was_tried || is_new) => {
                        info!("there is a new token, and it is tried");
                        by_token = true;
                        backoff.reset();
                    }
                }
            }
        }
    }
}

/// Resolves when a token lies in its file that was never tried; `known` says that the one there now is waiting its turn already.
async fn new_proof(live: &Live, known: bool) {
    // What can be shown again and again is no news.
    if known || live.config.attestation.is_repeated() {
        return std::future::pending().await;
    }
    loop {
        sleep(live.pace().tick().min(TOKEN_LOOK)).await;
        if live.has_fresh_proof() {
            return;
        }
    }
}

/// How an attempt proves who it is for.
enum Evidence {
    Renewal(std::sync::Arc<Identity>),
    Token,
}

impl Evidence {
    const fn is_renewal(&self) -> bool {
        matches!(self, Self::Renewal(_))
    }
}

/// Time to wait before looking again; `None` if an SVID is due. Wall time is read anew at each look.
fn until_due(live: &Live) -> Option<Duration> {
    let identity = live.current()?;
    let now = live.clock.wall();
    let mut left = identity.renew_after.duration_since(now).ok().filter(|left| !left.is_zero())?;
    if let Some(hurried) = live.hurry.left(live.clock.monotonic()) {
        left = Some(hurried.min(left)).filter(|left| !left.is_zero())?;
    }
    // A bundle that no longer vouches for our SVID means that peers refuse it: the time that the CA chose is moot. Of the
    // clock's making is only "not yet valid", against which a new SVID would not help.
    (!disowns(&identity, now)).then(|| left.min(live.pace().tick()))
}

fn disowns(identity: &Identity, now: SystemTime) -> bool {
    let verified = identity.svid.verify_against(&identity.bundles, now);
    !matches!(verified, Ok(()) | Err(VerifyError::NotYetValid { .. }))
}

/// Why the mesh's own lists deny the SVID in force, if they do. That is known here, whether the control plane says so or
/// only closes the connection.
pub(crate) fn denied(identity: &Identity, now: SystemTime) -> Option<VerifyError> {
    let is_listed =
        identity.bundles.of_id(identity.svid.id()).is_some_and(|bundle| !bundle.revocations().is_empty());
    if !is_listed {
        return None;
    }
    identity
        .svid
        .verify_against(&identity.bundles, now)
        .err()
        .filter(|error| matches!(error, VerifyError::Denied(_)))
}

/// Whether the bundle in force no longer vouches for the SVID in force.
fn is_disowned(live: &Live) -> bool {
    live.current().is_some_and(|identity| disowns(&identity, live.clock.wall()))
}

fn proof(live: &Live, by_token: bool) -> Evidence {
    let now = live.clock.wall();
    match live.current() {
        Some(identity) if !by_token && now <= identity.svid.not_after() => Evidence::Renewal(identity),
        _ => Evidence::Token,
    }
}

/// Attempts it at one replica of the control plane after the other, as long as the next may do what this one did not: the
/// request is the same, with the same key, so that one that was served without our learning of it is served again.
async fn anywhere(live: &Live, evidence: &Evidence) -> Result<(), AttemptError> {
    let mut left = live.config.places();
    loop {
        let mut place = live.place();
        let tried = attempt(live, evidence, &mut place).await;
        left -= 1;
        match tried {
            Err(error) if left > 0 && differs_elsewhere(&error, evidence) => {
                warn!("another replica of the control plane is asked: {error}");
                live.go_elsewhere(place);
            }
            other => return other,
        }
    }
}

/// Whether another replica may answer otherwise. Where none could be reached, all have been tried.
const fn differs_elsewhere(error: &AttemptError, evidence: &Evidence) -> bool {
    match error {
        AttemptError::Timeout(_) | AttemptError::Connection(_) => true,
        // One that is cut off may not know the issuing CA of another.
        AttemptError::Refused { code: Code::Unauthenticated, .. } => evidence.is_renewal(),
        AttemptError::Refused { code, .. } => {
            matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Internal | Code::Aborted)
        }
        _ => false,
    }
}

async fn attempt(live: &Live, evidence: &Evidence, place: &mut usize) -> Result<(), AttemptError> {
    let pace = live.pace();
    let is_repeated = live.config.attestation.is_repeated();
    // A join token is bound to the key of its first request, so that key must survive a crash. Nothing else is.
    let key = live.request_key(!evidence.is_renewal() && !is_repeated).await?;
    let mut request = proto::IssueRequest {
        csr_der: key.request()?,
        spiffe_id: live.config.identity.as_str().to_owned(),
        ttl_seconds: 0,
        predecessor_serial: Vec::new(),
        proof: None,
    };
    let svid = match evidence {
        Evidence::Renewal(identity) => {
            request.predecessor_serial = identity.svid.serial().to_vec();
            Some(&*identity.svid)
        }
        Evidence::Token => None,
    };
    let mut connection = connect::open(live, svid, pace).await?;
    *place = connection.place;
    // The join token, if one is spent.
    let mut sent = None;
    if !evidence.is_renewal() || is_repeated {
        // Only now: the control plane has proven who it is.
        let token = || live.token().map_err(|error| AttemptError::Local(error.to_string()));
        request.proof = Some(match &live.config.attestation {
            Attestation::JoinToken(_) | Attestation::JoinTokenDescriptor(_) => {
                Proof::JoinToken(sent.insert(token()?).as_str().to_owned())
            }
            Attestation::ServiceAccountToken(_) => Proof::KubernetesToken(token()?.as_str().to_owned()),
            Attestation::OidcToken(_) => Proof::OidcToken(token()?.as_str().to_owned()),
            Attestation::X509Pop { certificate, key } => {
                let possession = Possession::load(certificate, key);
                let possession = possession.map_err(|error| AttemptError::Local(error.to_string()))?;
                Proof::X509pop(possession.prove(&connection.channel, &request)?)
            }
            Attestation::Process => Proof::PeerProcess(proto::PeerProcess {}),
        });
    }
    let answer = timeout(pace.step(), connection.client.issue(request))
        .await
        .map_err(|_| AttemptError::Timeout("issuing"))?;
    let answer = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let mut error = AttemptError::from_status(&status);
            if sent.is_some() || is_repeated {
                error = error.with_token(&live.config);
            }
            if refused_for_good(&error) {
                match sent {
                    Some(token) => live.held.lock().used_token = Some(token),
                    None => live.discard_request_key().await,
                }
            }
            return Err(error);
        }
    };
    let skew = skew_ms(answer.ca_time_unix_ms, live.clock.wall());
    let (issued, bundle) = read(live, answer, key)?;
    let (serial, not_after) = (issued.svid.serial().to_vec(), issued.svid.not_after());
    live.install(Some(issued), bundle).await?;
    if sent.is_some() {
        live.held.lock().used_token = sent;
    }
    live.succeeded(skew);
    info!(
        id = %live.config.identity,
        serial = hex(&serial),
        not_after_unix = not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        renewal = evidence.is_renewal(),
        "new SVID in force"
    );
    Ok(())
}

fn read(
    live: &Live,
    answer: proto::IssueResponse,
    key: crate::key::Key,
) -> Result<(Issued, Option<Bundle>), AttemptError> {
    if answer.chain_der.is_empty() || answer.chain_der.len() > MAX_CHAIN {
        return Err(AttemptError::Answer(format!("a chain of {} certificates", answer.chain_der.len())));
    }
    let chain = answer.chain_der.into_iter().map(CertificateDer::from).collect();
    let svid = key.svid(chain).map_err(|error| AttemptError::Answer(error.to_string()))?;
    let renew_after = u64::try_from(answer.renew_after_unix_ms)
        .ok()
        .and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    let bundle = answer.bundle.map(|sent| bundle(live, sent)).transpose()?;
    Ok((Issued { svid, key, renew_after }, bundle))
}

/// Reads a bundle as the control plane sends it. Only our own trust domain's: a control plane must not be able to make
/// another's identities.
pub(crate) fn bundle(live: &Live, sent: proto::Bundle) -> Result<Bundle, AttemptError> {
    let td = live.config.identity.trust_domain();
    if sent.trust_domain != td.as_str() {
        return Err(AttemptError::Answer(format!(
            "a trust bundle of {:?} instead of {td}",
            sent.trust_domain
        )));
    }
    let roots = sent.root_der.into_iter().map(CertificateDer::from).collect();
    let bundle = Bundle::new(td, sent.sequence, roots);
    let bundle = bundle.map_err(|error| AttemptError::Answer(error.to_string()))?;
    // An entry that cannot be read refuses the whole bundle: passed over, what it revokes would stay in force here alone.
    let revocations = revocations(sent.revocations.unwrap_or_default()).map_err(AttemptError::Answer)?;
    Ok(bundle.with_revocations(revocations).with_jwt_keys(jwt_keys(&sent.jwt_keys)))
}

fn revocations(sent: proto::Revocations) -> Result<Revocations, String> {
    let keys = sent.key_sha256.into_iter().map(|digest| {
        <[u8; 32]>::try_from(digest).map(Revoked::Key).map_err(|_| "a denied key is no SHA-256".to_owned())
    });
    let ids = sent.denied_id.into_iter().map(|id| {
        SpiffeId::parse(&id).map(Revoked::Id).map_err(|error| format!("a denied id is none: {error}"))
    });
    let entries = keys
        .chain(ids)
        .chain(sent.tainted_key_id.into_iter().map(|id| Ok(Revoked::Authority(id))))
        .chain(sent.denied_serial.into_iter().map(|serial| Ok(Revoked::Serial(serial))))
        .collect::<Result<Vec<_>, _>>()?;
    Revocations::new(entries).map_err(|error| error.to_string())
}

/// Roots must land even if these cannot be read: tokens are refused then, and nothing else.
pub(crate) fn jwt_keys(jwks: &[u8]) -> JwtKeys {
    JwtKeys::from_jwks(jwks).unwrap_or_else(|error| {
        warn!("the JWT keys of the trust bundle are left out: {error}");
        JwtKeys::default()
    })
}

/// Whether the same request would be refused again.
const fn refused_for_good(error: &AttemptError) -> bool {
    matches!(
        error,
        AttemptError::Refused {
            code: Code::FailedPrecondition
                | Code::InvalidArgument
                | Code::PermissionDenied
                | Code::Unauthenticated,
            ..
        }
    )
}

fn skew_ms(ca_ms: i64, now: SystemTime) -> Option<i64> {
    let ours = i64::try_from(now.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()?;
    (ca_ms > 0).then(|| ca_ms.saturating_sub(ours))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
