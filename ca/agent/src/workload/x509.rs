//! The Workload API: its X.509-SVID profile, and the way to the other (`jwt.rs`).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use postern_svid::Bundle;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch::Receiver;
use tonic::{Request, Response, Status};

use super::Shared;
use super::connection::{Activity, Busy};
use super::counts::Place;
use super::jwt;
use crate::identity::Keyed;
use crate::proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApi;
use crate::proto::spiffe::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse,
};

/// The Workload API.
pub(super) struct X509(pub(super) Arc<Shared>);

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for X509 {
    type FetchX509SVIDStream = Messages<X509svidResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.0.usable()?;
        self.follow(&request, svids)
    }

    type FetchX509BundlesStream = Messages<X509BundlesResponse>;

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.0.current()?;
        self.follow(&request, bundles)
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let _busy = busy(&request)?;
        self.0.token(request.into_inner()).await.map(Response::new)
    }

    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.0.has_jwt_keys()?;
        self.follow(&request, jwt::bundles)
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.0.validate(request.get_ref()).map(Response::new)
    }
}

impl X509 {
    fn follow<Q, T: Send + 'static>(
        &self,
        request: &Request<Q>,
        make: fn(&Keyed) -> (Vec<u8>, T),
    ) -> Result<Response<Messages<T>>, Status> {
        let place = (self.0.streams.enter()?, busy(request)?);
        Ok(Response::new(Box::pin(messages(self.0.observer.keyed(), make, place))))
    }
}

impl Shared {
    /// What is held.
    pub(super) fn current(&self) -> Result<Arc<Keyed>, Status> {
        let held = self.observer.keyed().borrow().clone();
        held.ok_or_else(|| {
            Status::unavailable("the sidecar has no identity yet: it waits for the control plane")
        })
    }

    /// What is held, if it is of any use: nobody would believe an SVID that has ended.
    pub(super) fn usable(&self) -> Result<Arc<Keyed>, Status> {
        let held = self.current()?;
        if self.observer.clock().wall() > held.identity.svid.not_after() {
            return Err(Status::unavailable(
                "the SVID has ended and the control plane gives no new one: the sidecar's log says why",
            ));
        }
        Ok(held)
    }
}

/// The mark of the connection's use, which the connection has put there.
pub(super) fn busy<Q>(request: &Request<Q>) -> Result<Busy, Status> {
    let activity = request.extensions().get::<Arc<Activity>>();
    activity.map(Busy::new).ok_or_else(|| Status::internal("a request without its connection"))
}

/// One message at once and one after each change of what `make` makes. It is made when it is asked for, so that whoever
/// does not read holds up nothing and gets the newest when he does.
fn messages<T: Send + 'static>(
    changes: Receiver<Option<Arc<Keyed>>>,
    make: fn(&Keyed) -> (Vec<u8>, T),
    place: (Place, Busy),
) -> impl Stream<Item = Result<T, Status>> + Send {
    stream::unfold((changes, None, place), move |(mut changes, mut sent, place)| async move {
        loop {
            let held = changes.borrow_and_update().clone();
            if let Some((mark, message)) = held.map(|held| make(&held))
                && sent.as_ref() != Some(&mark)
            {
                sent = Some(mark);
                return Some((Ok(message), (changes, sent, place)));
            }
            // The sidecar ends.
            changes.changed().await.ok()?;
        }
    })
}

fn svids(held: &Keyed) -> (Vec<u8>, X509svidResponse) {
    let identity = &held.identity;
    let own = identity.svid.id().trust_domain();
    let mut bundle = Vec::new();
    let mut federated_bundles = HashMap::new();
    for one in identity.bundles.iter() {
        if *one.trust_domain() == own {
            bundle = der(one);
        } else {
            federated_bundles.insert(one.trust_domain().id(), der(one));
        }
    }
    let svid = X509svid {
        spiffe_id: identity.svid.id().as_str().to_owned(),
        x509_svid: concatenated(identity.svid.chain()),
        x509_svid_key: held.key.pkcs8().to_vec(),
        bundle,
        hint: String::new(),
    };
    let mut mark = identity.svid.serial().to_vec();
    mark.extend(bundles(held).0);
    (mark, X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles })
}

fn bundles(held: &Keyed) -> (Vec<u8>, X509BundlesResponse) {
    let (mut mark, mut bundles) = (Vec::new(), HashMap::new());
    for one in held.identity.bundles.iter() {
        mark.extend_from_slice(&one.roots_digest()[..]);
        bundles.insert(one.trust_domain().id(), der(one));
    }
    (mark, X509BundlesResponse { crl: Vec::new(), bundles })
}

fn der(bundle: &Bundle) -> Vec<u8> {
    concatenated(bundle.roots())
}

fn concatenated(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|one| one.as_ref()).copied().collect()
}
