//! `attestation` and `registrations`: who is believed, and where it is written what they are granted.

use std::path::PathBuf;

use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use postern_svid::TrustDomain;
use serde::Deserialize;

use crate::registrations::Names;

/// Who is believed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Attestation {
    /// Clusters whose service account tokens are believed.
    pub kubernetes: Vec<TokenIssuer>,
    /// OIDC providers whose tokens are believed.
    pub oidc: Vec<TokenIssuer>,
    /// CAs whose certificates are believed of those who hold their keys.
    pub x509pop: Vec<Roots>,
    /// The directory of registrations; without it nothing is granted by attestation.
    pub registrations: Option<PathBuf>,
}

/// An issuer of tokens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenIssuer {
    /// Its name, by which registrations call it.
    pub name: String,
    /// `iss` of its tokens.
    pub issuer: String,
    /// What they must be for.
    pub audience: String,
    /// The file with its public keys, a JWK set; read again when it changes.
    pub jwks: PathBuf,
}

/// Roots of somebody else's CA.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Roots {
    /// Their name, by which registrations call them.
    pub name: String,
    /// The file with them, PEM; read again when it changes.
    pub bundle: PathBuf,
}

impl Attestation {
    /// The names that registrations may use.
    pub fn names(&self) -> Names {
        let names = |all: &[TokenIssuer]| all.iter().map(|one| one.name.clone()).collect();
        let roots = self.x509pop.iter().map(|one| one.name.clone()).collect();
        Names { clusters: names(&self.kubernetes), providers: names(&self.oidc), roots }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default)]
    kubernetes: Vec<Cluster>,
    #[serde(default)]
    oidc: Vec<Provider>,
    #[serde(default)]
    x509pop: Vec<Machines>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Machines {
    ca: Spanned<String>,
    bundle: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    cluster: Spanned<String>,
    issuer: Spanned<String>,
    audience: Option<Spanned<String>>,
    jwks: Jwks,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    provider: Spanned<String>,
    issuer: Spanned<String>,
    audience: Option<Spanned<String>>,
    jwks: Jwks,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Jwks {
    file: Spanned<String>,
}

/// Each issuer, with its places still at hand.
struct Written<'r> {
    name: &'r Spanned<String>,
    issuer: &'r Spanned<String>,
    audience: Option<&'r Spanned<String>>,
    jwks: &'r Jwks,
}

/// Checks what is written.
pub(super) fn check(
    file: &SourceFile,
    raw: &Raw,
    registrations: Option<&Spanned<String>>,
    trust_domain: Option<&TrustDomain>,
    found: &mut Diagnostics,
) -> Attestation {
    let clusters = raw.kubernetes.iter().map(|Cluster { cluster, issuer, audience, jwks }| Written {
        name: cluster,
        issuer,
        audience: audience.as_ref(),
        jwks,
    });
    let providers = raw.oidc.iter().map(|Provider { provider, issuer, audience, jwks }| Written {
        name: provider,
        issuer,
        audience: audience.as_ref(),
        jwks,
    });
    let kubernetes = issuers(file, clusters, trust_domain, found);
    let oidc = issuers(file, providers, trust_domain, found);
    // Two providers of one issuer could not be told apart; clusters can, by their keys.
    for (at, provider) in raw.oidc.iter().enumerate() {
        if raw.oidc[..at].iter().any(|other| other.issuer.value == provider.issuer.value) {
            found.push(yaml::at(file, &provider.issuer, "another provider has this issuer already"));
        }
    }
    let mut x509pop: Vec<Roots> = Vec::new();
    for Machines { ca, bundle } in &raw.x509pop {
        if ca.value.is_empty() || x509pop.iter().any(|other| other.name == ca.value) {
            found.push(yaml::at(file, ca, "a name of its own is missing, by which registrations call it"));
        }
        if bundle.value.is_empty() {
            found.push(yaml::at(file, bundle, "bundle: name a file of roots in PEM"));
        }
        x509pop.push(Roots { name: ca.value.clone(), bundle: PathBuf::from(&bundle.value) });
    }
    if let Some(written) = registrations.filter(|written| written.value.is_empty()) {
        found.push(yaml::at(file, written, "registrations: name a directory"));
    }
    let believed = raw
        .kubernetes
        .first()
        .map(|one| &one.cluster)
        .or_else(|| raw.oidc.first().map(|one| &one.provider))
        .or_else(|| raw.x509pop.first().map(|one| &one.ca));
    if let (Some(believed), None) = (believed, registrations) {
        let missing =
            yaml::at(file, believed, "nothing is granted to whoever is believed: `registrations` is missing");
        found.push(missing.with_help(
            "name the directory of `kind: Registration` documents: registrations: /etc/postern/registrations",
        ));
    }
    Attestation {
        kubernetes,
        oidc,
        x509pop,
        registrations: registrations.map(|written| PathBuf::from(&written.value)),
    }
}

fn issuers<'r>(
    file: &SourceFile,
    written: impl Iterator<Item = Written<'r>>,
    trust_domain: Option<&TrustDomain>,
    found: &mut Diagnostics,
) -> Vec<TokenIssuer> {
    let mut all: Vec<TokenIssuer> = Vec::new();
    for Written { name, issuer, audience, jwks } in written {
        if name.value.is_empty() {
            found.push(yaml::at(file, name, "a name is missing, by which registrations call it"));
        }
        if all.iter().any(|other| other.name == name.value) {
            found.push(yaml::at(file, name, "this name stands twice"));
        }
        for (text, what) in
            [(issuer, "issuer: write `iss` of its tokens"), (&jwks.file, "jwks.file: name a file")]
        {
            if text.value.is_empty() {
                found.push(yaml::at(file, text, what));
            }
        }
        let audience = match (audience, trust_domain) {
            (Some(audience), _) if audience.value.is_empty() => {
                found.push(yaml::at(file, audience, "audience: an empty one would be anybody's"));
                continue;
            }
            (Some(audience), _) => audience.value.clone(),
            (None, Some(td)) => format!("postern:{td}"),
            (None, None) => continue,
        };
        all.push(TokenIssuer {
            name: name.value.clone(),
            issuer: issuer.value.clone(),
            audience,
            jwks: PathBuf::from(&jwks.file.value),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use crate::Config;
    use postern_policy::SourceFile;

    const GOOD: &str = "trustDomain: td
stateDir: s
listen: {address: \"[::1]:1\"}
attestation:
  kubernetes:
  - {cluster: eu, issuer: https://k, jwks: {file: eu.json}}
  oidc:
  - {provider: ci, issuer: https://ci.example, audience: shop, jwks: {file: ci.json}}
  x509pop:
  - {ca: hall, bundle: hall.pem}
registrations: registrations
";

    fn parse(text: &str) -> Result<Config, String> {
        let file = SourceFile { name: "control.yaml".to_owned(), text: text.as_bytes().to_vec() };
        Config::parse(&file).map_err(|found| found.to_string())
    }

    #[test]
    fn what_is_believed() {
        let attestation = parse(GOOD).unwrap().attestation;
        let audiences = [&attestation.kubernetes[0].audience, &attestation.oidc[0].audience];
        assert_eq!(audiences, ["postern:td", "shop"]);
        assert_eq!(attestation.registrations.unwrap().to_str(), Some("registrations"));
    }

    #[test]
    fn mistakes_have_a_place() {
        for (from, to, place, says) in [
            ("cluster: eu", "cluster: ''", "control.yaml:6:", "name"),
            ("cluster: eu,", "clutser: eu,", "control.yaml:6:", "did you mean `cluster`"),
            ("issuer: https://k", "issuer: ''", "control.yaml:6:", "iss"),
            ("audience: shop", "audience: ''", "control.yaml:8:", "anybody's"),
            ("{file: eu.json}", "{file: ''}", "control.yaml:6:", "name a file"),
            ("{file: eu.json}", "{url: https://k}", "control.yaml:6:", "known: file"),
            (
                "  oidc:\n",
                "  - {cluster: eu, issuer: https://l, jwks: {file: l.json}}\n  oidc:\n",
                "control.yaml:7:",
                "twice",
            ),
            ("ca: hall", "ca: ''", "control.yaml:10:", "name of its own"),
            ("bundle: hall.pem", "bundle: ''", "control.yaml:10:", "PEM"),
            ("registrations: registrations\n", "", "control.yaml:6:", "`registrations` is missing"),
            ("registrations: registrations\n", "registrations: ''\n", "control.yaml:11:", "directory"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(place) && error.contains(says), "{to}: {error}");
        }
    }
}
