//! Trust domains beside our own: our trust bundle for them at the bundle endpoint, and theirs for our sidecars.
//!
//! Bundles are never merged: each travels as its trust domain's, and vouches for that one's ids alone (SPIFFE Federation, 4.2).

mod endpoint;
mod fetch;
mod follow;
mod metrics;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use postern_ca::store::FederationStore;
use postern_svid::{Bundle, Clock, TrustDomain};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::config::{Config, ServerProfile};
use crate::own::Own;
use crate::task::Tasks;
use endpoint::WebCertificate;
use follow::{Followed, Shared};
use metrics::Metrics;

pub(crate) use endpoint::BundlePage;
pub(crate) use follow::FederationError;

/// The bundles of other trust domains as they are in force.
pub(crate) type Foreigners = BTreeMap<TrustDomain, Arc<Bundle>>;

/// Where they are published.
pub(crate) type Published = watch::Receiver<Arc<Foreigners>>;

/// Everything about other trust domains that is opened from the disk.
pub(crate) struct Federation {
    /// Of the bundle endpoint, if it does not show our own SVID.
    certificate: Option<Arc<WebCertificate>>,
    followed: Vec<Followed>,
    foreigners: Foreigners,
    metrics: Metrics,
    test: bool,
}

impl Federation {
    pub(crate) fn open(
        config: &Config,
        store: &dyn FederationStore,
        registry: &mut Registry,
        now: SystemTime,
    ) -> Result<Self, FederationError> {
        let certificate = match config.federation.endpoint.as_ref().map(|endpoint| &endpoint.profile) {
            Some(ServerProfile::Web { certificate, key }) => {
                Some(Arc::new(WebCertificate::open(certificate, key)?))
            }
            Some(ServerProfile::Spiffe) | None => None,
        };
        let metrics = Metrics::new(registry);
        let (followed, foreigners) = follow::open(&config.federation.trust_domains, store, now)?;
        Ok(Self { certificate, followed, foreigners, metrics, test: config.test })
    }

    /// What the bundle endpoint serves.
    pub(crate) fn page(&self, bundle: watch::Receiver<Arc<Bundle>>, own: &Own, tasks: &Tasks) -> BundlePage {
        let tls = match &self.certificate {
            Some(certificate) => {
                tasks.spawn(certificate.clone().keep(self.test, tasks.clone()));
                certificate.tls()
            }
            None => own.tls_for_anybody(),
        };
        BundlePage { bundle, tls }
    }

    /// Follows them all until everything stops.
    pub(crate) fn follow(
        self,
        store: Arc<dyn FederationStore>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Published {
        let (publish, published) = watch::channel(Arc::new(self.foreigners));
        let publish = Arc::new(publish);
        let shared = Shared { store, clock, publish, metrics: self.metrics, test: self.test };
        for followed in self.followed {
            tasks.spawn(followed.run(shared.clone(), tasks.clone()));
        }
        published
    }
}
