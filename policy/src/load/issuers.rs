//! Who issues tokens for whom: MeshDefaults for everybody, RequestAuthentications for the workloads that they select.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::file::{Content, Head};
use super::set::{CheckedSet, Set, text};
use crate::diagnostic::{Diagnostics, SourceFile};
use crate::issuers::{Issuer, Jwt};
use crate::istio::{RequestPolicy, WrittenIssuer};
use crate::verdict::Workload;
use crate::yaml;

/// Those that share a name are compared with each other.
pub(super) const MAX_WRITTEN: usize = 2_000;

impl Set<'_> {
    /// Names of issuers that RequestAuthentications add.
    pub(super) fn request_issuers(&self) -> Arc<[Box<str>]> {
        let names: BTreeSet<&Box<str>> = self.heads().flat_map(|(_, head)| &head.issuers).collect();
        names.into_iter().cloned().collect()
    }
}

impl<'a> CheckedSet<'a> {
    pub(super) fn request_policies(&self) -> Vec<Arc<RequestPolicy>> {
        self.written_issuers().map(|(_, _, policy)| Arc::clone(policy)).collect()
    }

    fn written_issuers(&self) -> impl Iterator<Item = (&'a SourceFile, &Head, &Arc<RequestPolicy>)> {
        self.documents().filter_map(|(file, head, content)| match content {
            Content::RequestAuthentication(policy) => Some((file, head, policy)),
            _ => None,
        })
    }

    /// An issuer that a workload hears of twice must be the same both times: one that accepts more than the other would
    /// undo what the other demands.
    pub(super) fn check_issuers(&mut self, jwt: &Jwt) {
        let mut errors = Diagnostics::new();
        let mut seen: HashMap<&str, Vec<(&RequestPolicy, &WrittenIssuer)>> = HashMap::new();
        for (file, head, policy) in self.written_issuers() {
            for written in &policy.issuers {
                let name = &*written.issuer.name;
                let of_mesh = jwt.issuer(name).map(|known| (known, "MeshDefaults".to_owned()));
                let earlier = seen.entry(name).or_default();
                let mut others = earlier.iter().filter(|(other, _)| policy.meets(other));
                let other = others.find(|(_, other)| !other.issuer.agrees_with(&written.issuer));
                let other = other.map(|(_, other)| (&other.issuer, other.place.to_string()));
                let other = of_mesh.filter(|(known, _)| !known.agrees_with(&written.issuer)).or(other);
                if let Some((other, place)) = other {
                    let text = text(file);
                    let mut page = head.page(&text);
                    let message = difference(&written.issuer, other);
                    page.error_with(
                        written.at,
                        format!("the issuer `{}` {message}", yaml::printable(name)),
                        format!("it stands in {place} too, for the same workloads: say the same, or leave it out here"),
                    );
                    errors.extend(page.errors);
                }
                earlier.push((policy, written));
            }
        }
        self.errors.extend(errors);
    }
}

fn difference(one: &Issuer, other: &Issuer) -> &'static str {
    if !one.keys.is_same_place(&other.keys) {
        "has its keys in another place elsewhere"
    } else if one.audiences != other.audiences {
        "has other audiences elsewhere"
    } else if one.header != other.header {
        "has its tokens in another header field elsewhere"
    } else {
        "has its tokens forwarded in one place and not in another (`forward`, `forwardOriginalToken`)"
    }
}

/// What a workload takes tokens of, and whether that is more than MeshDefaults say.
pub(super) fn of_workload<'p>(
    jwt: &Jwt,
    policies: impl Iterator<Item = &'p RequestPolicy>,
    workload: &Workload,
) -> (Jwt, bool) {
    let mut issuers = jwt.issuers.to_vec();
    let mut is_asked = false;
    for policy in policies.filter(|policy| policy.applies_to(workload)) {
        for WrittenIssuer { issuer, .. } in &policy.issuers {
            is_asked = true;
            if !issuers.iter().any(|known| known.name == issuer.name) {
                issuers.push(issuer.clone());
            }
        }
    }
    (Jwt { issuers: issuers.into(), other_tokens: jwt.other_tokens }, is_asked)
}
