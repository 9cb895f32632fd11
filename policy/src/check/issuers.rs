//! `jwt` of MeshDefaults: who issues tokens.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::yaml::Location;
use serde_json::Value;

use super::Page;
use crate::doc::{IssuerDoc, JwksDoc, JwtDefaults, List, Sp, TokenHeaderDoc};
use crate::fields;
use crate::issuers::{Algorithm, Issuer, Jwt, KeySource, OtherTokens, TokenHeader};
use crate::norm::CanonHost;
use crate::yaml::{self, Span};

/// Every sidecar whose rules ask for tokens fetches the keys of each.
pub(crate) const MAX_ISSUERS: usize = 16;
/// Longer ones are no name that a person wrote.
const MAX_NAME: usize = 512;
const MAX_SKEW: Duration = Duration::from_secs(300);
/// Clocks that a time server keeps differ by less.
const DEFAULT_SKEW: Duration = Duration::from_secs(30);
const MAX_STALE: Duration = Duration::from_secs(30 * 86_400);
const DEFAULT_STALE: Duration = Duration::from_secs(86_400);
/// An inline set larger than this belongs into a file.
const MAX_INLINE: usize = 64 * 1024;
/// Fields that never carry a token, or that stop at the sidecar.
const NO_TOKENS: [&str; 9] = [
    "host",
    "cookie",
    "connection",
    "upgrade",
    "te",
    "transfer-encoding",
    "content-length",
    "proxy-authorization",
    "x-forwarded-client-cert",
];

/// Checks `jwt`.
pub(super) fn jwt(page: &mut Page<'_>, section: &Sp<JwtDefaults>) -> Jwt {
    let JwtDefaults { issuers, other_tokens } = &section.value;
    let mut seen = BTreeMap::new();
    let mut out = Vec::with_capacity(issuers.value.len());
    for entry in page.items(issuers, "issuers") {
        let name = &entry.value.issuer;
        if let Some(first) = seen.insert(name.value.clone(), name.referenced) {
            let first = page.place(first);
            page.error_with(name.referenced, "this issuer stands here twice", format!("the first: {first}"));
        }
        out.extend(issuer(page, entry));
    }
    if issuers.value.len() > MAX_ISSUERS {
        page.error(issuers.referenced, format!("a mesh has at most {MAX_ISSUERS} issuers of tokens"));
    }
    let known = [("Reject", OtherTokens::Reject), ("Ignore", OtherTokens::Ignore)];
    let other_tokens = other_tokens.as_ref().and_then(|word| page.word(word, &known));
    Jwt { issuers: out.into(), other_tokens: other_tokens.unwrap_or_default() }
}

fn issuer(page: &mut Page<'_>, entry: &Sp<IssuerDoc>) -> Option<Issuer> {
    let IssuerDoc { issuer, audiences, jwks, algorithms, clock_skew, header, forward } = &entry.value;
    name(page, issuer);
    let audiences = texts(page, audiences, "audiences");
    let algorithms = match algorithms {
        Some(list) => self::algorithms(page, list),
        None => Box::new([Algorithm::RS256, Algorithm::ES256]),
    };
    let skew = bounded(page, clock_skew.as_ref(), DEFAULT_SKEW, MAX_SKEW, "a clock skew is at most 5m");
    let header = header.as_ref().map_or_else(TokenHeader::default, |header| self::header(page, header));
    Some(Issuer {
        name: issuer.value.as_str().into(),
        audiences,
        algorithms,
        keys: keys(page, jwks)?,
        clock_skew: skew,
        header,
        forward: forward.as_ref().is_none_or(|forward| forward.value),
    })
}

/// Checks the name of an issuer.
pub(crate) fn name(page: &mut Page<'_>, issuer: &Sp<String>) {
    if !is_text(&issuer.value) {
        page.error(
            issuer.referenced,
            format!("an issuer's name has 1 to {MAX_NAME} characters, none of them a control character"),
        );
    }
}

/// Names that tokens hold: compared byte by byte, so what cannot be seen is refused.
pub(super) fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && text.trim() == text && !text.chars().any(char::is_control)
}

pub(crate) fn texts(page: &mut Page<'_>, list: &List<String>, field: &str) -> Box<[Box<str>]> {
    let texts = page.each(list, field, |text| match is_text(text) {
        true => Ok(Box::from(text.as_str())),
        false => Err(format!(
            "a name has 1 to {MAX_NAME} characters, none of them a control character and no space at its ends"
        )),
    });
    texts.into()
}

fn bounded(
    page: &mut Page<'_>,
    span: Option<&Sp<Span>>,
    default: Duration,
    most: Duration,
    message: &str,
) -> Duration {
    let Some(span) = span else { return default };
    let Span(length) = span.value;
    if length > most {
        page.error(span.referenced, message);
    }
    length
}

fn algorithms(page: &mut Page<'_>, list: &List<String>) -> Box<[Algorithm]> {
    let mut out = Vec::new();
    for word in page.items(list, "algorithms") {
        let text = word.value.as_str();
        let lower = text.to_ascii_lowercase();
        if lower == "none" {
            page.error_with(
                word.referenced,
                "`none` is no signature: anybody could write such a token",
                "name the algorithm that the issuer signs with",
            );
        } else if lower.starts_with("hs") {
            page.error_with(
                word.referenced,
                format!(
                    "`{}` is made with a shared secret: every sidecar that could check a token could also make one",
                    yaml::printable(text)
                ),
                "let the issuer sign with a key pair: RS256, PS256, ES256 or EdDSA",
            );
        } else if let Some(algorithm) = page.word(word, &Algorithm::WORDS)
            && !out.contains(&algorithm)
        {
            out.push(algorithm);
        }
    }
    out.into()
}

fn header(page: &mut Page<'_>, entry: &Sp<TokenHeaderDoc>) -> TokenHeader {
    let TokenHeaderDoc { name, prefix } = &entry.value;
    let lower = name.value.to_ascii_lowercase();
    if lower != name.value {
        page.error_with(
            name.referenced,
            "names of header fields are written in lower case",
            format!("write `{}`", yaml::printable(&lower)),
        );
    } else {
        token_field(page, name.referenced, &lower);
    }
    let default = if lower == "authorization" { TokenHeader::default().prefix } else { Box::default() };
    let prefix = match prefix {
        Some(prefix) => {
            self::prefix(page, prefix);
            prefix.value.as_str().into()
        }
        None => default,
    };
    TokenHeader { name: lower.into(), prefix }
}

/// Checks that a header field, in lower case, can carry tokens.
pub(crate) fn token_field(page: &mut Page<'_>, at: Location, lower: &str) {
    if let Err(error) = fields::check_name(lower) {
        page.error(at, error.to_string());
    } else if NO_TOKENS.contains(&lower) || lower.starts_with("postern-") {
        page.error(at, format!("no token is read from the field `{lower}`"));
    }
}

/// Checks what stands before a token.
pub(crate) fn prefix(page: &mut Page<'_>, prefix: &Sp<String>) {
    if prefix.value.len() > 64 || !prefix.value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        page.error(prefix.referenced, "a prefix has at most 64 ASCII characters");
    }
}

fn keys(page: &mut Page<'_>, entry: &Sp<JwksDoc>) -> Option<KeySource> {
    let JwksDoc { file, url, inline, ca_file, max_stale } = &entry.value;
    let places = [
        file.as_ref().map(|text| text.referenced),
        url.as_ref().map(|text| text.referenced),
        inline.as_ref().map(|value| value.referenced),
    ];
    let mut given = places.into_iter().flatten();
    match (given.next(), given.next()) {
        (None, _) => {
            page.error_with(
                entry.referenced,
                "`jwks` says nowhere where the issuer's keys are",
                "write `file`, `url` or `inline`",
            );
            return None;
        }
        (Some(_), Some(second)) => {
            page.error_with(second, "an issuer's keys come from one place", "leave out the others");
            return None;
        }
        (Some(_), None) => {}
    }
    if let (Some(written), None) = (ca_file, url) {
        page.error_with(written.referenced, "`caFile` is for servers", "leave it out, or write `url`");
    }
    if let (Some(written), Some(_)) = (max_stale, inline) {
        page.error_with(written.referenced, "keys in a document do not grow stale", "leave it out");
    }
    let max_stale =
        bounded(page, max_stale.as_ref(), DEFAULT_STALE, MAX_STALE, "keys grow stale after at most 30d");
    if let Some(value) = inline {
        return inline_keys(page, value.referenced, &value.value);
    }
    if let Some(path) = file {
        return Some(KeySource::File { path: absolute(page, path), max_stale });
    }
    let url = url.as_ref()?;
    if let Err((message, help)) = check_url(&url.value) {
        page.error_with(url.referenced, message, help);
    } else if let Some(written) = ca_file
        && url.value.starts_with("http://")
    {
        page.error_with(written.referenced, "this server proves nothing: its URL is http", "leave it out");
    }
    let ca_file = ca_file.as_ref().map(|path| absolute(page, path));
    Some(KeySource::Url { url: url.value.as_str().into(), ca_file, max_stale })
}

/// A JWK set behind a URL, with all else as it is by default.
pub(crate) fn remote_keys(page: &mut Page<'_>, url: &Sp<String>) -> KeySource {
    if let Err((message, help)) = check_url(&url.value) {
        page.error_with(url.referenced, message, help);
    }
    KeySource::Url { url: url.value.as_str().into(), ca_file: None, max_stale: DEFAULT_STALE }
}

pub(super) fn absolute(page: &mut Page<'_>, path: &Sp<String>) -> Box<str> {
    if !path.value.starts_with('/') || path.value.contains('\0') {
        page.error_with(
            path.referenced,
            "this path is not absolute",
            "each sidecar reads the file on its own machine: write a path that begins with `/`",
        );
    }
    path.value.as_str().into()
}

/// `https://host[:port][/path][?query]`, or `http://` where the host is the machine itself.
fn check_url(url: &str) -> Result<(), (&'static str, &'static str)> {
    const FORM: &str = "write it like `https://id.example.com/jwks.json`";
    let (rest, is_http) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (rest, false),
        (None, Some(rest)) => (rest, true),
        (None, None) => return Err(("the URL of keys begins with `https://`", FORM)),
    };
    if url.len() > 2_048 || !url.bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
        return Err(("this is not a URL", FORM));
    }
    if rest.contains('#') {
        return Err(("a fragment is never sent", "leave out what begins with `#`"));
    }
    let authority = rest.split(['/', '?']).next().unwrap_or("");
    if authority.contains('@') {
        return Err(("secrets do not stand in documents", "leave out what stands before `@`"));
    }
    let host = CanonHost::parse(authority).map_err(|_| ("the URL has no host", FORM))?;
    let is_loopback =
        host.address().map_or_else(|| host.name() == "localhost", |address: IpAddr| address.is_loopback());
    if is_http && !is_loopback {
        return Err((
            "keys that come over http could be anybody's",
            "write `https://`; http is for servers on the sidecar's own loopback",
        ));
    }
    Ok(())
}

/// A JWK set that stands in the document.
pub(crate) fn inline_keys(page: &mut Page<'_>, at: Location, value: &Value) -> Option<KeySource> {
    let keys = value.get("keys").and_then(Value::as_array).filter(|keys| !keys.is_empty());
    let Some(keys) = keys else {
        page.error_with(at, "this is no set of keys", "write a JWK set: `{keys: [{kty: …}]}`");
        return None;
    };
    for key in keys {
        if !key.get("kty").is_some_and(Value::is_string) {
            page.error_with(at, "a key has no `kty`", "write a JWK set: `{keys: [{kty: …}]}`");
        } else if ["d", "p", "q", "k"].iter().any(|name| key.get(name).is_some()) {
            page.error_with(
                at,
                "a private key stands here",
                "only the issuer has private keys: take it out, and let the issuer make another",
            );
        }
    }
    let text = value.to_string();
    if text.len() > MAX_INLINE {
        page.error_with(at, "the set of keys is larger than 64 KiB", "write it to a file");
    }
    Some(KeySource::Inline(text.into()))
}
