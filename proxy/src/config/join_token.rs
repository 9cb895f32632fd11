//! `controlPlane.joinToken`: a file's path, or the descriptor that the process is started with.

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

/// What proves the workload to the control plane.
pub(super) fn attestation(
    file: &SourceFile,
    token: &Spanned<JoinToken>,
    wrong: &mut Diagnostics,
) -> Attestation {
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
        let attestation = attestation(&file, &document.token, &mut wrong);
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
}
