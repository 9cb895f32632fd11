//! What a rule can be looked up by: its positive fields, as the engine files it.

use foldhash::{HashMap, HashSet};
use ipnet::IpNet;
use postern_svid::{SpiffeId, TrustDomain};

use crate::istio::{Clause, IdentityPattern, TextPattern, What, Who};
use crate::norm::CanonHost;
use crate::pattern::{PathPattern, Segment, Template};
use crate::rule::{HostPattern, Peer, Rule, Target};
use crate::verdict::{Action, Enforcement, Tier};

/// A rule under more terms than this is filed by another field, if it has one.
const MANY_TERMS: usize = 64;
/// Kinds of templates, by where their wildcards stand, that are looked up; further ones are compared one by one.
const MAX_OUTLINES: usize = 16;

/// Something that is looked up.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Term<'r> {
    Anonymous,
    Id(&'r SpiffeId),
    Account(Option<&'r TrustDomain>, &'r str, &'r str),
    Namespace(Option<&'r TrustDomain>, &'r str),
    Domain(&'r TrustDomain),
    Net(IpNet),
    /// Of Istio's kinds.
    Identity(&'r IdentityPattern),
    Path(&'r str),
    Prefix(&'r str),
    Template(Vec<Segment>),
    Host(HostPattern),
    Port(u16),
}

impl<'r> Term<'r> {
    /// Terms that are true wherever this one is.
    pub(super) fn implied(&self) -> Vec<Self> {
        let above = |path: &'r str| {
            let cuts = path.match_indices('/').map(|(at, _)| if at == 0 { "/" } else { &path[..at] });
            cuts.filter(move |parent| *parent != path).map(Term::Prefix)
        };
        match self {
            Self::Path(path) => above(path).chain([Term::Prefix(path)]).collect(),
            Self::Prefix(path) => above(path).collect(),
            Self::Net(net) => std::iter::successors(net.supernet(), IpNet::supernet).map(Term::Net).collect(),
            Self::Account(domain, namespace, _) => vec![Self::Namespace(*domain, namespace)],
            _ => Vec::new(),
        }
    }

    /// Whether it is found by comparing, pattern by pattern, for each connection.
    pub(super) fn is_compared(&self) -> bool {
        matches!(self, Self::Identity(IdentityPattern::Glob(_)))
    }
}

/// For messages.
impl std::fmt::Display for Term<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let within = |f: &mut std::fmt::Formatter<'_>, domain: &Option<&TrustDomain>| match domain {
            Some(domain) => write!(f, " of trust domain {domain}"),
            None => Ok(()),
        };
        match self {
            Self::Anonymous => f.write_str("peers without an identity"),
            Self::Id(id) => write!(f, "the identity {id}"),
            Self::Account(domain, namespace, name) => {
                write!(f, "the service account {namespace}/{name}")?;
                within(f, domain)
            }
            Self::Namespace(domain, name) => {
                write!(f, "the namespace {name}")?;
                within(f, domain)
            }
            Self::Domain(domain) => write!(f, "the trust domain {domain}"),
            Self::Net(net) => write!(f, "the network {net}"),
            Self::Identity(pattern) => pattern.fmt(f),
            Self::Path(path) => write!(f, "the path {path}"),
            Self::Prefix(path) => write!(f, "the prefix {path}"),
            Self::Template(segments) => {
                write!(f, "the path {}", Template { segments: segments.clone() })
            }
            Self::Host(host) => write!(f, "the host {host}"),
            Self::Port(port) => write!(f, "the port {port}"),
        }
    }
}

/// Rules by what they are looked up by; under `None`, those that every question has to look at.
pub(super) type Filed<'r> = HashMap<Option<Term<'r>>, Vec<u32>>;

/// What is asked about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Traffic {
    /// Requests.
    Http,
    /// Opaque bytes, of which caller, port and perhaps a server name are known.
    Opaque,
}

/// Files rules as the engine does: those of one tier, action and enforcement together, each under the field whose commonest
/// term is rarest. Rules that always or never fire on such traffic are left out: they are done with at a glance.
pub(super) fn file<'r>(rules: impl Iterator<Item = &'r Rule>, traffic: Traffic) -> Filed<'r> {
    let mut outlines = Outlines::default();
    let mut drawers: HashMap<Drawer, Vec<(u32, Dimensions<'r>)>> = HashMap::default();
    for (id, rule) in (0_u32..).zip(rules) {
        let rest = (rule.action != Action::Audit).then_some((rule.tier, rule.enforcement));
        let dimensions = dimensions(rule, traffic, &mut outlines);
        if traffic == Traffic::Opaque && asks_layer7(rule) && (!rule.action.is_wide() || rule.from.is_none())
        {
            continue;
        }
        drawers.entry((rule.action, rest)).or_default().push((id, dimensions));
    }
    let mut filed = Filed::default();
    for drawer in drawers.into_values() {
        let mut counts: HashMap<Term<'r>, u32> = HashMap::default();
        for term in drawer.iter().flat_map(|(_, dimensions)| dimensions.iter().flatten()) {
            *counts.entry(term.clone()).or_default() += 1;
        }
        for (id, dimensions) in drawer {
            let cost = |terms: &Vec<Term<'r>>| {
                let commonest = terms.iter().map(|term| counts[term]).max();
                (terms.len() > MANY_TERMS, commonest.unwrap_or(0))
            };
            match dimensions.into_iter().min_by_key(cost) {
                Some(terms) => {
                    for term in terms {
                        filed.entry(Some(term)).or_default().push(id);
                    }
                }
                None => filed.entry(None).or_default().push(id),
            }
        }
    }
    filed
}

/// Rules of one action, filed together; those of an Audit whatever else they are.
type Drawer = (Action, Option<(Tier, Enforcement)>);
/// Ways to file a rule: for each field that is looked up, terms one of which is true wherever the rule fires.
type Dimensions<'r> = Vec<Vec<Term<'r>>>;

fn asks_layer7(rule: &Rule) -> bool {
    rule.to.iter().flatten().any(Target::asks_layer7)
        || rule.istio.as_deref().is_some_and(Clause::asks_layer7)
}

fn dimensions<'r>(rule: &'r Rule, traffic: Traffic, outlines: &mut Outlines) -> Dimensions<'r> {
    let [source, paths, hosts, ports, nets] = match &rule.istio {
        Some(clause) => of_istio(clause, rule.action, outlines),
        None => own(rule, outlines),
    };
    let named = rule.to.as_deref().filter(|_| !rule.action.is_wide());
    let names =
        || {
            joined(named?.iter().map(|target| {
                target.sni.as_ref().map(|names| names.iter().cloned().map(Term::Host).collect())
            }))
        };
    let fields = match traffic {
        Traffic::Http => vec![source, paths, hosts, ports, nets],
        Traffic::Opaque => vec![source, names(), ports, nets],
    };
    let once = |mut terms: Vec<Term<'r>>| {
        let mut seen = HashSet::default();
        terms.retain(|term| seen.insert(term.clone()));
        terms
    };
    fields.into_iter().flatten().map(once).collect()
}

type Fields<'r> = [Option<Vec<Term<'r>>>; 5];

/// By source, path, host, port, source address.
fn own<'r>(rule: &'r Rule, outlines: &mut Outlines) -> Fields<'r> {
    let to = rule.to.as_deref();
    let source = rule.from.as_deref().and_then(|peers| joined(peers.iter().map(source)));
    // All of them, in their order: the first outlines that are met are those that are looked up.
    let paths: Option<Vec<_>> =
        to.map(|targets| targets.iter().map(|target| of_target(target, outlines)).collect());
    let host =
        to.filter(|_| !rule.action.is_wide()).and_then(|targets| {
            joined(targets.iter().map(|target| {
                target.hosts.as_ref().map(|hosts| hosts.iter().cloned().map(Term::Host).collect())
            }))
        });
    let ports = rule.ports().map(|ports| ports.into_iter().map(Term::Port).collect());
    let nets = rule.from.as_deref().and_then(|peers| joined(peers.iter().map(nets)));
    [source, paths.and_then(|paths| joined(paths.into_iter())), host, ports, nets]
}

/// What every alternative has.
fn joined<'r>(alternatives: impl Iterator<Item = Option<Vec<Term<'r>>>>) -> Option<Vec<Term<'r>>> {
    let all: Option<Vec<Vec<Term<'r>>>> = alternatives.collect();
    Some(all?.into_iter().flatten().collect())
}

/// The most specific field.
fn source(peer: &Peer) -> Option<Vec<Term<'_>>> {
    let Peer { unauthenticated, spiffe, accounts, namespaces, trust_domain, cidrs: _, jwt: _, not: _ } = peer;
    let domain = trust_domain.as_ref();
    if let Some(ids) = spiffe {
        return Some(ids.iter().map(Term::Id).collect());
    }
    if let Some(accounts) = accounts {
        return Some(accounts.iter().map(|one| Term::Account(domain, &one.namespace, &one.name)).collect());
    }
    if let Some(names) = namespaces {
        return Some(names.iter().map(|name| Term::Namespace(domain, name)).collect());
    }
    let domain = domain.map(|domain| vec![Term::Domain(domain)]);
    domain.or_else(|| nets(peer)).or_else(|| unauthenticated.then(|| vec![Term::Anonymous]))
}

fn nets(peer: &Peer) -> Option<Vec<Term<'_>>> {
    peer.cidrs.as_ref().map(|nets| nets.iter().copied().map(Term::Net).collect())
}

fn of_target<'r>(target: &'r Target, outlines: &mut Outlines) -> Option<Vec<Term<'r>>> {
    let paths = target.paths.as_ref().map(|paths| outlines.terms(paths));
    if let Some(not) = &target.not {
        outlines.terms(&not.paths);
    }
    paths.flatten()
}

fn of_istio<'r>(clause: &'r Clause, action: Action, outlines: &mut Outlines) -> Fields<'r> {
    let source = |who: &'r Who| {
        let named = who.identities.iter().filter(|test| !test.values.is_empty());
        // The most specific: none that means more identities than another.
        let test = named.min_by_key(|test| test.values.iter().map(IdentityPattern::width).max())?;
        let term = |pattern: &'r IdentityPattern| match pattern {
            IdentityPattern::Id(id) => Term::Id(id),
            other => Term::Identity(other),
        };
        Some(test.values.iter().map(term).collect::<Vec<_>>())
    };
    let nets = |who: &'r Who| {
        let test = who.addresses.iter().find(|test| !test.values.is_empty())?;
        Some(test.values.iter().copied().map(Term::Net).collect::<Vec<_>>())
    };
    let mut path = |what: &'r What| {
        let terms = (!what.paths.values.is_empty()).then(|| outlines.terms(&what.paths.values));
        outlines.terms(&what.paths.not);
        terms.flatten()
    };
    let host = |what: &'r What| {
        let exact = |pattern: &TextPattern| match pattern {
            TextPattern::Exact(text) => {
                Some(Term::Host(HostPattern::Exact(CanonHost::parse(text).ok()?.name().into())))
            }
            _ => None,
        };
        let all: Option<Vec<_>> = what.hosts.values.iter().map(exact).collect();
        all.filter(|terms| !terms.is_empty())
    };
    let port = |what: &'r What| {
        let test = what.ports.iter().find(|test| !test.values.is_empty())?;
        Some(test.values.iter().copied().map(Term::Port).collect())
    };
    let paths: Vec<_> = clause.to.iter().map(&mut path).collect();
    [
        joined(clause.from.iter().map(|who| source(who).or_else(|| nets(who)))),
        joined(paths.into_iter()),
        if action.is_wide() { None } else { joined(clause.to.iter().map(host)) },
        joined(clause.to.iter().map(port)),
        joined(clause.from.iter().map(nets)),
    ]
}

/// Where wildcards stand in the templates that are looked up.
#[derive(Default)]
struct Outlines(HashSet<Vec<Segment>>);

impl Outlines {
    /// Terms one of which is true wherever one of the patterns matches, if there are such.
    fn terms<'r>(&mut self, patterns: &'r [PathPattern]) -> Option<Vec<Term<'r>>> {
        let terms: Vec<Option<Term<'r>>> = patterns.iter().map(|pattern| self.term(pattern)).collect();
        terms.into_iter().collect()
    }

    fn term<'r>(&mut self, pattern: &'r PathPattern) -> Option<Term<'r>> {
        match pattern {
            PathPattern::Exact(path) => Some(Term::Path(path)),
            PathPattern::Prefix(path) => Some(Term::Prefix(path)),
            PathPattern::Template(template) => self.template(&template.segments),
            PathPattern::Methods { .. } => self.template(&pattern.wider()?.segments),
            // As the pattern's parent, in whole segments.
            PathPattern::Beginning(text) => match text.rsplit_once('/') {
                Some(("", _)) | None => None,
                Some((parent, _)) => Some(Term::Prefix(parent)),
            },
            PathPattern::Ending(_) => None,
        }
    }

    fn template<'r>(&mut self, segments: &[Segment]) -> Option<Term<'r>> {
        let blank = |segment: &Segment| match segment {
            Segment::Literal(_) => Segment::Literal("".into()),
            other => other.clone(),
        };
        let outline: Vec<Segment> = segments.iter().map(blank).collect();
        if self.0.len() < MAX_OUTLINES {
            self.0.insert(outline);
        } else if !self.0.contains(&outline) {
            return None;
        }
        Some(Term::Template(segments.to_vec()))
    }
}
