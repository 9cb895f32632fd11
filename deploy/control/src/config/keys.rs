//! `keys:` where the CA's keys rest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_ca::keys::{self, KeyError, KeyStore, PinSource, Source, TokenConfig};
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use postern_svid::TrustDomain;
use serde::Deserialize;

/// How the CA's keys rest.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Keys {
    /// The secret that they are sealed with; without one they are plain files.
    pub seal: Option<Source>,
    /// The token that the roots' keys are in.
    pub token: Option<TokenConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    seal: Option<Spanned<RawSource>>,
    pkcs11: Option<RawToken>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    module: Spanned<String>,
    token: Spanned<String>,
    pin: Spanned<RawPin>,
    #[serde(default)]
    issuing: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPin {
    file: Option<String>,
    environment: Option<String>,
    credential: Option<String>,
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
    /// The store of the keys in `directory`.
    pub fn open(&self, directory: &Path, td: &TrustDomain) -> Result<Arc<dyn KeyStore>, KeyError> {
        let seal = self.seal.as_ref();
        let keys = match &self.token {
            None => keys::open(directory, seal),
            Some(token) => keys::open_with_token(directory, seal, token, td),
        };
        keys.map(Arc::from)
    }

    pub(super) fn of(raw: Option<Raw>, file: &SourceFile, found: &mut Diagnostics) -> Self {
        let Some(Raw { seal, pkcs11 }) = raw else { return Self::default() };
        let seal = seal.and_then(|seal| match source(&seal.value) {
            Ok(source) => Some(source),
            Err(message) => {
                found.push(yaml::at(file, &seal, format!("keys.seal: {message}")).with_help(
                    "write one of {keyFile: PATH}, {passphraseFile: PATH}, {environment: NAME}, {credential: NAME}",
                ));
                None
            }
        });
        Self { seal, token: pkcs11.and_then(|raw| token(raw, file, found)) }
    }
}

fn token(raw: RawToken, file: &SourceFile, found: &mut Diagnostics) -> Option<TokenConfig> {
    let RawToken { module, token, pin, issuing } = raw;
    if !module.value.starts_with('/') {
        let message = "keys.pkcs11.module: not a whole path, such as /usr/lib/softhsm/libsofthsm2.so";
        found.push(yaml::at(file, &module, message));
    }
    if token.value.is_empty() {
        found.push(yaml::at(file, &token, "keys.pkcs11.token: name the token's label"));
    }
    let RawPin { file: path, environment, credential } = &pin.value;
    let named = [
        path.as_ref().map(|path| PinSource::File(PathBuf::from(path))),
        environment.clone().map(PinSource::Environment),
        credential.clone().map(PinSource::Credential),
    ];
    let mut named = named.into_iter().flatten();
    let (Some(source), None) = (named.next(), named.next()) else {
        let message = "keys.pkcs11.pin: the PIN is in one place, and never here";
        found.push(
            yaml::at(file, &pin, message)
                .with_help("write one of {file: PATH}, {environment: NAME}, {credential: NAME}"),
        );
        return None;
    };
    Some(TokenConfig { module: PathBuf::from(module.value), token: token.value, pin: source, issuing })
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

    #[test]
    fn a_token_with_its_pin_elsewhere() {
        let parse = |pkcs11: &str| {
            let text = format!(
                "trustDomain: td\nstateDir: s\nlisten: {{address: \"[::1]:1\"}}\nkeys: {{pkcs11: {pkcs11}}}\n"
            );
            let file = SourceFile { name: "control.yaml".to_owned(), text: text.into_bytes() };
            Config::parse(&file).map(|config| config.keys.token).map_err(|found| found.to_string())
        };
        let token = parse("{module: /usr/lib/m.so, token: mesh, pin: {file: /etc/pin}}").unwrap().unwrap();
        assert_eq!((token.token.as_str(), token.issuing), ("mesh", false));
        assert_eq!(token.pin, PinSource::File("/etc/pin".into()));
        assert!(
            parse("{module: /m.so, token: t, pin: {environment: PIN}, issuing: true}")
                .unwrap()
                .unwrap()
                .issuing
        );
        for (bad, says) in [
            ("{module: m.so, token: t, pin: {file: p}}", "not a whole path"),
            ("{module: /m.so, token: '', pin: {file: p}}", "label"),
            ("{module: /m.so, token: t, pin: {}}", "in one place"),
            ("{module: /m.so, token: t, pin: {file: p, environment: E}}", "in one place"),
            ("{module: /m.so, token: t}", "pin"),
            ("{module: /m.so, token: t, pin: '1234'}", "control.yaml:4:"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains("control.yaml:4:") && error.contains(says), "{bad}: {error}");
        }
    }
}
