//! Certificates: a root, Envoy's own, and one for each identity that calls.

use std::collections::HashMap;
use std::sync::Arc;

use postern_svid::{Clock as _, SystemClock};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use tokio_rustls::rustls::ClientConfig;

use super::envoy;

pub(crate) struct Papers {
    pub(crate) root: String,
    /// Chain and key.
    pub(crate) server: (String, String),
    leaves: Vec<(String, String, String)>,
}

impl Papers {
    pub(crate) fn make(ids: &[&str]) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "the referee's root");
        life(&mut params);
        let key = KeyPair::generate().expect("keys can be made");
        let root = params.self_signed(&key).expect("the parameters are whole").pem();
        let issuer = Issuer::new(params, key);
        let leaf = |names: Vec<SanType>| {
            let mut params = CertificateParams::default();
            life(&mut params);
            params.subject_alt_names = names;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().expect("keys can be made");
            let certificate = params.signed_by(&key, &issuer).expect("the parameters are whole");
            (certificate.pem(), key.serialize_pem())
        };
        let dns = |name: &str| SanType::DnsName(name.try_into().expect("names of tests are ASCII"));
        let server = leaf(vec![dns("http.test"), dns("*.referee.test")]);
        let uri = |id: &str| SanType::URI(id.try_into().expect("ids of tests are ASCII"));
        let leaves = ids.iter().map(|id| {
            let (chain, key) = leaf(vec![uri(id)]);
            ((*id).to_owned(), chain, key)
        });
        let leaves = leaves.collect();
        Self { root, server, leaves }
    }

    pub(crate) fn clients(&self) -> HashMap<String, Arc<ClientConfig>> {
        let client =
            |(id, chain, key): &(String, String, String)| (id.clone(), envoy::client(&self.root, chain, key));
        self.leaves.iter().map(client).collect()
    }
}

fn life(params: &mut CertificateParams) {
    let now = OffsetDateTime::from(SystemClock.wall());
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::hours(1);
}
