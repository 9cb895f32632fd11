//! Somebody at the workload's socket: the generated clients on a connection of their own.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_agent::workload::Endpoint;
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::{Request, Status};
use tower_service::Service;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::nursery)]
pub(crate) mod spiffe {
    include!(concat!(env!("OUT_DIR"), "/test-client/_.rs"));
}
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::nursery)]
pub(crate) mod sds {
    include!(concat!(env!("OUT_DIR"), "/test-client/envoy.service.secret.v3.rs"));
}

use sds::secret_discovery_service_client::SecretDiscoveryServiceClient;
use spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;

pub(crate) const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// A socket below `directory` for this process's user.
pub(crate) fn endpoint(directory: &Path) -> Endpoint {
    Endpoint {
        socket: directory.join("workload/api.sock"),
        mode: 0o600,
        uids: [nix::unistd::geteuid().as_raw()].into(),
        gids: [].into(),
    }
}

pub(crate) struct Caller {
    pub(crate) x509: SpiffeWorkloadApiClient<Channel>,
    pub(crate) sds: SecretDiscoveryServiceClient<Channel>,
    channel: Channel,
}

impl Caller {
    pub(crate) async fn connect(socket: &Path) -> Self {
        Self::with_window(socket, 65_535).await
    }

    pub(crate) async fn with_window(socket: &Path, window: u32) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let channel = Channel(sender);
        let origin = http::Uri::from_static("http://localhost/");
        Self {
            x509: SpiffeWorkloadApiClient::with_origin(channel.clone(), origin.clone()),
            sds: SecretDiscoveryServiceClient::with_origin(channel.clone(), origin),
            channel,
        }
    }

    /// The status of a call without a message.
    pub(crate) async fn raw(&mut self, path: &str) -> Status {
        let request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("workload.spiffe.io", "true")
            .body(Body::empty())
            .unwrap();
        let response = self.channel.call(request).await.unwrap();
        Status::from_header_map(response.headers()).expect("a status")
    }
}

/// A request as every client of the Workload API makes it.
pub(crate) fn asking<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

/// A request for secrets that answers the response with this nonce.
pub(crate) fn secrets(names: &[&str], nonce: &str) -> sds::DiscoveryRequest {
    sds::DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: SECRET.to_owned(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

#[derive(Clone)]
pub(crate) struct Channel(SendRequest<Body>);

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
