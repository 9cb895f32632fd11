//! Envoy's secret discovery service, with the names that SPIRE has made usual.
//!
//! State of the world: a response is everything that the stream has asked for, with a version that says what is in it. It is
//! sent when names change and when what is behind them changes, never because it was refused: the client keeps what it has
//! and waits for something newer.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use prost::Message as _;
use tokio::sync::watch::Receiver;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::Shared;
use super::connection::Busy;
use super::counts::Place;
use super::x509::busy;
use crate::identity::Keyed;
use crate::proto::sds::secret_discovery_service_server::SecretDiscoveryService;
use crate::proto::sds::{DiscoveryRequest, DiscoveryResponse, Secret};

mod secret;

/// The only type of resource here.
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// Names of one stream: there are hardly more than four.
const NAMES: usize = 32;
/// Of a client's reason that is written to the log.
const REASON: usize = 512;
const METHOD: &str = "StreamSecrets";

/// The service.
pub(super) struct Secrets(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let place = (self.0.streams.enter()?, busy(&request)?);
        self.0.current()?;
        let conversation = Conversation {
            requests: request.into_inner(),
            changes: self.0.observer.keyed(),
            shared: self.0.clone(),
            subscription: Subscription::default(),
            _place: place,
        };
        let responses = stream::unfold(Some(conversation), |conversation| async move {
            let mut conversation = conversation?;
            match conversation.next().await {
                Ok(response) => Some((Ok(response), Some(conversation))),
                Err(Some(status)) => {
                    conversation.shared.counts.count(METHOD, status.code());
                    Some((Err(status), None))
                }
                Err(None) => None,
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let request = request.into_inner();
        let names = names(&request)?;
        let (version, secrets) = self.0.secrets(&names)?;
        Ok(Response::new(response(version, "", &secrets)))
    }
}

impl Shared {
    /// The secrets of these names and their version.
    fn secrets(&self, names: &BTreeSet<String>) -> Result<(String, Vec<Secret>), Status> {
        let held = self.current()?;
        let version = secret::version(&held, names)?;
        if secret::hold_key(&held, names) {
            self.usable()?;
        }
        Ok((version, secret::all(&held, names)))
    }
}

/// A stream's two sides.
struct Conversation {
    requests: Streaming<DiscoveryRequest>,
    changes: Receiver<Option<Arc<Keyed>>>,
    shared: Arc<Shared>,
    subscription: Subscription,
    _place: (Place, Busy),
}

impl Conversation {
    /// The next response; `Err(None)` when client or sidecar has ended the stream. It is asked for only when the client has
    /// room for it, and until then no further request is read either.
    async fn next(&mut self) -> Result<DiscoveryResponse, Option<Status>> {
        loop {
            crate::runtime::select! {
                request = self.requests.message() => {
                    let request = request.map_err(|_| None)?.ok_or(None)?;
                    match self.subscription.take(request)? {
                        Taken::Wanted => {}
                        Taken::Refused(reason) => {
                            self.shared.counts.count(METHOD, Code::Aborted);
                            if let Some(left_out) = self.shared.lines.next() {
                                warn!(reason, left_out, "an SDS client refused the secrets that it got, and goes on with older ones");
                            }
                            continue;
                        }
                        Taken::Nothing => continue,
                    }
                }
                changed = self.changes.changed() => changed.map_err(|_| None)?,
            }
            let Some(names) = &self.subscription.names else { continue };
            let (version, secrets) = self.shared.secrets(names)?;
            if let Some(nonce) = self.subscription.send(&version) {
                return Ok(response(version, &nonce, &secrets));
            }
        }
    }
}

/// What a stream has asked for, was sent and has answered.
#[derive(Debug, Default)]
struct Subscription {
    /// `None` before the first request.
    names: Option<BTreeSet<String>>,
    /// Version of the last response, until other names are asked for.
    sent: Option<String>,
    /// How many responses there were; the last one's nonce.
    nonce: u64,
}

/// What a request asks us to do.
#[derive(Debug, PartialEq)]
enum Taken {
    /// A response.
    Wanted,
    /// Nothing: it took the last response, or answers an older one.
    Nothing,
    /// Nothing: it did not take the last response, and says why.
    Refused(String),
}

impl Subscription {
    fn take(&mut self, request: DiscoveryRequest) -> Result<Taken, Status> {
        let names = names(&request)?;
        // An answer to a response that another one has followed: the client's answer to that one is under way.
        if self.nonce > 0 && request.response_nonce != self.nonce.to_string() {
            debug!(nonce = request.response_nonce, "an SDS client answers an older response");
            return Ok(Taken::Nothing);
        }
        if self.names.as_ref() != Some(&names) {
            self.names = Some(names);
            self.sent = None;
            return Ok(Taken::Wanted);
        }
        Ok(request
            .error_detail
            .map_or(Taken::Nothing, |error| Taken::Refused(error.message.chars().take(REASON).collect())))
    }

    /// The nonce to send `version` with; `None` if it was sent.
    fn send(&mut self, version: &str) -> Option<String> {
        if self.sent.as_deref() == Some(version) {
            return None;
        }
        self.sent = Some(version.to_owned());
        self.nonce += 1;
        Some(self.nonce.to_string())
    }
}

fn names(request: &DiscoveryRequest) -> Result<BTreeSet<String>, Status> {
    if request.type_url != SECRET {
        return Err(Status::invalid_argument(format!("the only type here is {SECRET}")));
    }
    if request.resource_names.len() > NAMES {
        return Err(Status::invalid_argument(format!("at most {NAMES} names on one stream")));
    }
    Ok(request.resource_names.iter().cloned().collect())
}

fn response(version: String, nonce: &str, secrets: &[Secret]) -> DiscoveryResponse {
    let resources = secrets
        .iter()
        .map(|secret| prost_types::Any { type_url: SECRET.to_owned(), value: secret.encode_to_vec() })
        .collect();
    DiscoveryResponse {
        version_info: version,
        resources,
        type_url: SECRET.to_owned(),
        nonce: nonce.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sds;

    fn request(names: &[&str], nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            type_url: SECRET.to_owned(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    #[test]
    fn nonces_tell_answers_from_questions() {
        let mut stream = Subscription::default();
        assert_eq!(stream.take(request(&["default"], "")).unwrap(), Taken::Wanted);
        assert_eq!(stream.send("1").as_deref(), Some("1"));
        assert_eq!(stream.take(request(&["default"], "1")).unwrap(), Taken::Nothing, "an ACK");
        assert_eq!(stream.send("1"), None, "nothing is new");
        assert_eq!(stream.send("2").as_deref(), Some("2"));

        // An answer to the first, though it asks for more: the second's answer will ask again.
        assert_eq!(stream.take(request(&["default", "ROOTCA"], "1")).unwrap(), Taken::Nothing);
        assert_eq!(stream.take(request(&["default", "ROOTCA"], "2")).unwrap(), Taken::Wanted);
        assert_eq!(stream.send("2").as_deref(), Some("3"), "other names, even if the version is the same");
        assert_eq!(stream.take(request(&["ROOTCA", "default", "default"], "3")).unwrap(), Taken::Nothing);
    }

    #[test]
    fn a_refused_version_is_not_sent_again() {
        let mut stream = Subscription::default();
        stream.take(request(&["default"], "")).unwrap();
        stream.send("1");
        let mut refusal = request(&["default"], "1");
        let message = format!("key does not match{}", "!".repeat(10_000));
        refusal.error_detail = Some(sds::Status { code: 13, message });
        let Taken::Refused(reason) = stream.take(refusal).unwrap() else { panic!("a NACK") };
        assert!(reason.starts_with("key does not match!") && reason.len() == REASON, "{reason}");
        assert_eq!(stream.send("1"), None);
        assert_eq!(stream.send("2").as_deref(), Some("2"));
    }

    #[test]
    fn other_types_and_endless_lists_are_refused() {
        let mut other = request(&["default"], "");
        other.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
        assert_eq!(names(&other).unwrap_err().code(), Code::InvalidArgument);
        let many: Vec<String> = (0..=NAMES).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(names(&request(&many, "")).unwrap_err().code(), Code::InvalidArgument);
    }
}
