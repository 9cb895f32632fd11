//! What each name stands for.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use postern_svid::Bundle;
use prost::Message as _;
use tonic::Status;

use crate::identity::{Identity, Keyed};
use crate::proto::sds::spiffe_cert_validator_config::TrustDomain;
use crate::proto::sds::{
    CertificateValidationContext, DataSource, Secret, SpiffeCertValidatorConfig, TlsCertificate,
    TypedExtensionConfig, data_source, secret,
};
use crate::state::private_pem;

/// The SVID.
const DEFAULT: &str = "default";
/// The own trust domain's roots.
const ROOTS: &str = "ROOTCA";
/// Every trust domain's roots, each for its own ids only.
const ALL: &str = "ALL";
const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const VALIDATOR_CONFIG: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

enum Kind<'a> {
    Svid,
    Roots(&'a Bundle),
    AllRoots,
}

fn kind<'a>(identity: &'a Identity, name: &str) -> Option<Kind<'a>> {
    let own = identity.svid.id();
    let bundles = &identity.bundles;
    match name {
        DEFAULT => Some(Kind::Svid),
        ALL => Some(Kind::AllRoots),
        ROOTS => bundles.of_id(own).map(|bundle| Kind::Roots(bundle)),
        name if name == own.as_str() => Some(Kind::Svid),
        name => {
            bundles.iter().find(|bundle| bundle.trust_domain().id() == name).map(|bundle| Kind::Roots(bundle))
        }
    }
}

/// The names that are asked for; all that tell something of their own if none is.
fn asked<'a>(identity: &'a Identity, names: &'a BTreeSet<String>) -> Vec<(String, Option<Kind<'a>>)> {
    let id = identity.svid.id().as_str().to_owned();
    if names.is_empty() {
        let every = identity.bundles.iter().map(|bundle| bundle.trust_domain().id());
        return std::iter::once(id).chain(every).map(|name| (name.clone(), kind(identity, &name))).collect();
    }
    names.iter().map(|name| (name.clone(), kind(identity, name))).collect()
}

/// What the secrets of these names hold, in a word: two that are equal hold the same. An unknown name is refused with those
/// that there are.
pub(super) fn version(held: &Keyed, names: &BTreeSet<String>) -> Result<String, Status> {
    let identity = &held.identity;
    let (mut svid, mut roots, mut unknown) = (false, BTreeSet::new(), Vec::new());
    for (name, kind) in asked(identity, names) {
        match kind {
            Some(Kind::Svid) => svid = true,
            Some(Kind::Roots(bundle)) => drop(roots.insert(bundle.roots_digest())),
            Some(Kind::AllRoots) => roots.extend(identity.bundles.iter().map(|bundle| bundle.roots_digest())),
            None => unknown.push(name.chars().take(256).collect::<String>()),
        }
    }
    if !unknown.is_empty() {
        let known: Vec<String> = identity.bundles.iter().map(|bundle| bundle.trust_domain().id()).collect();
        return Err(Status::invalid_argument(format!(
            "no secret is named {unknown:?}: there are {DEFAULT}, {id}, {ROOTS}, {ALL}, {known}",
            id = identity.svid.id(),
            known = known.join(", "),
        )));
    }
    let mut version = String::new();
    for part in svid.then(|| identity.svid.serial()).into_iter().chain(roots.iter().map(|root| &root[..8])) {
        version.push_str(if version.is_empty() { "" } else { "-" });
        for byte in part {
            let _ = write!(version, "{byte:02x}");
        }
    }
    Ok(version)
}

/// Whether the SVID is among them.
pub(super) fn hold_key(held: &Keyed, names: &BTreeSet<String>) -> bool {
    asked(&held.identity, names).iter().any(|(_, kind)| matches!(kind, Some(Kind::Svid)))
}

/// The secrets of these names.
pub(super) fn all(held: &Keyed, names: &BTreeSet<String>) -> Vec<Secret> {
    let make = |(name, kind): (String, Option<Kind<'_>>)| {
        let content = match kind? {
            Kind::Svid => secret::Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(held.identity.svid.chain_pem()),
                private_key: inline(private_pem(&held.key).as_str()),
            }),
            Kind::Roots(bundle) => secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(bundle.to_pem()),
                custom_validator_config: None,
            }),
            Kind::AllRoots => secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: None,
                custom_validator_config: Some(validator(&held.identity)),
            }),
        };
        Some(Secret { name, r#type: Some(content) })
    };
    asked(&held.identity, names).into_iter().filter_map(make).collect()
}

fn validator(identity: &Identity) -> TypedExtensionConfig {
    let trust_domains = identity.bundles.iter().map(|bundle| TrustDomain {
        name: bundle.trust_domain().as_str().to_owned(),
        trust_bundle: inline(bundle.to_pem()),
    });
    let config = SpiffeCertValidatorConfig { trust_domains: trust_domains.collect() };
    TypedExtensionConfig {
        name: VALIDATOR.to_owned(),
        typed_config: Some(prost_types::Any {
            type_url: VALIDATOR_CONFIG.to_owned(),
            value: config.encode_to_vec(),
        }),
    }
}

fn inline(text: impl Into<Vec<u8>>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(data_source::Specifier::InlineBytes(text.into())) })
}
