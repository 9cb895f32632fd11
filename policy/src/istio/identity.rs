//! Istio's patterns for identities, over the text of a SPIFFE id.
//!
//! Istio makes regular expressions of most of them; names with a dot in them have matched other names for it
//! (CVE-2026-39350). Here they are text with gaps.

use std::fmt;

use postern_svid::{SpiffeId, TrustDomain};

use crate::rule::OwnDomains;

/// Where Istio's policies have no scheme, ids have one.
const SCHEME: &str = "spiffe://";
/// To Istio this name means the mesh's own trust domain and its aliases, whatever they are.
const OWN: &str = "cluster.local";

/// Who.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum IdentityPattern {
    Id(SpiffeId),
    /// Any id with a segment `ns`, then this one, then more; in whatever trust domain.
    Namespace(Box<str>),
    /// Any id with `/ns/{namespace}/`, and `sa/{name}` as whole segments somewhere behind; in whatever trust domain.
    Account {
        namespace: Box<str>,
        name: Box<str>,
    },
    Glob(Glob),
}

/// Text with gaps: what stands between them occurs in this order, the first at the start and the last at the end.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Glob(Box<[Box<str>]>);

impl Glob {
    fn new<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        Self(parts.into_iter().map(Box::from).collect())
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        let (first, rest) = match &*self.0 {
            [] => return false,
            [only] => return **only == *text,
            [first, rest @ ..] => (first, rest),
        };
        let Some(mut text) = text.strip_prefix(&**first) else { return false };
        let Some((last, middle)) = rest.split_last() else { return false };
        // The leftmost place leaves most for those behind it.
        for part in middle {
            match text.find(&**part) {
                Some(at) => text = &text[at + part.len()..],
                None => return false,
            }
        }
        text.ends_with(&**last)
    }

    /// What stands between the gaps.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|part| &**part)
    }
}

impl IdentityPattern {
    /// Wider ones mean more identities.
    pub(crate) fn width(&self) -> u8 {
        match self {
            Self::Id(_) => 0,
            Self::Account { .. } => 1,
            Self::Namespace(_) => 2,
            Self::Glob(_) => 3,
        }
    }

    /// Patterns of one item of `principals`, in the mesh's own trust domain and its aliases if it names one of them.
    pub(crate) fn principals(text: &str, own: &OwnDomains) -> Result<Vec<Self>, String> {
        expanded(text, own).iter().map(|text| Self::principal(text)).collect()
    }

    fn principal(text: &str) -> Result<Self, String> {
        if let Some(suffix) = text.strip_prefix('*') {
            return Ok(Self::Glob(Glob::new([SCHEME, suffix])));
        }
        if let Some(prefix) = text.strip_suffix('*') {
            return Ok(Self::Glob(Glob::new([format!("{SCHEME}{prefix}").as_str(), ""])));
        }
        let id = SpiffeId::parse(&format!("{SCHEME}{text}"));
        id.map(Self::Id).map_err(|error| format!("not a SPIFFE id without its `{SCHEME}`: {error}"))
    }

    /// An item of `namespaces`. A star stands for anything, slashes included.
    pub(crate) fn namespace(text: &str) -> Self {
        if !text.contains(['*', '/']) {
            return Self::Namespace(text.into());
        }
        Self::Glob(Glob::new(format!("*/ns/{text}/*").split('*')))
    }

    /// An item of `serviceAccounts`: `name` of the document's own namespace, or `namespace/name`.
    pub(crate) fn account(text: &str, own: &str) -> Self {
        let (namespace, name) = text.split_once('/').unwrap_or((own, text));
        Self::Account { namespace: namespace.into(), name: name.into() }
    }

    /// An item of `trustDomains`.
    pub(crate) fn trust_domain(text: &str, own: &OwnDomains) -> Vec<Self> {
        let named = |td: &TrustDomain| td.as_str() == text;
        let all: Vec<&str> = if domains(own).any(named) {
            domains(own).map(TrustDomain::as_str).collect()
        } else {
            vec![text]
        };
        let glob = |td: &str| {
            let whole = format!("{SCHEME}{td}/*");
            Self::Glob(Glob::new(whole.split('*')))
        };
        all.into_iter().map(glob).collect()
    }

    pub(crate) fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Id(own) => own == id,
            Self::Namespace(name) => namespaces(id.as_str()).any(|found| found == &**name),
            Self::Account { namespace, name } => {
                let at = format!("/ns/{namespace}/");
                let account = |behind: &str| {
                    let segments: Vec<&str> = behind.split('/').collect();
                    segments.windows(2).any(|pair| pair == ["sa", &**name])
                };
                // The leftmost place leaves most for what must follow.
                let path = id.as_str().strip_prefix(SCHEME).unwrap_or_default();
                path.split_once(&at).is_some_and(|(_, behind)| account(behind))
            }
            Self::Glob(glob) => glob.matches(id.as_str()),
        }
    }
}

/// All that stand between `/ns/` and another slash in an id.
pub(crate) fn namespaces(id: &str) -> impl Iterator<Item = &str> {
    let segments = || id.split('/').skip(1);
    let behind = segments().skip(1).zip(segments().skip(2));
    segments().zip(behind).filter(|(word, _)| *word == "ns").map(|(_, (namespace, _))| namespace)
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Namespace(name) => write!(f, "namespace {name}"),
            Self::Account { namespace, name } => write!(f, "service account {namespace}/{name}"),
            Self::Glob(glob) => f.write_str(&glob.0.join("*")),
        }
    }
}

fn domains(own: &OwnDomains) -> impl Iterator<Item = &TrustDomain> {
    std::iter::once(&own.canonical).chain(&own.aliases)
}

/// A principal of the mesh's own trust domain is meant in its aliases too; one of another shape or of another trust
/// domain stays what it is.
fn expanded(text: &str, own: &OwnDomains) -> Vec<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let [domain, rest @ ..] = parts.as_slice() else { return vec![text.to_owned()] };
    let named = |td: &str| match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
        (Some(suffix), _) => td.ends_with(suffix),
        (None, Some(prefix)) => td.starts_with(prefix),
        (None, None) => td == *domain,
    };
    let enforced = parts.len() == 5 && *domain != "*";
    if !enforced || !(*domain == OWN || domains(own).any(|td| named(td.as_str()))) {
        return vec![text.to_owned()];
    }
    let mut out: Vec<String> = Vec::new();
    for td in domains(own) {
        let starred = domain.strip_prefix('*').is_some_and(|suffix| td.as_str().ends_with(suffix));
        let principal = if starred { text.to_owned() } else { format!("{td}/{}", rest.join("/")) };
        if !out.contains(&principal) {
            out.push(principal);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> OwnDomains {
        let td = |name: &str| TrustDomain::parse(name).unwrap();
        OwnDomains { canonical: td("prod"), aliases: vec![td("old")] }
    }

    #[test]
    fn principals() {
        for (pattern, id, expected) in [
            ("*", "spiffe://x/a", true),
            ("prod/ns/a/sa/b", "spiffe://prod/ns/a/sa/b", true),
            ("prod/ns/a/sa/b", "spiffe://old/ns/a/sa/b", true),
            ("cluster.local/ns/a/sa/b", "spiffe://prod/ns/a/sa/b", true),
            ("cluster.local/ns/a/sa/b", "spiffe://old/ns/a/sa/b", true),
            ("cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/b", false),
            ("other/ns/a/sa/b", "spiffe://other/ns/a/sa/b", true),
            ("other/ns/a/sa/b", "spiffe://prod/ns/a/sa/b", false),
            ("prod/ns/a/sa/*", "spiffe://old/ns/a/sa/", false),
            ("prod/ns/a/sa/*", "spiffe://old/ns/a/sa/c", true),
            // Four parts: no trust domain is looked for.
            ("prod/ns/a/*", "spiffe://old/ns/a/sa/c", false),
            ("prod/ns/a/*", "spiffe://prod/ns/a/sa/c", true),
            ("*/sa/b", "spiffe://x/ns/a/sa/b", true),
            ("*/sa/b", "spiffe://x/ns/a/sa/bb", false),
            ("*/ns/a/sa/b", "spiffe://x/ns/a/sa/b", true),
            ("*/s./b", "spiffe://x/ns/a/sa/b", false),
        ] {
            let Ok(id) = SpiffeId::parse(id) else {
                assert!(!expected);
                continue;
            };
            let patterns = IdentityPattern::principals(pattern, &own()).unwrap();
            assert_eq!(patterns.iter().any(|pattern| pattern.matches(&id)), expected, "{pattern} {id}");
        }
        assert!(IdentityPattern::principals("spiffe://prod/ns/a/sa/b", &own()).is_err());
    }

    #[test]
    fn namespaces_and_accounts() {
        for (pattern, id, expected) in [
            ("a", "spiffe://x/ns/a/sa/b", true),
            ("a", "spiffe://x/k/v/ns/a/b", true),
            ("a", "spiffe://x/ns/a", false),
            ("a", "spiffe://x/ns/aa/sa/b", false),
            ("a*", "spiffe://x/ns/aa/sa/b", true),
            ("*a", "spiffe://x/ns/ba/sa/b", true),
            // The gap takes slashes.
            ("*b", "spiffe://x/ns/a/sa/b/c", true),
            ("*b", "spiffe://x/ns/a/sa/b", false),
            ("a.", "spiffe://x/ns/ab/sa/b", false),
        ] {
            let id = SpiffeId::parse(id).unwrap();
            assert_eq!(IdentityPattern::namespace(pattern).matches(&id), expected, "{pattern} {id}");
        }
        for (pattern, id, expected) in [
            ("b", "spiffe://x/ns/own/sa/b", true),
            ("a/b", "spiffe://x/ns/a/sa/b", true),
            ("a/b", "spiffe://x/ns/own/sa/b", false),
            ("a/b", "spiffe://x/ns/a/sa/bb", false),
            ("a/b", "spiffe://x/k/v/ns/a/k/v/sa/b/k/v", true),
            ("a/b", "spiffe://x/sa/b/ns/a/c", false),
        ] {
            let id = SpiffeId::parse(id).unwrap();
            assert_eq!(IdentityPattern::account(pattern, "own").matches(&id), expected, "{pattern} {id}");
        }
        for (pattern, id, expected) in [
            ("prod", "spiffe://old/a", true),
            ("other", "spiffe://old/a", false),
            ("other", "spiffe://other/a", true),
            ("oth*", "spiffe://other/a", true),
        ] {
            let id = SpiffeId::parse(id).unwrap();
            let patterns = IdentityPattern::trust_domain(pattern, &own());
            assert_eq!(patterns.iter().any(|pattern| pattern.matches(&id)), expected, "{pattern} {id}");
        }
    }
}
