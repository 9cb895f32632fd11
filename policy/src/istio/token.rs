//! What Istio's rules ask of tokens (`requestPrincipals`, `request.auth.*`). It allocates nothing.

use serde_json::Value;

use super::{Test, TextPattern};
use crate::eval_ref::Truth;
use crate::tokens::{ClaimPath, Claims, Tokens};
use crate::verdict::Action;

/// One attribute of a token and its values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenTest {
    /// As the rule's writer calls it.
    pub(crate) key: Box<str>,
    pub(crate) asks: Asks,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asks {
    /// `iss/sub`.
    Principal(Test<RequestPrincipal>),
    /// A claim: a text, or a list with one such text in it. Numbers and booleans are no texts, as in Istio.
    Claim { path: ClaimPath, are_words: bool, test: Test<TextPattern> },
}

/// `iss/sub`, cut at its last slash; a star stands at one end, or alone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RequestPrincipal {
    pub(crate) issuer: TextPattern,
    pub(crate) subject: TextPattern,
}

impl RequestPrincipal {
    pub(crate) fn parse(text: &str) -> Self {
        let exact = |text: &str| TextPattern::Exact(text.into());
        let (issuer, subject) = match (text.rsplit_once('/'), text.strip_prefix('*')) {
            (None, _) if text == "*" => (TextPattern::Present, TextPattern::Present),
            (Some((issuer, subject)), Some(_)) => (TextPattern::new(issuer), exact(subject)),
            // Without a slash a star in front is looked for in the subject, one at the end in the issuer.
            (None, Some(suffix)) => (TextPattern::Present, TextPattern::Suffix(suffix.into())),
            (Some((issuer, subject)), None) => (exact(issuer), TextPattern::new(subject)),
            (None, None) => match text.strip_suffix('*') {
                Some(prefix) => (TextPattern::Prefix(prefix.into()), TextPattern::Present),
                None => (exact(text), exact("")),
            },
        };
        Self { issuer, subject }
    }

    fn matches(&self, claims: &Claims) -> bool {
        self.issuer.matches(claims.issuer().as_bytes())
            && claims.subject().is_some_and(|subject| self.subject.matches(subject.as_bytes()))
    }
}

impl Asks {
    /// Whether it names values that a token must have.
    fn has_values(&self) -> bool {
        match self {
            Self::Principal(test) => !test.values.is_empty(),
            Self::Claim { test, .. } => !test.values.is_empty(),
        }
    }

    fn is(&self, claims: &Claims) -> bool {
        match self {
            Self::Principal(test) => test.values.iter().any(|pattern| pattern.matches(claims)),
            Self::Claim { path, are_words, test } => has(claims.get(path), *are_words, &test.values),
        }
    }

    fn is_excluded(&self, claims: &Claims) -> bool {
        match self {
            Self::Principal(test) => test.not.iter().any(|pattern| pattern.matches(claims)),
            Self::Claim { path, are_words, test } => has(claims.get(path), *are_words, &test.not),
        }
    }
}

/// Whether a claim is one of these, or has one of them in it. What is empty is not there.
fn has(value: Option<&Value>, are_words: bool, patterns: &[TextPattern]) -> bool {
    let one =
        |text: &str| !text.is_empty() && patterns.iter().any(|pattern| pattern.matches(text.as_bytes()));
    match value {
        Some(Value::String(text)) if are_words => text.split(' ').any(one),
        Some(Value::String(text)) => one(text),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).any(one),
        _ => false,
    }
}

/// Whether the tokens are what a rule of `action` asks for. As in Istio, `not` holds where there is no token.
///
/// Of several tokens Istio looks at one, and does not say which. So one of them must be all that an Allow asks for and none
/// what it excludes, and whatever any of them makes of a Deny makes it fire.
pub(crate) fn tokens_hold(tests: &[TokenTest], action: Action, tokens: Tokens<'_>) -> Truth {
    if tests.is_empty() {
        return Truth::True;
    }
    let all = match tokens {
        Tokens::Unknown => return Truth::Unknown,
        Tokens::Absent => &[],
        Tokens::Verified(all) => all,
    };
    let holds = if action.is_wide() {
        tests.iter().all(|TokenTest { key: _, asks }| {
            (!asks.has_values() || all.iter().any(|claims| asks.is(claims)))
                && (all.is_empty() || all.iter().any(|claims| !asks.is_excluded(claims)))
        })
    } else {
        let mut asking = tests.iter().filter(|test| test.asks.has_values()).peekable();
        let is_asked = asking.peek().is_some();
        let asked = |claims: &Claims| asking.clone().all(|test| test.asks.is(claims));
        (!is_asked || all.iter().any(|claims| asked(claims)))
            && !all.iter().any(|claims| tests.iter().any(|test| test.asks.is_excluded(claims)))
    };
    holds.into()
}

/// Why they are not, for people. What a token holds is somebody's data, and is not told.
pub(crate) fn token_failures(tests: &[TokenTest], action: Action, tokens: Tokens<'_>) -> Vec<String> {
    if let (Tokens::Unknown, false) = (tokens, tests.is_empty()) {
        return vec!["the request's token could not be verified: its key is not at hand".to_owned()];
    }
    let failed =
        tests.iter().filter(|test| tokens_hold(std::slice::from_ref(test), action, tokens) != Truth::True);
    let mut out: Vec<String> = failed
        .map(|TokenTest { key, .. }| match tokens {
            Tokens::Verified(_) => format!("the request's token is not as `{key}` asks"),
            Tokens::Absent | Tokens::Unknown => format!("the request has no token, and `{key}` asks for one"),
        })
        .collect();
    if out.is_empty() && tokens_hold(tests, action, tokens) != Truth::True {
        out.push("no single token of the request is all that is asked for".to_owned());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_principals() {
        for (pattern, issuer, subject, expected) in [
            ("https://id.x/ann", "https://id.x", "ann", true),
            ("https://id.x/ann", "https://id.x", "bob", false),
            ("https://id.x/ann", "https://id.y", "ann", false),
            ("https://id.x/*", "https://id.x", "bob", true),
            ("https://id.x/*", "https://id.x/more", "bob", false),
            ("https://id.x/a*", "https://id.x", "ann", true),
            ("https://id.x/a*", "https://id.x", "bob", false),
            ("https://id.*", "https://id.x", "ann", false),
            ("*/ann", "https://id.x", "ann", true),
            ("*.x/ann", "https://id.x", "ann", true),
            ("*.x/ann", "https://id.y", "ann", false),
            ("*nn", "https://id.x", "ann", true),
            ("*", "https://id.x", "ann", true),
            ("id*", "id.x", "ann", true),
            ("id*", "other", "ann", false),
            // Without a slash and a star the subject is empty, which none is.
            ("id", "id", "ann", false),
            // A subject with a slash is never cut so.
            ("id/a/b", "id", "a/b", false),
            ("id/a/b", "id/a", "b", true),
        ] {
            let claims = Claims::from_object(
                serde_json::json!({"iss": issuer, "sub": subject, "exp": 1}).as_object().unwrap().clone(),
            );
            let found = RequestPrincipal::parse(pattern).matches(&claims.unwrap());
            assert_eq!(found, expected, "{pattern} {issuer} {subject}");
        }
        let nobody = serde_json::json!({"iss": "id", "exp": 1}).as_object().unwrap().clone();
        assert!(!RequestPrincipal::parse("*").matches(&Claims::from_object(nobody).unwrap()));
    }
}
