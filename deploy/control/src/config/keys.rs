//! `keys:` where the CA's keys rest.

use std::path::PathBuf;

use postern_ca::keys::Source;
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use serde::Deserialize;

/// How the CA's keys rest.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Keys {
    /// The secret that they are sealed with; without one they are plain files.
    pub seal: Option<Source>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    seal: Option<Spanned<RawSource>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawSource {
    key_file: Option<String>,
    passphrase_file: Option<String>,
    environment: Option<String>,
    credential: Option<String>,
}

impl Keys {
    pub(super) fn of(raw: Option<Raw>, file: &SourceFile, found: &mut Diagnostics) -> Self {
        let Some(seal) = raw.and_then(|raw| raw.seal) else { return Self::default() };
        let source = source(&seal.value);
        if let Err(message) = source {
            found.push(yaml::at(file, &seal, format!("keys.seal: {message}")).with_help(
                "write one of {keyFile: PATH}, {passphraseFile: PATH}, {environment: NAME}, {credential: NAME}",
            ));
        }
        Self { seal: source.ok() }
    }
}

fn source(raw: &RawSource) -> Result<Source, &'static str> {
    let RawSource { key_file, passphrase_file, environment, credential } = raw;
    let path = |text: &String| PathBuf::from(text);
    let named = [
        key_file.as_ref().map(|text| Source::KeyFile(path(text))),
        passphrase_file.as_ref().map(|text| Source::PassphraseFile(path(text))),
        environment.clone().map(Source::Environment),
        credential.clone().map(Source::Credential),
    ];
    let mut named = named.into_iter().flatten();
    match (named.next(), named.next()) {
        (Some(source), None) => match &source {
            Source::KeyFile(path) | Source::PassphraseFile(path) if path.as_os_str().is_empty() => {
                Err("name a file")
            }
            Source::Environment(name) | Source::Credential(name) if name.is_empty() => Err("it has no name"),
            _ => Ok(source),
        },
        (None, _) => Err("it says of no place where the secret is"),
        (Some(_), Some(_)) => Err("the secret is in one place only"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(keys: &str) -> Result<Option<Source>, String> {
        let text = format!("trustDomain: td\nstateDir: s\nlisten: {{address: \"[::1]:1\"}}\nkeys: {keys}\n");
        let file = SourceFile { name: "control.yaml".to_owned(), text: text.into_bytes() };
        Config::parse(&file).map(|config| config.keys.seal).map_err(|found| found.to_string())
    }

    #[test]
    fn one_place_for_the_secret() {
        for (text, source) in [
            ("{}", None),
            ("{seal: {keyFile: /etc/s.key}}", Some(Source::KeyFile("/etc/s.key".into()))),
            ("{seal: {passphraseFile: words}}", Some(Source::PassphraseFile("words".into()))),
            ("{seal: {environment: SEAL}}", Some(Source::Environment("SEAL".to_owned()))),
            ("{seal: {credential: seal}}", Some(Source::Credential("seal".to_owned()))),
        ] {
            assert_eq!(parse(text).unwrap(), source, "{text}");
        }
        for (bad, says) in [
            ("{seal: {}}", "no place"),
            ("{seal: {keyFile: a, environment: B}}", "one place only"),
            ("{seal: {keyFile: ''}}", "name a file"),
            ("{seal: {environment: ''}}", "no name"),
            ("{seal: {keyfile: a}}", "did you mean `keyFile`"),
            ("{sael: {keyFile: a}}", "did you mean `seal`"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains("control.yaml:4:") && error.contains(says), "{bad}: {error}");
        }
    }
}
