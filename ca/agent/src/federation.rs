//! Bundles of other trust domains, as our control plane has them.
//!
//! It tells all of them at once, so that one which is no longer told is gone. Each vouches for its own ids, never for ours.

use std::collections::BTreeMap;
use std::sync::Arc;

use postern_svid::{Bundle, Bundles, TrustDomain};
use prost::Message as _;
use rustls_pki_types::CertificateDer;
use tracing::{info, warn};

use crate::identity::Live;
use crate::proto;
use crate::renew::jwt_keys;

/// More than any control plane federates with.
const MAX_TRUST_DOMAINS: usize = 64;

/// Bundles by trust domain.
pub(crate) type Foreigners = BTreeMap<TrustDomain, Arc<Bundle>>;

/// Reads them. One that cannot be read is left out, and with it its trust domain: what it had may have been taken out for a
/// reason.
pub(crate) fn read(sent: &proto::Federation, own: &TrustDomain) -> Foreigners {
    let mut bundles = Foreigners::new();
    for one in sent.bundles.iter().take(MAX_TRUST_DOMAINS) {
        match bundle(one, own) {
            Ok(bundle) => drop(bundles.insert(bundle.trust_domain().clone(), Arc::new(bundle))),
            Err(why) => warn!("the bundle of a federated trust domain is left out: {why}"),
        }
    }
    bundles
}

fn bundle(sent: &proto::Bundle, own: &TrustDomain) -> Result<Bundle, String> {
    let name: String = sent.trust_domain.chars().take(255).collect();
    let td = TrustDomain::parse(&sent.trust_domain).map_err(|error| format!("{name:?}: {error}"))?;
    if td == *own {
        return Err(format!("{td} is our own trust domain"));
    }
    let roots = sent.root_der.iter().cloned().map(CertificateDer::from).collect();
    let bundle = Bundle::new(td, sent.sequence, roots).map_err(|error| format!("{name}: {error}"))?;
    Ok(bundle.with_jwt_keys(jwt_keys(&sent.jwt_keys)))
}

impl Live {
    /// Puts what the control plane told in force, in the place of what it told before, and stores it.
    pub(crate) async fn federate(&self, sent: proto::Federation) {
        let _turn = self.turn.lock().await;
        let foreigners = read(&sent, &self.config.identity.trust_domain());
        {
            let mut held = self.held.lock();
            if is_same(&held.foreigners, &foreigners) {
                return;
            }
            held.foreigners.clone_from(&foreigners);
        }
        // In force even if it cannot be stored: somebody may have been taken out for a reason.
        let state = self.state.clone();
        let bytes = sent.encode_to_vec();
        match crate::runtime::blocking(move || state.store_federation(&bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("the bundles of federated trust domains are not stored: {error}"),
            Err(_) => warn!("the bundles of federated trust domains are not stored"),
        }
        let names: Vec<&str> = foreigners.keys().map(TrustDomain::as_str).collect();
        info!(trust_domains = names.join(" "), "federated trust domains");
        self.republish();
    }

    /// What was stored; nothing if it cannot be read, for the control plane tells it again.
    pub(crate) fn load_federation(&self) {
        let stored = match self.state.federation() {
            Ok(stored) => stored,
            Err(error) => {
                warn!("the bundles of federated trust domains cannot be read: {error}");
                return;
            }
        };
        let Some(bytes) = stored else { return };
        match proto::Federation::decode(bytes.as_slice()) {
            Ok(sent) => self.held.lock().foreigners = read(&sent, &self.config.identity.trust_domain()),
            Err(error) => warn!("the stored bundles of federated trust domains are left out: {error}"),
        }
    }
}

/// `own` and those of the others.
pub(crate) fn all(own: Arc<Bundle>, foreigners: &Foreigners) -> Bundles {
    let others = foreigners.values().filter(|bundle| bundle.trust_domain() != own.trust_domain());
    let bundles = others.fold(Bundles::default(), |bundles, one| bundles.with(one.clone()));
    bundles.with(own)
}

fn is_same(one: &Foreigners, other: &Foreigners) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((name, one), (other_name, other))| {
            name == other_name
                && one.sequence() == other.sequence()
                && one.digest() == other.digest()
                && one.jwt_keys() == other.jwt_keys()
        })
}
