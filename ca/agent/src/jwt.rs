//! JWT-SVIDs from the control plane, kept by audience until half of their life is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use postern_svid::jwt;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Code, Status};
use tracing::debug;

use crate::connect;
use crate::error::AttemptError;
use crate::identity::{Identity, Live};
use crate::{proto, renew};

/// Tokens that are kept. A workload has few audiences; one with more asks the control plane more often.
const KEPT: usize = 256;
/// Questions to the control plane at a time.
const ASKING: usize = 4;
/// For a whole question, within what a caller waits.
const QUESTION: Duration = Duration::from_secs(8);
/// Past half of its life a token is given out only if no new one can be had, and with at least so much left.
const LEAST_LEFT: Duration = Duration::from_secs(2);

/// Tokens by audience.
pub(crate) struct Tokens {
    kept: Mutex<HashMap<Vec<String>, Token>>,
    asking: Semaphore,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { kept: Mutex::default(), asking: Semaphore::new(ASKING) }
    }
}

#[derive(Clone)]
struct Token {
    text: Arc<str>,
    /// Half of its life.
    renew_after: SystemTime,
    expires: SystemTime,
}

impl Live {
    /// A token of our id for exactly these audiences.
    pub(crate) async fn jwt_svid(
        &self,
        identity: &Identity,
        audience: Vec<String>,
    ) -> Result<Arc<str>, Status> {
        // Whatever becomes of a question: who is denied gets nothing that was kept.
        if let Some(by) = renew::denied(identity, self.clock.wall()) {
            return Err(Status::permission_denied(format!("no JWT-SVID: {by}")));
        }
        if let Some(token) = self.fresh(identity, &audience) {
            return Ok(token);
        }
        let asked = timeout(QUESTION, async {
            let _turn = self.tokens.asking.acquire().await;
            // Somebody before us in the queue may have asked for the same.
            match self.fresh(identity, &audience) {
                Some(token) => Ok(token),
                None => self.ask(identity, &audience).await,
            }
        });
        let error = match asked.await {
            Ok(Ok(token)) => return Ok(token),
            Ok(Err(error)) => error,
            Err(_) => AttemptError::Timeout("a JWT-SVID"),
        };
        if is_passing(&error)
            && let Some(token) = self.last(identity, &audience)
        {
            debug!("an older JWT-SVID serves on: {error}");
            return Ok(token);
        }
        Err(status(&error))
    }

    fn fresh(&self, identity: &Identity, audience: &[String]) -> Option<Arc<str>> {
        self.kept(identity, audience, |token, now| now < token.renew_after)
    }

    fn last(&self, identity: &Identity, audience: &[String]) -> Option<Arc<str>> {
        self.kept(identity, audience, |token, now| now + LEAST_LEFT <= token.expires)
    }

    /// A kept token that is good enough, and that a peer would take now: its key may have left the bundle.
    fn kept(
        &self,
        identity: &Identity,
        audience: &[String],
        is_good: impl Fn(&Token, SystemTime) -> bool,
    ) -> Option<Arc<str>> {
        let now = self.clock.wall();
        let token = self.tokens.kept.lock().get(audience).cloned()?;
        let one = audience.first()?;
        (is_good(&token, now) && jwt::verify(&token.text, one, &identity.bundles, now).is_ok())
            .then_some(token.text)
    }

    async fn ask(&self, identity: &Identity, audience: &[String]) -> Result<Arc<str>, AttemptError> {
        let pace = self.pace();
        let mut connection = connect::open(self, Some(&identity.svid), pace).await?;
        let request = proto::IssueJwtRequest {
            spiffe_id: identity.svid.id().as_str().to_owned(),
            audience: audience.to_vec(),
            ttl_seconds: 0,
        };
        let answer = timeout(pace.step(), connection.client.issue_jwt(request))
            .await
            .map_err(|_| AttemptError::Timeout("issuing a JWT-SVID"))?
            .map_err(|status| AttemptError::from_status(&status))?
            .into_inner();
        // A bad answer must not reach the workload: what peers would refuse is refused here first.
        let now = self.clock.wall();
        for one in audience {
            let svid = jwt::verify(&answer.token, one, &identity.bundles, now)
                .map_err(|error| AttemptError::Answer(format!("a JWT-SVID that does not verify: {error}")))?;
            if svid.id != *identity.svid.id() {
                return Err(AttemptError::Answer(format!("a JWT-SVID of {}", svid.id)));
            }
        }
        let expires = u64::try_from(answer.expires_unix_ms).ok();
        let expires = expires.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms))).unwrap_or(now);
        let left = expires.duration_since(now).unwrap_or_default();
        let text: Arc<str> = answer.token.into();
        self.keep(audience, Token { text: text.clone(), renew_after: now + left / 2, expires }, now);
        Ok(text)
    }

    fn keep(&self, audience: &[String], token: Token, now: SystemTime) {
        let mut kept = self.tokens.kept.lock();
        if kept.len() >= KEPT && !kept.contains_key(audience) {
            kept.retain(|_, token| now < token.expires);
            if kept.len() >= KEPT {
                // Whichever ends first is worth the least.
                let first = kept.iter().min_by_key(|(_, token)| token.expires).map(|(name, _)| name.clone());
                first.map(|first| kept.remove(&first));
            }
        }
        kept.insert(audience.to_vec(), token);
    }
}

/// Whether it may be otherwise in a moment, so that an older token is better than none. A refusal is none of these: who is
/// denied must not go on with what was kept.
const fn is_passing(error: &AttemptError) -> bool {
    match error {
        AttemptError::Refused { code, .. } => {
            matches!(code, Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded)
        }
        AttemptError::Connect(..)
        | AttemptError::Timeout(_)
        | AttemptError::Handshake { .. }
        | AttemptError::Connection(_)
        | AttemptError::Answer(_)
        | AttemptError::Local(_) => true,
    }
}

/// What the workload is told.
fn status(error: &AttemptError) -> Status {
    match error {
        AttemptError::Refused { code, message, .. } => match code {
            Code::InvalidArgument => Status::invalid_argument(message),
            Code::Unimplemented => Status::unimplemented(message),
            Code::ResourceExhausted => Status::resource_exhausted(message),
            Code::PermissionDenied | Code::Unauthenticated => Status::permission_denied(message),
            _ => Status::unavailable(message),
        },
        error => Status::unavailable(format!("no JWT-SVID: {error}")),
    }
}
