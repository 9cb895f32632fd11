//! `jwt`: whether the CA issues JWT-SVIDs, and for how long.

use std::time::Duration;

use postern_ca::jwt::{MAX_TTL, MIN_TEST_TTL, MIN_TTL, TTL};
use postern_policy::yaml::{self, Span, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use serde::Deserialize;

/// How JWT-SVIDs are issued.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Jwt {
    /// The life of a token; also the longest that a workload may ask for.
    pub ttl: Duration,
    /// The claim `iss`. SPIFFE does without; others who read tokens, OpenID Connect's among them, choose the keys by it.
    pub issuer: Option<String>,
}

impl Default for Jwt {
    fn default() -> Self {
        Self { ttl: TTL, issuer: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    enabled: Option<bool>,
    ttl: Option<Spanned<Span>>,
    issuer: Option<Spanned<String>>,
}

impl Jwt {
    /// `None` unless it is there and not switched off.
    pub(super) fn of(
        raw: Option<Raw>,
        test: bool,
        file: &SourceFile,
        found: &mut Diagnostics,
    ) -> Option<Self> {
        let raw = raw?;
        let mut jwt = Self::default();
        if let Some(ttl) = raw.ttl {
            jwt.ttl = ttl.value.0;
            if let Some(message) = refuse_ttl(jwt.ttl, test) {
                found.push(yaml::at(file, &ttl, message));
            }
        }
        if let Some(issuer) = raw.issuer {
            if !is_url(&issuer.value) {
                let message =
                    "jwt.issuer: not a URL such as https://issuer.example, of at most 255 characters";
                found.push(yaml::at(file, &issuer, message));
            }
            jwt.issuer = Some(issuer.value);
        }
        raw.enabled.unwrap_or(true).then_some(jwt)
    }

    pub(super) fn check(&self, test: bool) -> Result<(), String> {
        refuse_ttl(self.ttl, test).map_or(Ok(()), Err)
    }
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    text.len() <= 255
        && rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic()))
}

fn refuse_ttl(ttl: Duration, test: bool) -> Option<String> {
    if ttl.subsec_nanos() != 0 {
        return Some("jwt.ttl: tokens count whole seconds".to_owned());
    }
    if ttl > MAX_TTL {
        return Some(format!(
            "jwt.ttl: at most {} min: whoever gets hold of a token can use it until it ends",
            MAX_TTL.as_secs() / 60
        ));
    }
    let least = if test { MIN_TEST_TTL } else { MIN_TTL };
    (ttl < least).then(|| {
        format!(
            "jwt.ttl: at least {} s; shorter lives leave clocks and caches no room (test: true allows {} s)",
            least.as_secs(),
            MIN_TEST_TTL.as_secs()
        )
    })
}
