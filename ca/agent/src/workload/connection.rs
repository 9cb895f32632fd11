//! One connection: who is answered, by what, and for how long.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service as _;

use super::authority::Readable;
use super::secrets::Secrets;
use super::x509::X509;
use super::{Caller, Shared};
use crate::proto::sds::secret_discovery_service_server::SecretDiscoveryServiceServer;
use crate::proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApiServer;

/// More than any honest question: names of secrets, and an Envoy's description of itself.
const MAX_MESSAGE: usize = 64 * 1024;
const MAX_HEADERS: u32 = 8 * 1024;
/// An Envoy opens one for each secret.
const STREAMS: u32 = 32;
/// What waits on a stream for a caller that does not read.
const SEND_BUFFER: usize = 16 * 1024;
/// For the first question, and for the rest of any question that has begun.
const QUESTION: Duration = Duration::from_secs(10);
/// Without a stream and without a question.
const IDLE: Duration = Duration::from_secs(60);
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);
/// For somebody who may not ask.
const STRANGER: Duration = Duration::from_secs(5);
/// For the last frames once the end is told.
const GOODBYE: Duration = Duration::from_secs(1);

/// What makes a call one to the Workload API: a browser, or whoever is made to send requests to places, cannot set it.
const SECURITY_HEADER: &str = "workload.spiffe.io";
const WORKLOAD_API: &str = "/SpiffeWorkloadAPI/";
const SDS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/";

pub(super) async fn serve(stream: UnixStream, caller: Caller, shared: Arc<Shared>) {
    let activity = Arc::new(Activity::default());
    let service = {
        let activity = activity.clone();
        service_fn(move |request| {
            let (shared, activity) = (shared.clone(), activity.clone());
            async move { Ok::<_, Infallible>(answer(request, caller, &shared, activity).await) }
        })
    };
    // The executor's tasks are the connection's streams: they end with it.
    let connection = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .serve_connection(TokioIo::new(Readable::new(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = async {
        if !caller.is_admitted {
            return sleep(STRANGER).await;
        }
        let (mut seen, mut patience) = (0, QUESTION);
        loop {
            sleep(patience).await;
            let calls = activity.calls.load(Ordering::Relaxed);
            if activity.open.load(Ordering::Relaxed) == 0 && calls == seen {
                return;
            }
            (seen, patience) = (calls, IDLE);
        }
    };
    crate::runtime::select! {
        // How it ended is the caller's business.
        _ = connection.as_mut() => return,
        () = ended => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(GOODBYE, connection).await;
}

/// Whether a connection is used.
#[derive(Default)]
pub(super) struct Activity {
    calls: AtomicU64,
    open: AtomicUsize,
}

/// A call or a stream that is under way.
pub(super) struct Busy(Arc<Activity>);

impl Busy {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.calls.fetch_add(1, Ordering::Relaxed);
        activity.open.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn answer(
    mut request: http::Request<Incoming>,
    caller: Caller,
    shared: &Arc<Shared>,
    activity: Arc<Activity>,
) -> http::Response<Body> {
    let _busy = Busy::new(&activity);
    let path = request.uri().path().to_owned();
    let method = path.rsplit('/').next().unwrap_or_default();
    let response = match check(&request, &path, method, caller) {
        Err(status) => status.into_http(),
        Ok(()) => {
            request.extensions_mut().insert(activity);
            let answering = async {
                let answered = if path.starts_with(SDS) {
                    let service = SecretDiscoveryServiceServer::new(Secrets(shared.clone()));
                    service.max_decoding_message_size(MAX_MESSAGE).call(request).await
                } else {
                    let service = SpiffeWorkloadApiServer::new(X509(shared.clone()));
                    service.max_decoding_message_size(MAX_MESSAGE).call(request).await
                };
                answered.unwrap_or_else(|never| match never {})
            };
            let late = || Status::deadline_exceeded("the rest of the request did not come").into_http();
            timeout(QUESTION, answering).await.unwrap_or_else(|_| late())
        }
    };
    // A call that is refused has its status in its head; of a stream's later end the stream tells itself.
    let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    shared.counts.count(method, code);
    response
}

/// What is refused before any of it is read.
fn check(request: &http::Request<Incoming>, path: &str, method: &str, caller: Caller) -> Result<(), Status> {
    if !caller.is_admitted {
        return Err(Status::permission_denied(format!(
            "no identity for {caller}: workloadApi.allow of the sidecar names neither this user nor this group"
        )));
    }
    if path.starts_with(WORKLOAD_API) {
        let value = request.headers().get(SECURITY_HEADER);
        if value.is_none_or(|value| value.as_bytes() != b"true") {
            return Err(Status::invalid_argument(format!(
                "the metadata `{SECURITY_HEADER}: true` is missing, which every client of the Workload API sends"
            )));
        }
        return match method {
            "FetchX509SVID" | "FetchX509Bundles" | "FetchJWTSVID" | "FetchJWTBundles" | "ValidateJWTSVID" => {
                Ok(())
            }
            _ => Err(Status::unimplemented(
                "of the Workload API there are the X.509-SVID and JWT-SVID profiles",
            )),
        };
    }
    match path.strip_prefix(SDS) {
        Some("StreamSecrets" | "FetchSecrets") => Ok(()),
        Some(_) => Err(Status::unimplemented("there are StreamSecrets and FetchSecrets; use api_type: GRPC")),
        None => Err(Status::unimplemented(
            "here are SpiffeWorkloadAPI and envoy.service.secret.v3.SecretDiscoveryService",
        )),
    }
}
