//! `federation`: where our trust bundle is handed out, and whose else is fetched.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use http::Uri;
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use postern_svid::{SpiffeId, TrustDomain};
use serde::Deserialize;

/// Each has its bundle in every sidecar.
const MAX_TRUST_DOMAINS: usize = 16;

/// Trust domains beside our own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Federation {
    /// Where others fetch our trust bundle.
    pub endpoint: Option<BundleEndpoint>,
    /// Whose bundles we fetch.
    pub trust_domains: Vec<Foreign>,
}

/// The bundle endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BundleEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// With which certificate.
    pub profile: ServerProfile,
}

/// How the bundle endpoint proves itself (SPIFFE Federation, 5.2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerProfile {
    /// `https_web`: with a certificate of a public authority.
    Web {
        /// The chain, PEM.
        certificate: PathBuf,
        /// Its key, PEM, 0600.
        key: PathBuf,
    },
    /// `https_spiffe`: with the control plane's own SVID.
    Spiffe,
}

/// A trust domain whose bundle is fetched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Foreign {
    /// Its name.
    pub name: TrustDomain,
    /// Its bundle endpoint.
    pub url: Uri,
    /// How that proves itself.
    pub profile: ClientProfile,
    /// A bundle to begin with: a bundle document or PEM.
    pub bootstrap: Option<PathBuf>,
}

/// How a foreign bundle endpoint proves itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientProfile {
    /// `https_web`: by the authorities in this file, or the platform's.
    Web(Option<PathBuf>),
    /// `https_spiffe`: as this id, against the bundle that is held.
    Spiffe(SpiffeId),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Raw {
    listen: Option<super::Listener>,
    profile: Option<Spanned<Profile>>,
    certificate: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    #[serde(default)]
    trust_domains: Vec<Spanned<RawForeign>>,
}

#[derive(Clone, Copy, Deserialize, Eq, PartialEq)]
enum Profile {
    #[serde(rename = "https_web")]
    Web,
    #[serde(rename = "https_spiffe")]
    Spiffe,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawForeign {
    name: Spanned<String>,
    url: Spanned<String>,
    profile: Spanned<Profile>,
    spiffe_id: Option<Spanned<String>>,
    ca_file: Option<Spanned<String>>,
    bootstrap_bundle: Option<Spanned<String>>,
}

impl Federation {
    pub(super) fn of(
        raw: Option<Raw>,
        own: Option<&TrustDomain>,
        file: &SourceFile,
        found: &mut Diagnostics,
    ) -> Self {
        let Some(raw) = raw else { return Self::default() };
        let Raw { listen, profile, certificate, key, trust_domains } = raw;
        let endpoint = match listen {
            None => {
                let alone = profile.as_ref().map(|one| yaml::at(file, one, ALONE));
                let alone = alone.or_else(|| certificate.as_ref().map(|one| yaml::at(file, one, ALONE)));
                if let Some(alone) = alone.or_else(|| key.as_ref().map(|one| yaml::at(file, one, ALONE))) {
                    found.push(alone);
                }
                None
            }
            Some(listen) => endpoint(&listen, profile, certificate, key, file, found),
        };
        let mut names = BTreeSet::new();
        let mut foreign = Vec::new();
        for (at, raw) in trust_domains.iter().enumerate() {
            if at == MAX_TRUST_DOMAINS {
                let message = format!(
                    "federation: at most {MAX_TRUST_DOMAINS} trust domains: each one's roots are in every sidecar"
                );
                found.push(yaml::at(file, raw, message));
                break;
            }
            let Some(one) = Foreign::of(&raw.value, file, found) else { continue };
            if Some(&one.name) == own {
                found.push(yaml::at(
                    file,
                    &raw.value.name,
                    "federation: this is the own trust domain, whose bundle nobody else has a say in",
                ));
            } else if !names.insert(one.name.clone()) {
                found.push(yaml::at(
                    file,
                    &raw.value.name,
                    "federation: this trust domain stands here twice",
                ));
            } else {
                foreign.push(one);
            }
        }
        Self { endpoint, trust_domains: foreign }
    }
}

const ALONE: &str = "federation: without `listen` there is no bundle endpoint that this could be for";

fn endpoint(
    listen: &super::Listener,
    profile: Option<Spanned<Profile>>,
    certificate: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    file: &SourceFile,
    found: &mut Diagnostics,
) -> Option<BundleEndpoint> {
    let address = listen.address.value.parse::<SocketAddr>();
    if address.is_err() {
        let message = "federation.listen: not an address with a port, such as 0.0.0.0:24152";
        found.push(yaml::at(file, &listen.address, message));
    }
    let profile = match (profile.map(|one| one.value), certificate, key) {
        (Some(Profile::Web), Some(certificate), Some(key)) => {
            Some(ServerProfile::Web { certificate: certificate.value.into(), key: key.value.into() })
        }
        (Some(Profile::Web), ..) => {
            let message = "federation: https_web needs `certificate` and `key`, files that a public authority has signed and you have made";
            found.push(yaml::at(file, &listen.address, message));
            None
        }
        (Some(Profile::Spiffe), None, None) => Some(ServerProfile::Spiffe),
        (Some(Profile::Spiffe), certificate, key) => {
            for one in [certificate, key].iter().flatten() {
                let message = "federation: https_spiffe shows the control plane's own SVID; leave this out, or choose https_web";
                found.push(yaml::at(file, one, message));
            }
            None
        }
        (None, ..) => {
            let message = "federation: how does the endpoint prove itself? Name the profile: https_spiffe, or https_web with certificate and key";
            found.push(yaml::at(file, &listen.address, message));
            None
        }
    };
    Some(BundleEndpoint { address: address.ok()?, profile: profile? })
}

impl Foreign {
    fn of(raw: &RawForeign, file: &SourceFile, found: &mut Diagnostics) -> Option<Self> {
        let mut wrong = |place: &Spanned<String>, message: String| found.push(yaml::at(file, place, message));
        let name = match TrustDomain::parse(&raw.name.value) {
            Ok(name) => name,
            Err(error) => {
                wrong(&raw.name, format!("federation: name: {error}"));
                return None;
            }
        };
        let url = match url(&raw.url.value) {
            Ok(url) => Some(url),
            Err(why) => {
                wrong(&raw.url, format!("federation: url: {why}; write https://host[:port]/path"));
                None
            }
        };
        let bootstrap = raw.bootstrap_bundle.as_ref();
        let profile = match (raw.profile.value, &raw.spiffe_id, &raw.ca_file) {
            (Profile::Web, None, ca_file) => {
                Some(ClientProfile::Web(ca_file.as_ref().map(|one| one.value.clone().into())))
            }
            (Profile::Web, Some(id), _) => {
                wrong(id, "federation: https_web proves a host name, not an id; leave spiffeId out, or choose https_spiffe".to_owned());
                None
            }
            (Profile::Spiffe, _, Some(ca_file)) => {
                wrong(ca_file, "federation: https_spiffe asks no public authority; leave caFile out, or choose https_web".to_owned());
                None
            }
            (Profile::Spiffe, None, None) => {
                let message = "federation: https_spiffe needs spiffeId: who answers there, such as spiffe://other.example/postern/control";
                wrong(&raw.url, message.to_owned());
                None
            }
            (Profile::Spiffe, Some(id), None) => match SpiffeId::parse(&id.value) {
                Ok(parsed) if !parsed.is_member_of(&name) => {
                    wrong(
                        id,
                        format!("federation: spiffeId must belong to {name}, whose bundle it answers with"),
                    );
                    None
                }
                Ok(_) if bootstrap.is_none() => {
                    let message = "federation: https_spiffe needs bootstrapBundle: the other side's bundle to begin with, from postern ca bundle show --format spiffe there";
                    wrong(id, message.to_owned());
                    None
                }
                Ok(parsed) => Some(ClientProfile::Spiffe(parsed)),
                Err(error) => {
                    wrong(id, format!("federation: spiffeId: {error}"));
                    None
                }
            },
        };
        Some(Self {
            name,
            url: url?,
            profile: profile?,
            bootstrap: bootstrap.map(|one| one.value.clone().into()),
        })
    }
}

fn url(text: &str) -> Result<Uri, &'static str> {
    let url: Uri = text.parse().map_err(|_| "not a URL")?;
    if url.scheme_str() != Some("https") {
        return Err("bundles are fetched by https alone");
    }
    let authority =
        url.authority().filter(|authority| !authority.host().is_empty()).ok_or("it names no host")?;
    // "MUST NOT include userinfo" (SPIFFE Federation, 5.2.1.1).
    if authority.as_str().contains('@') {
        return Err("it may not name a user");
    }
    Ok(url)
}
