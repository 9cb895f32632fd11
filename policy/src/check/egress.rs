//! EgressPolicy.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::yaml::Location;
use ipnet::IpNet;

use super::access::check_tier;
use super::target::{self, path_patterns};
use super::{Page, Rules, is_name, peer, when};
use crate::doc::{DestinationDoc, Document, EgressRuleDoc, EgressSpec, List, SourceDoc, Sp};
use crate::egress::EgressRule;
use crate::egress::address::{MeshAddresses, Reach, reach};
use crate::egress::rule::{Destination, ServicePattern, Spoken, Whither};
use crate::rule::HostPattern;
use crate::services::ServiceName;
use crate::verdict::{Action, Enforcement, RuleName, Tier, Workload};
use crate::yaml;

/// A checked EgressPolicy.
pub(crate) struct EgressPolicy {
    namespace: Box<str>,
    all: bool,
    selector: BTreeMap<String, String>,
    pub(crate) action: Action,
    pub(crate) action_at: Location,
    pub(crate) enforcement: Enforcement,
    pub(crate) rules: Vec<(Arc<RuleName>, Arc<EgressRule>)>,
    /// What it names of the rest of the set, and where: whether that is there only the set shows.
    pub(super) named: Vec<(Location, Named)>,
}

/// What a policy names of the rest of the set.
pub(super) enum Named {
    /// `namespace/name`.
    Service(String),
    Host(String),
}

impl EgressPolicy {
    /// Whether it concerns `workload`: a policy acts in its own namespace only, unless the root namespace says `all`.
    pub(crate) fn applies_to(&self, workload: &Workload) -> bool {
        (self.all || *self.namespace == *workload.namespace)
            && self.selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

/// Checks an EgressPolicy.
pub(crate) fn egress_policy(
    page: &mut Page<'_>,
    document: &Document<EgressSpec>,
    rules: &Rules<'_>,
) -> EgressPolicy {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    page.names(metadata);
    let EgressSpec { tier, enforcement, source, action, rules: written } = &spec.value;
    let is_root = metadata.namespace.value == rules.root_namespace;
    let only_root = format!("only documents of the root namespace `{}` may", rules.root_namespace);
    let tier = tier.as_ref().map_or(Tier::App, |word| check_tier(page, word, is_root, &only_root));
    let known = [("Enforce", Enforcement::Enforce), ("Shadow", Enforcement::Shadow)];
    let enforcement = enforcement.as_ref().and_then(|word| page.word(word, &known)).unwrap_or_default();
    let known = [("Allow", Action::Allow), ("Deny", Action::Deny), ("Audit", Action::Audit)];
    // A wrong word refuses the set; until then the stricter checks apply.
    let checked = page.word(action, &known).unwrap_or(Action::Allow);
    if (checked, enforcement) == (Action::Audit, Enforcement::Shadow) {
        page.error_with(
            action.referenced,
            "an Audit changes nothing, so there is nothing to try in its shadow",
            "leave `enforcement` out",
        );
    }
    let (action, action_at) = (checked, action.referenced);
    let (all, selector) = match source {
        Some(source) => self::source(page, source, is_root, &only_root),
        None => (false, BTreeMap::new()),
    };
    let namespace: Box<str> = metadata.namespace.value.as_str().into();
    let rules_of = Vec::with_capacity(written.value.len());
    let named = Vec::new();
    let mut policy =
        EgressPolicy { namespace, all, selector, action, action_at, enforcement, rules: rules_of, named };
    let mut seen = HashSet::new();
    for rule in page.items(written, "rules") {
        let EgressRuleDoc { name, to, when } = &rule.value;
        page.name(name);
        if !seen.insert(name.value.as_str()) {
            page.error_with(
                name.referenced,
                format!("the rule `{}` stands here twice", yaml::printable(&name.value)),
                "rules are named in logs; give each its own name",
            );
        }
        if to.is_none() && action == Action::Allow {
            page.error_with(
                rule.referenced,
                "an Allow without `to` would open everything outside of the mesh",
                "name destinations; `to: [{services: [\"*\"]}]` is every service of the mesh",
            );
        }
        let checked = EgressRule {
            action,
            tier,
            enforcement,
            to: to.as_ref().map(|list| {
                let own = &metadata.namespace.value;
                Reader { page: &mut *page, named: &mut policy.named, own, action, rules }.destinations(list)
            }),
            window: when.as_ref().and_then(|when| {
                // A condition that nobody evaluates would be one that always holds.
                if let Some(cel) = &when.value.cel {
                    page.error_with(
                        cel.referenced,
                        "rules about calls out know no conditions",
                        "write hosts, methods and paths as fields, and leave `cel` out",
                    );
                }
                when::window(page, when)
            }),
        };
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
    policy
}

/// Which workloads: whether those of all namespaces, and their labels.
fn source(
    page: &mut Page<'_>,
    source: &Sp<SourceDoc>,
    is_root: bool,
    only_root: &str,
) -> (bool, BTreeMap<String, String>) {
    let SourceDoc { all, selector } = &source.value;
    if all.is_none() && selector.is_none() {
        page.error_with(
            source.referenced,
            "`source` is empty",
            "give a selector, or leave `source` out to mean every workload of the namespace",
        );
    }
    if let Some(all) = all {
        if !all.value {
            page.error_with(all.referenced, "`all` can only be true", "leave it out");
        } else if !is_root {
            page.error_with(
                all.referenced,
                format!("{only_root} speak for all namespaces"),
                "leave `source` out to mean every workload of this namespace",
            );
        }
    }
    if let Some(selector) = selector.as_ref().filter(|selector| selector.value.is_empty()) {
        page.error_with(
            selector.referenced,
            "`selector` is empty",
            "name a label, or leave it out to mean every workload of the namespace",
        );
    }
    let labels = selector.as_ref().map(|labels| labels.value.clone()).unwrap_or_default();
    (all.as_ref().is_some_and(|all| all.value), labels)
}

/// Reads `to` of a document of the namespace `own`.
struct Reader<'r, 'p> {
    page: &'r mut Page<'p>,
    named: &'r mut Vec<(Location, Named)>,
    own: &'r str,
    action: Action,
    rules: &'r Rules<'r>,
}

impl Reader<'_, '_> {
    fn destinations(&mut self, list: &List<DestinationDoc>) -> Vec<Destination> {
        let mut out = Vec::with_capacity(list.value.len());
        for entry in self.page.items(list, "to") {
            out.extend(self.destination(entry));
        }
        out
    }

    /// Checks one alternative of `to`; `None` if nothing in it says where to, which has been told then.
    fn destination(&mut self, entry: &Sp<DestinationDoc>) -> Option<Destination> {
        let page = &mut *self.page;
        let DestinationDoc { services, hosts, cidrs, except, ports, protocol, methods, paths, path_prefix } =
            &entry.value;
        let mut named = [services, hosts, cidrs].into_iter().flatten();
        let Some(_first) = named.next() else {
            page.error_with(
                entry.referenced,
                "this alternative does not say where to",
                "write `services`, `hosts` or `cidrs`",
            );
            return None;
        };
        if let Some(second) = named.next() {
            page.error_with(
                second.referenced,
                "only one of `services`, `hosts` and `cidrs` stands in an alternative",
                "write two alternatives under `to`",
            );
        }
        if let (Some(except), None) = (except, cidrs) {
            page.error_with(
                except.referenced,
                "`except` says which addresses of `cidrs` are not meant",
                "leave it out",
            );
        }
        let protocol = protocol.as_ref().and_then(|word| page.word(word, &Spoken::WORDS));
        let layer7 = [methods, paths, path_prefix].into_iter().flatten().next();
        if let (Some(list), Some(Spoken::Tls | Spoken::Tcp)) = (layer7, protocol) {
            page.error_with(
                list.referenced,
                "methods and paths are never known of opaque bytes",
                "leave them out, or write `protocol: Http`",
            );
        }
        let whither = match (services, hosts, cidrs) {
            (Some(list), _, _) => Whither::Services(self.services(list)),
            (None, Some(list), _) => Whither::Hosts(self.external(list)),
            (None, None, list) => Whither::Addresses {
                nets: list.as_ref().map(|list| networks(self.page, list, self.action)).unwrap_or_default(),
                except: except
                    .as_ref()
                    .map(|list| excepted(self.page, list, cidrs.as_ref()))
                    .unwrap_or_default(),
            },
        };
        let page = &mut *self.page;
        Some(Destination {
            whither,
            ports: ports.as_ref().map(|list| page.ports(list)),
            protocol,
            methods: methods.as_ref().map(|list| target::methods(page, list)),
            paths: path_patterns(page, paths.as_ref(), path_prefix.as_ref(), self.rules),
        })
    }

    fn services(&mut self, list: &List<String>) -> Vec<ServicePattern> {
        let mut out = Vec::with_capacity(list.value.len());
        for item in self.page.items(list, "services") {
            let text = item.value.as_str();
            let (namespace, name) = text.split_once('/').unwrap_or((self.own, text));
            if text == "*" {
                out.push(ServicePattern::Meshed);
            } else if is_name(namespace) && name == "*" {
                out.push(ServicePattern::Namespace(namespace.into()));
            } else if is_name(namespace) && is_name(name) {
                self.named.push((item.referenced, Named::Service(format!("{namespace}/{name}"))));
                let (namespace, name) = (namespace.into(), name.into());
                out.push(ServicePattern::One(ServiceName { namespace, name }));
            } else {
                self.page.error_with(
                    item.referenced,
                    format!("`{}` names no service", yaml::printable(text)),
                    "write `name`, `namespace/name`, `namespace/*`, or `*` for every service of the mesh",
                );
            }
        }
        out
    }

    /// Hosts outside of the mesh.
    fn external(&mut self, list: &List<String>) -> Vec<HostPattern> {
        let named = list.value.iter().map(|item| (item.referenced, Named::Host(item.value.clone())));
        self.named.extend(named);
        target::hosts(self.page, list, "hosts")
    }
}

fn networks(page: &mut Page<'_>, list: &List<String>, action: Action) -> Vec<IpNet> {
    let nets = peer::networks(page, list);
    for (net, item) in nets.iter().zip(&list.value).filter(|_| nets.len() == list.value.len()) {
        let is_one = net.prefix_len() == net.max_prefix_len();
        let reach = reach(net.addr(), &[], &MeshAddresses::default());
        match (action, reach, is_one) {
            (Action::Allow, Reach::Never, true) => page.error_with(
                item.referenced,
                "nothing outside of the mesh is at this address, and no rule opens it",
                "loopback, unspecified and multicast addresses are never dialled",
            ),
            (Action::Allow, Reach::ByName, false) => page.warn(
                item.referenced,
                "link-local addresses and clouds' metadata services are opened one by one only",
                "write the address itself, without a mask",
            ),
            _ => {}
        }
    }
    nets
}

fn excepted(page: &mut Page<'_>, list: &List<String>, of: Option<&List<String>>) -> Vec<IpNet> {
    page.items(list, "except");
    let nets = peer::networks(page, list);
    let of: Vec<IpNet> = of.iter().flat_map(|of| &of.value).filter_map(|item| parsed(&item.value)).collect();
    for (net, item) in nets.iter().zip(&list.value).filter(|_| nets.len() == list.value.len()) {
        if !of.iter().any(|wide| wide.contains(net)) {
            page.warn(
                item.referenced,
                "this is in none of `cidrs`, so that it takes nothing away",
                "leave it out",
            );
        }
    }
    nets
}

fn parsed(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
