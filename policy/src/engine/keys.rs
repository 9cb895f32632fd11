//! Interned values of rules, and which of them are true of a peer, a port, a path.

use std::hash::Hasher;
use std::net::IpAddr;

use foldhash::HashMap;
use ipnet::IpNet;
use postern_svid::SpiffeId;

use super::names::Names;
use crate::istio::{self, Glob, IdentityPattern};
use crate::norm::CanonHost;
use crate::pattern::{MAX_SEGMENTS, PathPattern, Segment, Template};
use crate::rule::{HostPattern, MAX_LABELS, OwnDomains};

/// Kinds of templates by where their wildcards stand. Each costs every request one pass over its path, so further kinds
/// are checked rule by rule instead.
const MAX_SHAPES: usize = 16;
/// One exact path, a prefix at each depth, a template of each shape, one exact host, a domain above it at each depth.
const MAX_HITS: usize = 1 + MAX_SEGMENTS + MAX_SHAPES + 1 + MAX_LABELS;

/// Something a peer can be.
#[derive(Clone, Copy, Debug)]
pub(super) enum SourceKey<'a> {
    Anonymous,
    Id(&'a str),
    /// Trust domain (`None`: the mesh's own and its aliases), namespace, name.
    Account(Option<&'a str>, &'a str, &'a str),
    Namespace(Option<&'a str>, &'a str),
    Domain(&'a str),
    Net(IpNet),
    /// Of Istio's kinds, in whatever trust domain.
    AnyAccount(&'a str, &'a str),
    AnyNamespace(&'a str),
    Glob(&'a Glob),
}

impl SourceKey<'_> {
    /// Its bytes: different for different keys, since every part stands behind its length.
    fn write(&self, out: &mut Vec<u8>) {
        fn part(out: &mut Vec<u8>, text: &str) {
            out.extend_from_slice(&(text.len() as u64).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        fn domain(out: &mut Vec<u8>, domain: Option<&str>) {
            out.push(u8::from(domain.is_some()));
            part(out, domain.unwrap_or_default());
        }
        match *self {
            Self::Anonymous => out.push(0),
            Self::Id(id) => {
                out.push(1);
                part(out, id);
            }
            Self::Account(td, namespace, name) => {
                out.push(2);
                domain(out, td);
                part(out, namespace);
                part(out, name);
            }
            Self::Namespace(td, namespace) => {
                out.push(3);
                domain(out, td);
                part(out, namespace);
            }
            Self::Domain(td) => {
                out.push(4);
                part(out, td);
            }
            Self::Net(net) => {
                out.push(5);
                match net.addr() {
                    IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
                    IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
                }
                out.push(net.prefix_len());
            }
            Self::AnyAccount(namespace, name) => {
                out.push(6);
                part(out, namespace);
                part(out, name);
            }
            Self::AnyNamespace(namespace) => {
                out.push(7);
                part(out, namespace);
            }
            Self::Glob(glob) => {
                out.push(8);
                glob.parts().for_each(|text| part(out, text));
            }
        }
    }
}

/// All interned values.
#[derive(Debug, Default)]
pub(super) struct Keys {
    count: u32,
    sources: Names,
    /// Patterns that no lookup finds: with gaps, and accounts in ids of another shape than Kubernetes' own.
    globs: Vec<(IdentityPattern, u32)>,
    accounts: Vec<(IdentityPattern, u32)>,
    /// Prefix lengths that occur, IPv4 and IPv6.
    lengths: [Vec<u8>; 2],
    ports: HashMap<u16, u32>,
    exact: Names,
    prefix: Names,
    /// Bit n: some prefix has n segments.
    depths: u64,
    longest_prefix: usize,
    hosts: Names,
    /// Domains that stand behind `*.`.
    domains: Names,
    shapes: Vec<Shape>,
}

/// Templates whose wildcards stand in the same places. Two of them that match the same path are the same.
#[derive(Debug)]
struct Shape {
    outline: Outline,
    /// By their literal segments, each with a slash behind it.
    templates: Names,
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

    pub(super) fn source(&mut self, key: SourceKey<'_>) -> u32 {
        self.source_is_new(key).0
    }

    fn source_is_new(&mut self, key: SourceKey<'_>) -> (u32, bool) {
        if let SourceKey::Net(net) = &key {
            let lengths = &mut self.lengths[usize::from(matches!(net, IpNet::V6(_)))];
            if !lengths.contains(&net.prefix_len()) {
                lengths.push(net.prefix_len());
            }
        }
        let mut text = Vec::with_capacity(64);
        key.write(&mut text);
        add(&mut self.sources, &text, &mut self.count)
    }

    pub(super) fn identity(&mut self, pattern: &IdentityPattern) -> u32 {
        let key = match pattern {
            IdentityPattern::Id(id) => SourceKey::Id(id.as_str()),
            IdentityPattern::Namespace(namespace) => SourceKey::AnyNamespace(namespace),
            IdentityPattern::Account { namespace, name } => SourceKey::AnyAccount(namespace, name),
            IdentityPattern::Glob(glob) => SourceKey::Glob(glob),
        };
        let (number, is_new) = self.source_is_new(key);
        match pattern {
            IdentityPattern::Glob(_) if is_new => self.globs.push((pattern.clone(), number)),
            IdentityPattern::Account { .. } if is_new => self.accounts.push((pattern.clone(), number)),
            _ => {}
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
            PathPattern::Exact(path) => Some(add(&mut self.exact, path.as_bytes(), &mut self.count).0),
            PathPattern::Prefix(path) => {
                self.depths |= 1 << depth(path);
                self.longest_prefix = self.longest_prefix.max(path.len());
                Some(add(&mut self.prefix, path.as_bytes(), &mut self.count).0)
            }
            PathPattern::Template(template) => self.template(template),
            PathPattern::Methods { .. } | PathPattern::Beginning(_) | PathPattern::Ending(_) => None,
        }
    }

    pub(super) fn host(&mut self, host: &HostPattern) -> u32 {
        let (names, name) = match host {
            HostPattern::Exact(name) => (&mut self.hosts, name),
            HostPattern::Below(domain) => (&mut self.domains, domain),
        };
        add(names, name.as_bytes(), &mut self.count).0
    }

    pub(super) fn template(&mut self, template: &Template) -> Option<u32> {
        let outline = Outline::of(template);
        // A path that the template matches has the template's own literals.
        let (path, mut text) = (sample(template), Vec::new());
        outline.literals(&path, |part| {
            text.extend_from_slice(part.as_bytes());
            text.push(b'/');
            true
        })?;
        let at = match self.shapes.iter().position(|shape| shape.outline == outline) {
            Some(at) => at,
            None if self.shapes.len() == MAX_SHAPES => return None,
            None => {
                self.shapes.push(Shape { outline, templates: Names::default() });
                self.shapes.len() - 1
            }
        };
        let Shape { templates, .. } = &mut self.shapes[at];
        let hash = hash_of_literals(templates, &text);
        let (key, is_new) = templates.get_or_add_hashed(&text, hash, self.count, hash_of_literals);
        self.count += u32::from(is_new);
        Some(key)
    }

    /// Room that nothing will take any more.
    pub(super) fn shrink(&mut self) {
        let Self { sources, exact, prefix, hosts, domains, shapes, .. } = self;
        let shapes = shapes.iter_mut().map(|shape| &mut shape.templates);
        [sources, exact, prefix, hosts, domains].into_iter().chain(shapes).for_each(Names::shrink);
    }

    /// Keys that are true of a peer, sorted.
    pub(super) fn of_source(
        &self,
        id: Option<&SpiffeId>,
        address: IpAddr,
        domains: &OwnDomains,
    ) -> Box<[u32]> {
        let (mut out, mut text) = (Vec::new(), Vec::with_capacity(128));
        let mut add = |key: SourceKey<'_>| {
            text.clear();
            key.write(&mut text);
            out.extend(self.sources.get(&text));
        };
        match id {
            None => add(SourceKey::Anonymous),
            Some(id) => {
                let td = id.trust_domain_name();
                if let Some((namespace, name)) = id.namespace_and_account() {
                    let own = domains.contain(id).then_some(None);
                    for domain in own.into_iter().chain([Some(td)]) {
                        add(SourceKey::Account(domain, namespace, name));
                        add(SourceKey::Namespace(domain, namespace));
                    }
                }
                add(SourceKey::Domain(td));
                add(SourceKey::Id(id.as_str()));
                for namespace in istio::namespaces(id.as_str()) {
                    add(SourceKey::AnyNamespace(namespace));
                }
                let mut patterns = &*self.accounts;
                if let Some((namespace, name)) = id.namespace_and_account() {
                    add(SourceKey::AnyAccount(namespace, name));
                    patterns = &[];
                }
                let matching = self.globs.iter().chain(patterns).filter(|(pattern, _)| pattern.matches(id));
                out.extend(matching.map(|(_, key)| *key));
            }
        }
        for length in &self.lengths[usize::from(address.is_ipv6())] {
            if let Ok(net) = IpNet::new(address, *length) {
                text.clear();
                SourceKey::Net(net.trunc()).write(&mut text);
                out.extend(self.sources.get(&text));
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
        hits.extend_from(self.exact.get(path.as_bytes()));
        if self.depths != 0 {
            self.prefixes(path, &mut hits);
        }
        for shape in &self.shapes {
            hits.extend_from(shape.find(path));
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
        hits.extend_from(self.hosts.get(name.as_bytes()));
        if host.address().is_some() {
            return;
        }
        // A rule names at most so many labels, so no domain further up than that can be missed: from the right.
        let dots = name.rmatch_indices('.').map(|(at, _)| at);
        for at in dots.take(MAX_LABELS) {
            hits.extend_from(self.domains.get(&name.as_bytes()[at + 1..]));
        }
    }

    fn prefixes(&self, path: &str, hits: &mut Hits) {
        if !path.starts_with('/') {
            return;
        }
        if self.depths & 1 != 0 {
            hits.extend_from(self.prefix.get(b"/"));
        }
        let ends = path[1..].match_indices('/').map(|(at, _)| at + 1).chain([path.len()]);
        for (n, end) in ends.enumerate() {
            if end > self.longest_prefix || n + 1 >= 64 {
                return;
            }
            if self.depths >> (n + 1) & 1 != 0 {
                hits.extend_from(self.prefix.get(&path.as_bytes()[..end]));
            }
        }
    }
}

impl Hits {
    fn extend_from(&mut self, key: Option<u32>) {
        if let Some(key) = key {
            self.push(key);
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

    /// Gives the path's segments where the outline is literal, in its order; `None` if the path cannot have this outline,
    /// or one of them is not wanted. It is [`Template::matches`] but for what the literals are.
    fn literals<'p>(&self, path: &'p str, mut wants: impl FnMut(&'p str) -> bool) -> Option<()> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let mut take = |literal: bool, part: &'p str| {
            let fits = if literal { wants(part) } else { !part.is_empty() };
            fits.then_some(())
        };
        for literal in &self.head {
            take(*literal, parts.next()?)?;
        }
        match &self.tail {
            None => parts.next().is_none().then_some(()),
            Some(tail) => {
                for literal in tail.iter().rev() {
                    take(*literal, parts.next_back()?)?;
                }
                parts.next().map(|_| ())
            }
        }
    }
}

impl Shape {
    /// The template that matches a path.
    fn find(&self, path: &str) -> Option<u32> {
        let Self { outline, templates } = self;
        let mut fits = None;
        let hash = templates.hash(|hasher| {
            fits = outline.literals(path, |part| {
                hash_literal(hasher, part.as_bytes());
                true
            });
        });
        fits?;
        templates.find(hash, |stored| {
            let mut left = Some(stored);
            let fits = outline.literals(path, |part| {
                left = left.and_then(|left| left.strip_prefix(part.as_bytes())?.strip_prefix(b"/"));
                left.is_some()
            });
            fits.is_some() && left.is_some_and(<[u8]>::is_empty)
        })
    }
}

fn hash_of_literals(names: &Names, text: &[u8]) -> u64 {
    names.hash(|hasher| {
        for part in text.split_inclusive(|byte| *byte == b'/') {
            hash_literal(hasher, part.strip_suffix(b"/").unwrap_or(part));
        }
    })
}

fn hash_literal(hasher: &mut impl Hasher, part: &[u8]) {
    hasher.write(part);
    hasher.write_u8(b'/');
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

/// The key of a text, a new one if it has none.
fn add(names: &mut Names, text: &[u8], count: &mut u32) -> (u32, bool) {
    let (key, is_new) = names.get_or_add(text, *count);
    *count += u32::from(is_new);
    (key, is_new)
}

fn next(count: &mut u32) -> u32 {
    let key = *count;
    *count += 1;
    key
}
