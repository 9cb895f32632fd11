//! AccessPolicy.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::{NamedPorts, Page, Rules, break_glass, condition, peer, target, when};
use crate::break_glass::BreakGlass;
use crate::cond::Condition;
use crate::diagnostic::Place;
use crate::doc::{AccessSpec, Document, List, RuleDoc, Sp, Target as TargetDoc, ToDoc};
use crate::istio::Part;
use crate::norm::EscapedSlashes;
use crate::rule::{Peer, Rule, Target};
use crate::verdict::{Action, Enforcement, RuleName, Tier, Workload};
use crate::yaml;

/// A checked AccessPolicy.
#[derive(Clone)]
pub(crate) struct Policy {
    pub(crate) namespace: Box<str>,
    pub(crate) all: bool,
    pub(crate) namespaces: Vec<Box<str>>,
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) break_glass: Option<BreakGlass>,
    pub(crate) rules: Vec<(Arc<RuleName>, Arc<Rule>)>,
    /// Its name.
    pub(crate) document: Box<str>,
    /// If it is of Istio's kind.
    pub(crate) istio: Option<Part>,
    /// Where it stands. `None`: nowhere, it is implied.
    pub(crate) place: Option<Place>,
    /// Ports that its target and its rules name.
    pub(crate) ports: NamedPorts,
}

impl Policy {
    /// Whether it concerns `workload`.
    pub(crate) fn applies_to(&self, workload: &Workload) -> bool {
        concerns(&self.namespace, self.all, &self.namespaces, &self.selector, workload)
    }

    /// The namespaces of the workloads that it can concern; none if it speaks for all.
    pub(crate) fn meant_namespaces(&self) -> Vec<&str> {
        meant_namespaces(&self.namespace, self.all, &self.namespaces)
    }
}

fn meant_namespaces<'p>(own: &'p str, all: bool, named: &'p [Box<str>]) -> Vec<&'p str> {
    match named {
        [] if all => Vec::new(),
        [] => vec![own],
        named => named.iter().map(|name| &**name).collect(),
    }
}

/// Whether a document concerns `workload`: it acts in its own namespace only, unless the root namespace says `all` or names
/// others.
fn concerns(
    namespace: &str,
    all: bool,
    namespaces: &[Box<str>],
    selector: &BTreeMap<String, String>,
    workload: &Workload,
) -> bool {
    let is_meant = match namespaces {
        [] => all || namespace == workload.namespace,
        named => named.iter().any(|name| **name == *workload.namespace),
    };
    is_meant && selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
}

/// The workloads that a document's `target` selects.
pub(super) struct Selection {
    namespace: Box<str>,
    all: bool,
    namespaces: Vec<Box<str>>,
    selector: BTreeMap<String, String>,
}

impl Selection {
    /// Every workload of the document's namespace, until its target says otherwise.
    pub(super) fn of_namespace(namespace: &str) -> Self {
        Self { namespace: namespace.into(), all: false, namespaces: Vec::new(), selector: BTreeMap::new() }
    }

    /// Whether the document concerns `workload`.
    pub(super) fn applies_to(&self, workload: &Workload) -> bool {
        concerns(&self.namespace, self.all, &self.namespaces, &self.selector, workload)
    }

    /// The namespaces of the workloads that the document can concern; none if it speaks for all.
    pub(super) fn meant_namespaces(&self) -> Vec<&str> {
        meant_namespaces(&self.namespace, self.all, &self.namespaces)
    }
}

/// Checks an AccessPolicy.
pub(crate) fn policy(page: &mut Page<'_>, document: &Document<AccessSpec>, rules: &Rules<'_>) -> Policy {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    page.names(metadata);
    let AccessSpec { tier, enforcement, target, action, rules: written } = &spec.value;
    let is_root = metadata.namespace.value == rules.root_namespace;
    let only_root = format!("only documents of the root namespace `{}` may", rules.root_namespace);
    let tier = tier.as_ref().map_or(Tier::App, |word| check_tier(page, word, is_root, &only_root));
    let tried = enforcement.as_ref();
    let enforcement = match tried {
        Some(word) => {
            let known = [("Enforce", Enforcement::Enforce), ("Shadow", Enforcement::Shadow)];
            page.word(word, &known).unwrap_or_default()
        }
        None => Enforcement::Enforce,
    };
    // A wrong word refuses the set; until then the stricter checks apply.
    let known = [("Allow", Action::Allow), ("Deny", Action::Deny), ("Audit", Action::Audit)];
    let allowed = page.word(action, &known).unwrap_or(Action::Allow);
    if (allowed, enforcement) == (Action::Audit, Enforcement::Shadow) {
        page.error_with(
            tried.map_or(action.referenced, |word| word.referenced),
            "an Audit changes nothing, so there is nothing to try in its shadow",
            "leave `enforcement` out",
        );
    }
    let action = allowed;
    let mut selection = Selection::of_namespace(&metadata.namespace.value);
    let mut ports = None;
    if let Some(target) = target {
        ports = check_target(page, target, &mut selection, is_root, &only_root);
    }
    let Selection { namespace, all, namespaces, selector } = selection;
    let mut policy = Policy {
        namespace,
        all,
        namespaces,
        selector,
        break_glass: None,
        rules: Vec::with_capacity(written.value.len()),
        document: metadata.name.value.as_str().into(),
        istio: None,
        place: Some(page.place(metadata.name.referenced)),
        ports: named_ports(target.as_ref(), written),
    };
    let mut seen = HashSet::new();
    for rule in page.items(written, "rules") {
        let RuleDoc { name, from, to, when } = &rule.value;
        page.name(name);
        if !seen.insert(name.value.as_str()) {
            page.error_with(
                name.referenced,
                format!("the rule `{}` stands here twice", yaml::printable(&name.value)),
                "rules are named in logs; give each its own name",
            );
        }
        let mut checked = Rule {
            action,
            tier,
            enforcement,
            target_ports: ports.clone(),
            from: from.as_ref().map(|list| peers(page, list, &metadata.namespace.value, action, rules)),
            to: to.as_ref().map(|list| targets(page, list, action, rules)),
            window: when.as_ref().and_then(|when| when::window(page, when)).map(Box::new),
            condition: when.as_ref().and_then(|when| condition::condition(page, when)),
            istio: None,
        };
        checked.shrink();
        warn_about(page, rule, &checked);
        warn_of_kept_slashes(page, &rule.value, &checked, rules);
        warn_of_no_issuers(page, &rule.value, &checked, rules);
        let rule_name = RuleName {
            namespace: policy.namespace.clone(),
            document: metadata.name.value.as_str().into(),
            rule: name.value.as_str().into(),
            action,
            tier,
            enforcement,
            place: page.place(name.referenced),
        };
        policy.rules.push((Arc::new(rule_name), Arc::new(checked)));
    }
    policy.break_glass = break_glass::marked(page, document, &policy.rules);
    policy
}

fn named_ports(target: Option<&Sp<TargetDoc>>, rules: &List<RuleDoc>) -> NamedPorts {
    let of_target = target.and_then(|target| target.value.ports.as_ref());
    let alternatives = rules.value.iter().flat_map(|rule| &rule.value.to).flat_map(|to| &to.value);
    NamedPorts::of(of_target.into_iter().chain(alternatives.filter_map(|to| to.value.ports.as_ref())))
}

/// A tier above everybody's is the platform's alone.
pub(super) fn check_tier(page: &mut Page<'_>, word: &Sp<String>, is_root: bool, only_root: &str) -> Tier {
    let known = [("Platform", Tier::Platform), ("App", Tier::App), ("Baseline", Tier::Baseline)];
    let tier = page.word(word, &known).unwrap_or_default();
    if tier == Tier::Platform && !is_root {
        page.error_with(
            word.referenced,
            format!("{only_root} stand in the tier Platform"),
            "leave `tier` out: it is App then",
        );
    }
    tier
}

pub(super) fn check_target(
    page: &mut Page<'_>,
    target: &Sp<TargetDoc>,
    selection: &mut Selection,
    is_root: bool,
    only_root: &str,
) -> Option<Vec<u16>> {
    let TargetDoc { all, namespaces, selector, ports } = &target.value;
    if all.is_none() && namespaces.is_none() && selector.is_none() && ports.is_none() {
        page.error_with(
            target.referenced,
            "`target` is empty",
            "give a selector or ports, or leave `target` out to mean every workload of the namespace",
        );
    }
    if let Some(all) = all {
        if !all.value {
            page.error_with(all.referenced, "`all` can only be true", "leave it out");
        } else if !is_root {
            page.error_with(
                all.referenced,
                format!("{only_root} speak for all namespaces"),
                "leave `target` out to mean every workload of this namespace",
            );
        }
        selection.all = all.value;
    }
    if let Some(list) = namespaces {
        if !is_root {
            page.error_with(
                list.referenced,
                format!("{only_root} name the namespaces that they speak for"),
                "leave `namespaces` out to mean every workload of this namespace",
            );
        }
        if all.is_some() {
            page.error_with(list.referenced, "`all` and `namespaces` are both given", "keep one of them");
        }
        selection.namespaces = page.each(list, "namespaces", |name| {
            if super::is_name(name) {
                Ok(name.as_str().into())
            } else {
                Err(("this is not a namespace's name", "a name has 1 to 63 characters: a-z, 0-9 and '-'"))
            }
        });
    }
    if let Some(selector) = selector {
        if selector.value.is_empty() {
            page.error_with(
                selector.referenced,
                "`selector` is empty",
                "name a label, or leave it out to mean every workload of the namespace",
            );
        }
        selection.selector.clone_from(&selector.value);
    }
    ports.as_ref().map(|list| page.ports(list))
}

pub(super) fn peers(
    page: &mut Page<'_>,
    list: &List<crate::doc::FromDoc>,
    namespace: &str,
    action: Action,
    rules: &Rules<'_>,
) -> Vec<Peer> {
    page.items(list, "from").iter().map(|entry| peer::peer(page, entry, namespace, action, rules)).collect()
}

pub(super) fn targets(
    page: &mut Page<'_>,
    list: &List<ToDoc>,
    action: Action,
    rules: &Rules<'_>,
) -> Vec<Target> {
    page.items(list, "to").iter().map(|entry| target::target(page, entry, action, rules)).collect()
}

/// What loads but probably does not say what was meant.
fn warn_about(page: &mut Page<'_>, written: &Sp<RuleDoc>, rule: &Rule) {
    let at = written.value.name.referenced;
    match rule.action {
        Action::Allow => {
            let never = |peer: &Peer| peer.cidrs.is_some() && !peer.unauthenticated && peer.not.is_none();
            let only_cidrs = |peer: &Peer| {
                never(peer) && peer.spiffe.is_none() && peer.accounts.is_none() && peer.namespaces.is_none()
            };
            let only_cidrs =
                |peer: &Peer| only_cidrs(peer) && peer.trust_domain.is_none() && peer.jwt.is_none();
            if rule.from.iter().flatten().any(only_cidrs) {
                page.warn(
                    at,
                    "an alternative with `cidrs` alone admits authenticated peers only",
                    "add `unauthenticated: true` if peers without an identity are meant",
                );
            }
        }
        // What an Audit marks too often costs nobody a connection.
        Action::Audit => {}
        Action::Deny => {
            warn_of_exact_denies(page, &written.value);
            let open = |asks: fn(&Target) -> bool| {
                rule.target_ports.is_none()
                    && rule.to.iter().flatten().any(|target| asks(target) && target.ports.is_none())
            };
            if open(|target| target.asks_sni() && !target.asks_layer7()) {
                page.warn(
                    at,
                    "on ports that are declared `tcp` this denies every connection: no server name is read there",
                    "name the ports with TLS with `ports` if that is not meant",
                );
            }
            let tokens =
                rule.asks_tokens() && (open(|_| true) || (rule.target_ports.is_none() && rule.to.is_none()));
            let condition =
                rule.condition.as_ref().is_some_and(Condition::asks_layer7) && rule.ports().is_none();
            if tokens || condition || open(Target::asks_layer7) {
                page.warn(
                    at,
                    "on ports that carry opaque TCP this denies every connection: what is inside is never known there",
                    "name the HTTP ports with `ports` if that is not meant",
                );
            }
        }
    }
}

/// Where nobody's tokens are read, `jwt` has no claims, and never will have.
fn warn_of_no_issuers(page: &mut Page<'_>, written: &RuleDoc, rule: &Rule, rules: &Rules<'_>) {
    let is_read = !rules.issuers.is_empty() || !rules.request_issuers.is_empty();
    if is_read || !rule.condition.as_ref().is_some_and(Condition::asks_tokens) {
        return;
    }
    let Some(cel) = written.when.as_ref().and_then(|when| when.value.cel.as_ref()) else { return };
    let outcome = match rule.action {
        Action::Allow => "what turns on one never matches in this Allow",
        Action::Deny => "what turns on one always fires in this Deny",
        Action::Audit => "what turns on one is always marked by this Audit",
    };
    page.warn(
        cel.referenced,
        format!("no issuer of tokens is configured, so every claim of `jwt` is unknown: {outcome}"),
        super::jwt::add_issuer(rules),
    );
}

/// A rule about a kept slash says nothing at ports that refuse or decode it, which a Deny's writer should know.
fn warn_of_kept_slashes(page: &mut Page<'_>, written: &RuleDoc, rule: &Rule, rules: &Rules<'_>) {
    if rules.slashes == EscapedSlashes::Keep || rule.target_ports.is_some() {
        return;
    }
    let targets = written.to.iter().flat_map(|to| &to.value).filter(|target| target.value.ports.is_none());
    let not = |target: &ToDoc| {
        target.not.as_ref().map(|not| [not.value.paths.clone(), not.value.path_prefix.clone()])
    };
    let of = |target: &ToDoc| {
        let own = [target.paths.clone(), target.path_prefix.clone()];
        own.into_iter().chain(not(target).into_iter().flatten()).flatten().flat_map(|list| list.value)
    };
    let kept = |path: &Sp<String>| path.value.contains("%2F") || path.value.contains("%5C");
    let Some(first) = targets.flat_map(|target| of(&target.value)).find(kept) else { return };
    page.warn(
        first.referenced,
        "requests have this path only at ports with `escapedSlashes: Keep`",
        "elsewhere it is refused, or has `/` there: name the ports that keep it with `ports`",
    );
}

/// Once a rule: a list of paths is written with one intention.
fn warn_of_exact_denies(page: &mut Page<'_>, rule: &RuleDoc) {
    let targets = rule.to.iter().flat_map(|to| &to.value);
    let paths = targets.filter_map(|target| target.value.paths.as_ref()).flat_map(|paths| &paths.value);
    let mut exact = paths.filter(|path| !path.value.contains('{') && path.value != "/");
    let Some(first) = exact.next() else { return };
    let more = match exact.count() {
        0 => String::new(),
        1 => "; so does 1 more path of this rule".to_owned(),
        more => format!("; so do {more} more paths of this rule"),
    };
    page.warn(
        first.referenced,
        format!("this denies {0} but neither {0}/ nor what lies below{more}", yaml::printable(&first.value)),
        "`pathPrefix` covers all of them",
    );
}
