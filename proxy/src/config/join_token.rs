//! What proves the workload, one of: `controlPlane.joinToken`, a file's path or the descriptor that the process is started with;
//! `serviceAccountToken` and `oidcToken`, paths of files that others keep fresh; `x509pop`, a certificate and its key.

use std::fmt;
use std::path::PathBuf;

use postern_agent::Attestation;
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Where the join token comes from.
pub(super) enum JoinToken {
    File(PathBuf),
    Descriptor(u32),
}

impl<'de> Deserialize<'de> for JoinToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = JoinToken;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a file's path, or {descriptor: N}")
            }

            fn visit_str<E>(self, path: &str) -> Result<JoinToken, E> {
                Ok(JoinToken::File(path.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<JoinToken, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Named {
                    descriptor: u32,
                }
                let named = Named::deserialize(MapAccessDeserializer::new(map))?;
                Ok(JoinToken::Descriptor(named.descriptor))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The fields of `controlPlane` that may prove the workload.
pub(super) struct Proofs<'r> {
    pub(super) join_token: Option<&'r Spanned<JoinToken>>,
    pub(super) service_account_token: Option<&'r Spanned<PathBuf>>,
    pub(super) oidc_token: Option<&'r Spanned<PathBuf>>,
    pub(super) x509pop: Option<&'r Spanned<X509Pop>>,
    pub(super) process: Option<&'r Spanned<Process>>,
}

/// `peerProcess: {}`: this process itself, of which the kernel tells.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Process {}

/// A certificate that somebody else's CA gave the machine, and its key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct X509Pop {
    certificate: PathBuf,
    key: PathBuf,
}

/// What proves the workload to the control plane. `beside` is where it is missed.
pub(super) fn attestation(
    file: &SourceFile,
    proofs: &Proofs<'_>,
    beside: &Spanned<String>,
    wrong: &mut Diagnostics,
) -> Option<Attestation> {
    const ONE: &str = "write one of joinToken, serviceAccountToken, oidcToken, x509pop and peerProcess";
    let Proofs { join_token, service_account_token, oidc_token, x509pop, process } = *proofs;
    let given = [
        join_token.map(|token| yaml::at(file, token, TWO)),
        service_account_token.map(|path| yaml::at(file, path, TWO)),
        oidc_token.map(|path| yaml::at(file, path, TWO)),
        x509pop.map(|both| yaml::at(file, both, TWO)),
        process.map(|process| yaml::at(file, process, TWO)),
    ];
    let mut given = given.into_iter().flatten();
    if given.next().is_none() {
        wrong.push(yaml::at(file, beside, "nothing proves the workload to the control plane").with_help(ONE));
        return None;
    }
    if let Some(second) = given.next() {
        wrong.push(second.with_help(ONE));
        return None;
    }
    let by_token = join_token.map(|token| by_join_token(file, token, wrong));
    by_token
        .or_else(|| service_account_token.map(|path| Attestation::ServiceAccountToken(path.value.clone())))
        .or_else(|| oidc_token.map(|path| Attestation::OidcToken(path.value.clone())))
        .or_else(|| {
            let X509Pop { certificate, key } = &x509pop?.value;
            Some(Attestation::X509Pop { certificate: certificate.clone(), key: key.clone() })
        })
        .or_else(|| process.map(|_| Attestation::Process))
}

const TWO: &str = "two things are to prove the workload";

fn by_join_token(file: &SourceFile, token: &Spanned<JoinToken>, wrong: &mut Diagnostics) -> Attestation {
    match &token.value {
        JoinToken::File(path) => Attestation::JoinToken(path.clone()),
        JoinToken::Descriptor(descriptor) => {
            if let 1 | 2 = descriptor {
                wrong.push(
                    yaml::at(file, token, format!("descriptor {descriptor} is where this process writes to"))
                        .with_help("hand the token over at 3 or above, or at 0, the standard input"),
                );
            }
            Attestation::JoinTokenDescriptor(*descriptor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Attestation, String> {
        let file =
            SourceFile { name: "sidecar.yaml".to_owned(), text: format!("token: {text}\n").into_bytes() };
        #[derive(Deserialize)]
        struct Document {
            token: Spanned<JoinToken>,
        }
        let document: Document = yaml::parse(&file).map_err(|error| error.to_string())?;
        let mut wrong = Diagnostics::new();
        let attestation = by_join_token(&file, &document.token, &mut wrong);
        if wrong.is_empty() { Ok(attestation) } else { Err(wrong.to_string()) }
    }

    #[test]
    fn a_path_or_a_descriptor() {
        assert!(matches!(parse("/etc/token"), Ok(Attestation::JoinToken(path)) if path.ends_with("token")));
        for (text, number) in [("{descriptor: 3}", 3), ("{descriptor: 0}", 0)] {
            assert!(matches!(parse(text), Ok(Attestation::JoinTokenDescriptor(n)) if n == number), "{text}");
        }
        for (text, says) in [
            ("{descriptor: 2}", "where this process writes to"),
            ("{descriptr: 3}", "unknown field `descriptr`"),
            ("{descriptor: -1}", "sidecar.yaml:1"),
            ("{}", "`descriptor` is missing"),
            ("[3]", "a file's path, or {descriptor: N}"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
    #[test]
    fn exactly_one_thing_proves_the_workload() {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        struct Document {
            address: Spanned<String>,
            join_token: Option<Spanned<JoinToken>>,
            service_account_token: Option<Spanned<PathBuf>>,
            oidc_token: Option<Spanned<PathBuf>>,
            x509pop: Option<Spanned<X509Pop>>,
            peer_process: Option<Spanned<Process>>,
        }
        let parse = |text: &str| {
            let text = format!("address: a:1\n{text}").into_bytes();
            let file = SourceFile { name: "sidecar.yaml".to_owned(), text };
            let raw: Document = yaml::parse(&file).map_err(|error| error.to_string())?;
            let proofs = Proofs {
                join_token: raw.join_token.as_ref(),
                service_account_token: raw.service_account_token.as_ref(),
                oidc_token: raw.oidc_token.as_ref(),
                x509pop: raw.x509pop.as_ref(),
                process: raw.peer_process.as_ref(),
            };
            let mut wrong = Diagnostics::new();
            attestation(&file, &proofs, &raw.address, &mut wrong).ok_or_else(|| wrong.to_string())
        };
        assert!(matches!(parse("serviceAccountToken: /t\n"), Ok(Attestation::ServiceAccountToken(_))));
        assert!(matches!(parse("oidcToken: /t\n"), Ok(Attestation::OidcToken(_))));
        assert!(matches!(parse("joinToken: /t\n"), Ok(Attestation::JoinToken(_))));
        assert!(matches!(parse("x509pop: {certificate: /c, key: /k}\n"), Ok(Attestation::X509Pop { .. })));
        assert!(matches!(parse("peerProcess: {}\n"), Ok(Attestation::Process)));
        assert!(parse("x509pop: {certificate: /c}\n").unwrap_err().contains("`key` is missing"));
        for (text, place) in [
            ("", "sidecar.yaml:1:10"),
            ("joinToken: /t\nserviceAccountToken: /u\n", "sidecar.yaml:3:22"),
            ("serviceAccountToken: /u\noidcToken: /t\n", "sidecar.yaml:3:12"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(place) && error.contains("write one of"), "{text}: {error}");
        }
    }
}
