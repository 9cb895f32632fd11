//! The id of a registration: a SPIFFE id in which facts may stand.

use postern_svid::{SpiffeId, TrustDomain};

use super::facts::{FactName, Facts};
use crate::authz;

/// An id, or the form of many: `spiffe://prod.example/ns/{k8s.namespace}/sa/{k8s.serviceAccount}`.
///
/// Each segment of the path holds one fact at most, and a fact fills it only with characters that ids may hold: so an id tells
/// its facts apart, and no fact can say two segments, or another trust domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Template {
    text: String,
    segments: Vec<Segment>,
}

/// Letters, a fact, letters.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Segment {
    before: String,
    fact: Option<FactName>,
    after: String,
}

/// Why a template is none, with the way out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{problem}")]
pub struct BadTemplate {
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub help: String,
}

impl Template {
    /// Reads the template of an id in `td`.
    pub fn parse(td: &TrustDomain, text: &str) -> Result<Self, BadTemplate> {
        let bad = |problem: String, help: &str| BadTemplate { problem, help: help.to_owned() };
        let root = format!("{}/", td.id());
        let Some(path) = text.strip_prefix(&root) else {
            let problem = "the id is not in this control plane's trust domain".to_owned();
            return Err(bad(problem, &format!("begin it with {root}")));
        };
        let segments = path.split('/').map(segment).collect::<Result<Vec<_>, _>>()?;
        let template = Self { text: text.to_owned(), segments };
        // Facts are letters like any others: whatever is wrong with this is wrong with each id.
        let sample = template.fill(&root, |_| Some("x")).unwrap_or_default();
        let sample = SpiffeId::parse(&sample)
            .map_err(|error| bad(error.to_string(), "write spiffe://<trust domain>/<segment>/…"))?;
        authz::may_exist(td, &sample)
            .map_err(|denied| bad(denied.to_string(), "choose a path that does not begin with /postern"))?;
        Ok(template)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The facts that stand in it.
    pub fn facts(&self) -> impl Iterator<Item = &FactName> {
        self.segments.iter().filter_map(|segment| segment.fact.as_ref())
    }

    /// The id for these facts.
    pub fn render(&self, td: &TrustDomain, facts: &Facts) -> Result<SpiffeId, String> {
        if let Some(unfit) = self.facts().find(|name| facts.only(name).is_none_or(|value| !is_fit(value))) {
            return Err(match facts.only(unfit) {
                None => format!("{unfit} is not there, or has several values, and stands in the id"),
                Some(_) => format!("{unfit} holds a character that ids may not, or nothing"),
            });
        }
        let root = format!("{}/", td.id());
        let text = self.fill(&root, |name| facts.only(name)).unwrap_or_default();
        let id = SpiffeId::parse(&text).map_err(|error| error.to_string())?;
        authz::may_exist(td, &id).map_err(|denied| denied.to_string())?;
        Ok(id)
    }

    fn fill<'v>(&self, root: &str, value: impl Fn(&FactName) -> Option<&'v str>) -> Option<String> {
        let mut out = root.to_owned();
        for (at, Segment { before, fact, after }) in self.segments.iter().enumerate() {
            if at > 0 {
                out.push('/');
            }
            out.push_str(before);
            if let Some(fact) = fact {
                out.push_str(value(fact)?);
            }
            out.push_str(after);
        }
        Some(out)
    }
}

/// Whether a fact may stand in an id as it is.
fn is_fit(value: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !value.is_empty() && value.bytes().all(letter)
}

fn segment(text: &str) -> Result<Segment, BadTemplate> {
    let bad = |problem: String, help: String| BadTemplate { problem, help };
    let Some((before, rest)) = text.split_once('{') else {
        return Ok(Segment { before: text.to_owned(), fact: None, after: String::new() });
    };
    let Some((variable, after)) = rest.split_once('}') else {
        return Err(bad("a `{` has no `}`".to_owned(), "write {k8s.namespace}".to_owned()));
    };
    let Some(fact) = FactName::of_variable(variable) else {
        let known: Vec<_> = FactName::variables().map(|known| format!("{{{known}}}")).collect();
        return Err(bad(format!("{variable:?} names no fact"), format!("known: {}", known.join(", "))));
    };
    if after.contains(['{', '}']) {
        return Err(bad(
            "two facts stand in one segment of the id: `a-b` and `c` would make the same as `a` and `b-c`"
                .to_owned(),
            "part them by `/`".to_owned(),
        ));
    }
    Ok(Segment { before: before.to_owned(), fact: Some(fact), after: after.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::Attestor;

    fn td() -> TrustDomain {
        TrustDomain::parse("td").unwrap()
    }

    fn facts(namespace: &str, account: &str) -> Facts {
        Facts::new(Attestor::Kubernetes)
            .with(FactName::KubernetesNamespace, namespace)
            .with(FactName::KubernetesServiceAccount, account)
    }

    #[test]
    fn facts_fill_their_segment_and_no_more() {
        let both = Template::parse(&td(), "spiffe://td/ns/{k8s.namespace}/sa/{k8s.serviceAccount}").unwrap();
        let made = both.render(&td(), &facts("shop", "orders")).unwrap();
        assert_eq!(made.as_str(), "spiffe://td/ns/shop/sa/orders");
        for odd in ["", "a/b", "..", ".", "%2f", "a b", "ü", "{k8s.namespace}", "a\0", &"a".repeat(3_000)] {
            assert!(both.render(&td(), &facts(odd, "orders")).is_err(), "{odd}");
            assert!(both.render(&td(), &facts("shop", odd)).is_err(), "{odd}");
        }
        let twice = facts("shop", "a").with(FactName::KubernetesServiceAccount, "b");
        assert!(both.render(&td(), &twice).unwrap_err().contains("several"));
        assert!(both.render(&td(), &Facts::new(Attestor::Oidc)).is_err());
    }

    #[test]
    fn a_fact_cannot_say_postern() {
        let whole = Template::parse(&td(), "spiffe://td/{k8s.namespace}/control").unwrap();
        assert!(whole.render(&td(), &facts("shop", "x")).is_ok());
        assert!(whole.render(&td(), &facts("postern", "x")).unwrap_err().contains("/postern/"));
        let half = Template::parse(&td(), "spiffe://td/post{k8s.namespace}/control").unwrap();
        assert!(half.render(&td(), &facts("ern", "x")).is_err());
        let end = Template::parse(&td(), "spiffe://td/{k8s.namespace}ern").unwrap();
        assert!(end.render(&td(), &facts("post", "x")).is_err());
    }

    #[test]
    fn what_is_no_template() {
        for (text, says) in [
            ("spiffe://other/a", "trust domain"),
            ("spiffe://td", "trust domain"),
            ("spiffe://{k8s.namespace}/a", "trust domain"),
            ("spiffe://td/", "segment"),
            ("spiffe://td/a//b", "segment"),
            ("spiffe://td/../a", "segment"),
            ("spiffe://td/postern/control", "/postern/"),
            ("spiffe://td/postern/{k8s.namespace}", "/postern/"),
            ("spiffe://td/{k8s.namespace", "no `}`"),
            ("spiffe://td/a}", "may not stand"),
            ("spiffe://td/{k8s.ns}", "names no fact"),
            ("spiffe://td/{k8s.namespace}-{k8s.serviceAccount}", "two facts"),
        ] {
            let bad = Template::parse(&td(), text).unwrap_err();
            assert!(bad.problem.contains(says), "{text}: {bad:?}");
        }
    }
}
