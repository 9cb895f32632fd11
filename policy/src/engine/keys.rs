//! Interned values of rules, and which of them are true of a peer, a port, a path.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

use foldhash::HashMap;
use foldhash::fast::RandomState;
use ipnet::IpNet;
use postern_svid::{SpiffeId, TrustDomain};

use crate::istio::{self, IdentityPattern};
use crate::norm::CanonHost;
use crate::pattern::{MAX_SEGMENTS, PathPattern, Segment, Template};
use crate::rule::{HostPattern, MAX_LABELS, OwnDomains};

/// Kinds of templates by where their wildcards stand. Each costs every request one pass over its path, so further kinds
/// are checked rule by rule instead.
const MAX_SHAPES: usize = 16;
/// One exact path, a prefix at each depth, a template of each shape, one exact host, a domain above it at each depth.
const MAX_HITS: usize = 1 + MAX_SEGMENTS + MAX_SHAPES + 1 + MAX_LABELS;

/// Something a peer can be.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum SourceKey {
    Anonymous,
    Id(SpiffeId),
    /// Trust domain (`None`: the mesh's own and its aliases), namespace, name.
    Account(Option<TrustDomain>, Box<str>, Box<str>),
    Namespace(Option<TrustDomain>, Box<str>),
    Domain(TrustDomain),
    Net(IpNet),
    /// Of Istio's kinds; ids are [`Id`](Self::Id).
    Pattern(IdentityPattern),
}

/// All interned values.
#[derive(Debug, Default)]
pub(super) struct Keys {
    count: u32,
    sources: HashMap<SourceKey, u32>,
    /// Patterns that no lookup finds: with gaps, and accounts in ids of another shape than Kubernetes' own.
    globs: Vec<(IdentityPattern, u32)>,
    accounts: Vec<(IdentityPattern, u32)>,
    /// Prefix lengths that occur, IPv4 and IPv6.
    lengths: [Vec<u8>; 2],
    ports: HashMap<u16, u32>,
    exact: HashMap<Box<str>, u32>,
    prefix: HashMap<Box<str>, u32>,
    /// Bit n: some prefix has n segments.
    depths: u64,
    longest_prefix: usize,
    templates: HashMap<Template, u32>,
    hosts: HashMap<Box<str>, u32>,
    /// Domains that stand behind `*.`.
    domains: HashMap<Box<str>, u32>,
    shapes: Vec<Shape>,
    state: RandomState,
}

/// Templates whose wildcards stand in the same places. Two of them that match the same path are the same.
#[derive(Debug)]
struct Shape {
    outline: Outline,
    templates: HashMap<u64, Vec<(Template, u32)>>,
}

/// Which segments are literal: before `{**}`, and after it if there is one.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Outline {
    head: Box<[bool]>,
    tail: Option<Box<[bool]>>,
}

/// Keys of patterns that match one path.
pub(super) struct Hits {
    keys: [u32; MAX_HITS],
    len: usize,
}

impl Hits {
    fn none() -> Self {
        Self { keys: [0; MAX_HITS], len: 0 }
    }

    pub(super) fn as_slice(&self) -> &[u32] {
        &self.keys[..self.len]
    }

    fn push(&mut self, key: u32) {
        // Cannot overflow: MAX_HITS counts every place that pushes.
        if let Some(slot) = self.keys.get_mut(self.len) {
            *slot = key;
            self.len += 1;
        }
    }
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        self.count as usize
    }

    pub(super) fn source(&mut self, key: SourceKey) -> u32 {
        if let SourceKey::Net(net) = &key {
            let lengths = &mut self.lengths[usize::from(matches!(net, IpNet::V6(_)))];
            if !lengths.contains(&net.prefix_len()) {
                lengths.push(net.prefix_len());
            }
        }
        *self.sources.entry(key).or_insert_with(|| next(&mut self.count))
    }

    pub(super) fn identity(&mut self, pattern: &IdentityPattern) -> u32 {
        let key = match pattern {
            IdentityPattern::Id(id) => return self.source(SourceKey::Id(id.clone())),
            other => SourceKey::Pattern(other.clone()),
        };
        let known = self.sources.contains_key(&key);
        let number = self.source(key);
        match pattern {
            _ if known => {}
            IdentityPattern::Glob(_) => self.globs.push((pattern.clone(), number)),
            IdentityPattern::Account { .. } => self.accounts.push((pattern.clone(), number)),
            IdentityPattern::Id(_) | IdentityPattern::Namespace(_) => {}
        }
        number
    }

    pub(super) fn add_port(&mut self, port: u16) -> u32 {
        *self.ports.entry(port).or_insert_with(|| next(&mut self.count))
    }

    /// A key for what is looked up elsewhere.
    pub(super) fn fresh(&mut self) -> u32 {
        next(&mut self.count)
    }

    /// The key of a pattern, or `None` for a template that finds no place in the index.
    pub(super) fn pattern(&mut self, pattern: &PathPattern) -> Option<u32> {
        match pattern {
            PathPattern::Exact(path) => {
                Some(*self.exact.entry(path.clone()).or_insert_with(|| next(&mut self.count)))
            }
            PathPattern::Prefix(path) => {
                self.depths |= 1 << depth(path);
                self.longest_prefix = self.longest_prefix.max(path.len());
                Some(*self.prefix.entry(path.clone()).or_insert_with(|| next(&mut self.count)))
            }
            PathPattern::Template(template) => self.template(template),
            PathPattern::Methods { .. } | PathPattern::Beginning(_) | PathPattern::Ending(_) => None,
        }
    }

    pub(super) fn host(&mut self, host: &HostPattern) -> u32 {
        let (map, name) = match host {
            HostPattern::Exact(name) => (&mut self.hosts, name),
            HostPattern::Below(domain) => (&mut self.domains, domain),
        };
        *map.entry(name.clone()).or_insert_with(|| next(&mut self.count))
    }

    pub(super) fn template(&mut self, template: &Template) -> Option<u32> {
        if let Some(key) = self.templates.get(template) {
            return Some(*key);
        }
        let outline = Outline::of(template);
        let at = match self.shapes.iter().position(|shape| shape.outline == outline) {
            Some(at) => at,
            None if self.shapes.len() == MAX_SHAPES => return None,
            None => {
                self.shapes.push(Shape { outline, templates: HashMap::default() });
                self.shapes.len() - 1
            }
        };
        let shape = &mut self.shapes[at];
        // A path that the template matches has the template's own hash.
        let hash = shape.outline.hash(&self.state, &sample(template))?;
        let key = next(&mut self.count);
        shape.templates.entry(hash).or_default().push((template.clone(), key));
        self.templates.insert(template.clone(), key);
        Some(key)
    }

    /// Keys that are true of a peer, sorted.
    pub(super) fn of_source(
        &self,
        id: Option<&SpiffeId>,
        address: IpAddr,
        domains: &OwnDomains,
    ) -> Box<[u32]> {
        let mut out = Vec::new();
        let mut add = |key: SourceKey| out.extend(self.sources.get(&key));
        match id {
            None => add(SourceKey::Anonymous),
            Some(id) => {
                let td = id.trust_domain();
                if let Some((namespace, name)) = id.namespace_and_account() {
                    let own = domains.contain(id).then_some(None);
                    for domain in own.into_iter().chain([Some(td.clone())]) {
                        add(SourceKey::Account(domain.clone(), namespace.into(), name.into()));
                        add(SourceKey::Namespace(domain, namespace.into()));
                    }
                }
                add(SourceKey::Domain(td));
                add(SourceKey::Id(id.clone()));
                for namespace in istio::namespaces(id.as_str()) {
                    add(SourceKey::Pattern(IdentityPattern::Namespace(namespace.into())));
                }
                let mut patterns = &*self.accounts;
                if let Some((namespace, name)) = id.namespace_and_account() {
                    let (namespace, name) = (namespace.into(), name.into());
                    add(SourceKey::Pattern(IdentityPattern::Account { namespace, name }));
                    patterns = &[];
                }
                let matching = self.globs.iter().chain(patterns).filter(|(pattern, _)| pattern.matches(id));
                for (pattern, _) in matching {
                    add(SourceKey::Pattern(pattern.clone()));
                }
            }
        }
        for length in &self.lengths[usize::from(address.is_ipv6())] {
            if let Ok(net) = IpNet::new(address, *length) {
                add(SourceKey::Net(net.trunc()));
            }
        }
        out.sort_unstable();
        out.dedup();
        out.into()
    }

    pub(super) fn port(&self, port: u16) -> Option<u32> {
        self.ports.get(&port).copied()
    }

    /// Keys of patterns that match a path and a host.
    pub(super) fn of_request(&self, path: &str, host: Option<&CanonHost>) -> Hits {
        let mut hits = Hits::none();
        if let Some(host) = host.filter(|_| !self.hosts.is_empty() || !self.domains.is_empty()) {
            self.hosts(host, &mut hits);
        }
        if let Some(key) = self.exact.get(path) {
            hits.push(*key);
        }
        if self.depths != 0 {
            self.prefixes(path, &mut hits);
        }
        for shape in &self.shapes {
            let Some(hash) = shape.outline.hash(&self.state, path) else { continue };
            let same = shape.templates.get(&hash).into_iter().flatten();
            for (_, key) in same.filter(|(template, _)| template.matches(path)) {
                hits.push(*key);
            }
        }
        hits
    }

    /// Keys of names that match the server name of a TLS handshake. They are those of hosts: a question has either.
    pub(super) fn of_sni(&self, name: Option<&CanonHost>) -> Hits {
        let mut hits = Hits::none();
        if let Some(name) = name {
            self.hosts(name, &mut hits);
        }
        hits
    }

    fn hosts(&self, host: &CanonHost, hits: &mut Hits) {
        let name = host.name();
        hits.extend_from(self.hosts.get(name));
        if host.address().is_some() {
            return;
        }
        // A rule names at most so many labels, so no domain further up than that can be missed: from the right.
        let dots = name.rmatch_indices('.').map(|(at, _)| at);
        for at in dots.take(MAX_LABELS) {
            hits.extend_from(self.domains.get(&name[at + 1..]));
        }
    }

    fn prefixes(&self, path: &str, hits: &mut Hits) {
        if !path.starts_with('/') {
            return;
        }
        if self.depths & 1 != 0 {
            hits.extend_from(self.prefix.get("/"));
        }
        let ends = path[1..].match_indices('/').map(|(at, _)| at + 1).chain([path.len()]);
        for (n, end) in ends.enumerate() {
            if end > self.longest_prefix || n + 1 >= 64 {
                return;
            }
            if self.depths >> (n + 1) & 1 != 0 {
                hits.extend_from(self.prefix.get(&path[..end]));
            }
        }
    }
}

impl Hits {
    fn extend_from(&mut self, key: Option<&u32>) {
        if let Some(key) = key {
            self.push(*key);
        }
    }
}

impl Outline {
    fn of(template: &Template) -> Self {
        let literal = |segments: &[Segment]| {
            segments.iter().map(|s| matches!(s, Segment::Literal(_))).collect::<Box<[bool]>>()
        };
        let (head, tail) = template.head_and_tail();
        Self { head: literal(head), tail: tail.map(literal) }
    }

    /// The keyed hash of a path's segments where the outline is literal; `None` if the path cannot have this outline.
    fn hash(&self, state: &RandomState, path: &str) -> Option<u64> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let mut hasher = state.build_hasher();
        let mut take = |literal: bool, part: &str| {
            if literal {
                hasher.write(part.as_bytes());
                hasher.write_u8(b'/');
            }
            literal || !part.is_empty()
        };
        for literal in &self.head {
            if !take(*literal, parts.next()?) {
                return None;
            }
        }
        match &self.tail {
            None => {
                if parts.next().is_some() {
                    return None;
                }
            }
            Some(tail) => {
                for literal in tail.iter().rev() {
                    if !take(*literal, parts.next_back()?) {
                        return None;
                    }
                }
                parts.next()?;
            }
        }
        Some(hasher.finish())
    }
}

/// A path that the template matches.
fn sample(template: &Template) -> String {
    let mut out = String::new();
    for segment in &template.segments {
        out.push('/');
        out.push_str(match segment {
            Segment::Literal(text) => text,
            Segment::One | Segment::Many => "x",
        });
    }
    out
}

/// Segments of a prefix; `/` has none.
fn depth(prefix: &str) -> usize {
    if prefix == "/" { 0 } else { prefix.matches('/').count() }
}

fn next(count: &mut u32) -> u32 {
    let key = *count;
    *count += 1;
    key
}
