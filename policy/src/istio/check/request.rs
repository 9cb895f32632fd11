//! RequestAuthentication: issuers of tokens for the workloads that it selects.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::yaml::Location;

use super::super::doc::{FromHeaderDoc, JwtRuleDoc, RequestAuthenticationSpec};
use super::token::WORDS;
use super::{labels, names};
use crate::check::{Page, Rules, issuers};
use crate::diagnostic::Place;
use crate::doc::{Document, List, Sp};
use crate::issuers::{Algorithm, Issuer, KeySource, TokenHeader};
use crate::verdict::Workload;
use crate::yaml;

/// What Envoy takes for it.
const SKEW: Duration = Duration::from_secs(60);

/// A checked RequestAuthentication.
pub(crate) struct RequestPolicy {
    pub(crate) namespace: Box<str>,
    /// It stands in the root namespace.
    pub(crate) all: bool,
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) issuers: Vec<WrittenIssuer>,
    /// Its name.
    pub(crate) document: Box<str>,
}

/// An issuer, and where it stands.
pub(crate) struct WrittenIssuer {
    pub(crate) issuer: Issuer,
    pub(crate) at: Location,
    pub(crate) place: Place,
}

impl RequestPolicy {
    /// Whether it concerns `workload`.
    pub(crate) fn applies_to(&self, workload: &Workload) -> bool {
        (self.all || *self.namespace == *workload.namespace)
            && self.selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    }

    /// Whether some workload could be selected by both.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        let contradicts = |(key, value)| other.selector.get(key).is_some_and(|own| own != value);
        (self.all || other.all || self.namespace == other.namespace) && !self.selector.iter().any(contradicts)
    }
}

/// Checks a RequestAuthentication.
pub(crate) fn request_authentication(
    page: &mut Page<'_>,
    document: &Document<RequestAuthenticationSpec>,
    rules: &Rules<'_>,
) -> RequestPolicy {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    names(page, metadata);
    let RequestAuthenticationSpec { selector, target_ref, target_refs, jwt_rules } = &spec.value;
    for reference in [target_ref, target_refs].into_iter().flatten() {
        page.error_with(
            reference.referenced,
            "a RequestAuthentication is not attached to a Gateway or a Service here",
            "write `selector: {matchLabels: ...}` with the labels of the workloads behind it",
        );
    }
    let mut out = Vec::new();
    match jwt_rules {
        Some(list) => {
            for rule in page.items(list, "jwtRules") {
                out.extend(issuer(page, &rule.value));
            }
            if list.value.len() > issuers::MAX_ISSUERS {
                page.error(
                    list.referenced,
                    format!("a workload takes tokens of at most {} issuers", issuers::MAX_ISSUERS),
                );
            }
        }
        None => page.error_with(
            metadata.name.referenced,
            "a RequestAuthentication without `jwtRules` says nothing",
            "name an issuer: `jwtRules: [{issuer: …, jwksUri: …}]`",
        ),
    }
    let namespace = metadata.namespace.value.as_str();
    RequestPolicy {
        namespace: namespace.into(),
        all: namespace == rules.root_namespace,
        selector: selector.as_ref().map(|selector| labels(page, selector)).unwrap_or_default(),
        issuers: out,
        document: metadata.name.value.as_str().into(),
    }
}

fn issuer(page: &mut Page<'_>, rule: &JwtRuleDoc) -> Option<WrittenIssuer> {
    let JwtRuleDoc {
        issuer,
        audiences,
        jwks_uri,
        jwks,
        from_headers,
        from_params,
        from_cookies,
        output_payload_to_header,
        output_claim_to_headers,
        forward_original_token,
        timeout,
        space_delimited_claims,
    } = rule;
    issuers::name(page, issuer);
    for place in [from_params, from_cookies].into_iter().flatten() {
        page.error_with(
            place.referenced,
            "tokens are read from a header field here, never from a URL or a cookie: both end up in logs and in other sites' requests",
            "let callers send `Authorization: Bearer`, or name another field with `fromHeaders`",
        );
    }
    for output in [output_payload_to_header, output_claim_to_headers].into_iter().flatten() {
        page.error_with(
            output.referenced,
            "claims are not written into header fields here",
            "write `forwardOriginalToken: true`, and let the workload read the token that was verified",
        );
    }
    if let Some(timeout) = timeout {
        page.error_with(
            timeout.referenced,
            "keys are fetched in the background here, and no request waits for them",
            "leave `timeout` out",
        );
    }
    let words = space_delimited_claims.as_ref().map(|list| page.items(list, "spaceDelimitedClaims"));
    for name in words.unwrap_or_default() {
        if !WORDS.contains(&name.value.as_str()) {
            page.error_with(
                name.referenced,
                format!("`{}` is read as one text here", yaml::printable(&name.value)),
                "`scope` and `permission` are read as words; for another claim write an AccessPolicy with `jwt: {claims: {NAME: {has: …}}}`",
            );
        }
    }
    let audiences = audiences.as_ref().map(|list| issuers::texts(page, list, "audiences"));
    let header = from_headers.as_ref().and_then(|list| header(page, list));
    let keys = keys(page, issuer, jwks_uri.as_ref(), jwks.as_ref())?;
    let described = Issuer {
        name: issuer.value.as_str().into(),
        audiences: audiences.unwrap_or_default(),
        algorithms: Algorithm::WORDS.iter().map(|(_, algorithm)| *algorithm).collect(),
        keys,
        clock_skew: SKEW,
        header: header.unwrap_or_default(),
        forward: forward_original_token.as_ref().is_some_and(|forward| forward.value),
    };
    let place = page.place(issuer.referenced);
    Some(WrittenIssuer { issuer: described, at: issuer.referenced, place })
}

fn header(page: &mut Page<'_>, list: &List<FromHeaderDoc>) -> Option<TokenHeader> {
    let mut items = page.items(list, "fromHeaders").iter();
    let entry = items.next()?;
    if let Some(second) = items.next() {
        page.error_with(
            second.referenced,
            "an issuer's tokens are read from one header field here",
            "leave out the others: two places for a token are two tokens to disagree about",
        );
    }
    let FromHeaderDoc { name, prefix } = &entry.value;
    let lower = name.value.to_ascii_lowercase();
    issuers::token_field(page, name.referenced, &lower);
    if let Some(prefix) = prefix {
        issuers::prefix(page, prefix);
    }
    let prefix = prefix.as_ref().map(|prefix| prefix.value.as_str()).unwrap_or_default();
    Some(TokenHeader { name: lower.into(), prefix: prefix.into() })
}

fn keys(
    page: &mut Page<'_>,
    issuer: &Sp<String>,
    uri: Option<&Sp<String>>,
    inline: Option<&Sp<String>>,
) -> Option<KeySource> {
    match (uri, inline) {
        (Some(_), Some(inline)) => {
            page.error_with(inline.referenced, "an issuer's keys come from one place", "leave out the other");
            None
        }
        (None, None) => {
            let base = issuer.value.trim_end_matches('/');
            page.error_with(
                issuer.referenced,
                "nobody says where the issuer's keys are, and nothing is looked up by its name",
                format!(
                    "write `jwksUri`: what stands as `jwks_uri` in {}/.well-known/openid-configuration",
                    yaml::printable(base)
                ),
            );
            None
        }
        (Some(uri), None) => Some(issuers::remote_keys(page, uri)),
        (None, Some(text)) => match serde_json::from_str(&text.value) {
            Ok(value) => issuers::inline_keys(page, text.referenced, &value),
            Err(_) => {
                page.error_with(
                    text.referenced,
                    "`jwks` is no JSON",
                    "write a JWK set: `{\"keys\": [{\"kty\": …}]}`",
                );
                None
            }
        },
    }
}
