//! Requests as they are drawn, what is odd about each, and Postern's answer.

use std::net::IpAddr;

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use postern_policy::{Generation, HeaderFields, HeaderLines, Operation, Source};
use postern_svid::SpiffeId;

use super::draw::Draw;
use super::policy::Policy;

const METHODS: [&str; 6] = ["GET", "GET", "POST", "PUT", "DELETE", "PATCH"];
const PATHS: [&str; 14] = [
    "/",
    "/a",
    "/a/",
    "/ab",
    "/a/b",
    "/a/b/",
    "/a/b/c",
    "/b",
    "/x/b",
    "/a/x.html",
    "/admin",
    "/admin/x",
    "/a?b=/c",
    "/c/d/b",
];
/// Spellings that Postern changes, refuses, or reads in more than one way.
const ODD_PATHS: [&str; 22] = [
    "//a",
    "/a//b",
    "/%61",
    "/a/../b",
    "/a/./b",
    "/x/../../a",
    "/a%2Fb",
    "/a%00",
    "/a%zz",
    "/admin%2f..%2fa",
    "/..;/admin",
    "/a\\b",
    "/a;x",
    "/a;x/b",
    "/admin;x",
    "/x;y/b",
    "/a/b;x",
    "/a/x.html;x",
    "/%2561",
    "/b;y/%2561dmin",
    "/B%20c",
    "/b%20c/%7e",
];
const HOSTS: [&str; 5] = ["a.x", "b.x", "A.x", "10.0.0.1", "ab"];
const ODD_HOSTS: [&str; 10] =
    ["a.x:80", "a.x:81", "A.x:80", "a.x:8", "ab:81", "10.0.0.1:80", "a.x.", "me@a.x", "a.x:", "a..x"];
const VALUES: [&str; 5] = ["v", "w", "vw", "x", "wv"];

/// What is odd about a request: each is one of the deliberate deviations.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Odd {
    Unauthenticated,
    CanonicalPath,
    Readings,
    HostPort,
    CanonicalHost,
    HeaderValues,
    NamedMethods,
}

impl Odd {
    /// Its name in docs/istio.md.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::CanonicalPath => "canonical-path",
            Self::Readings => "readings",
            Self::HostPort => "host-port",
            Self::CanonicalHost => "canonical-host",
            Self::HeaderValues => "header-values",
            Self::NamedMethods => "named-methods",
        }
    }

    /// Whether it can be why Envoy allows (`theirs`) or denies what Postern does not.
    pub(crate) fn explains(self, set: &[Policy], theirs: bool) -> bool {
        let asks = |keys: &[&str]| set.iter().any(|policy| policy.asks(keys));
        match self {
            // What was judged in another spelling is forwarded in it.
            Self::CanonicalPath | Self::CanonicalHost => true,
            Self::Unauthenticated | Self::NamedMethods => theirs,
            Self::Readings => theirs && asks(&["paths"]),
            Self::HostPort => theirs && asks(&["hosts"]),
            Self::HeaderValues => theirs && asks(&["request.headers"]),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) id: Option<&'static str>,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) lines: Vec<(&'static str, String)>,
    pub(crate) odd: Vec<Odd>,
}

impl Asked {
    pub(crate) fn draw(
        draw: &mut Draw,
        set: &[Policy],
        ids: &[&'static str],
        addresses: &[IpAddr],
        ports: &[u16],
    ) -> Self {
        let mut asked = Self {
            id: Some(draw.of(ids)),
            address: draw.pick(addresses),
            port: draw.pick(ports),
            method: draw.of(&METHODS).to_owned(),
            path: near(draw, set, "paths", &PATHS),
            host: draw.of(&HOSTS).to_owned(),
            lines: Vec::new(),
            odd: Vec::new(),
        };
        for (name, key) in [("x-a", "request.headers[x-a]"), ("x-b", "request.headers[X-B]")] {
            if draw.once_in(2) {
                asked.lines.push((name, near(draw, set, key, &VALUES).replace(',', "")));
            }
        }
        if draw.once_in(3) {
            // Rather where a rule looks.
            let asks = |key: &str| set.iter().any(|policy| policy.asks(&[key]));
            let kind = match (asks("hosts"), asks("request.headers")) {
                (true, _) if draw.once_in(3) => 3,
                (_, true) if draw.once_in(3) => 4,
                _ => draw.below(6),
            };
            asked.make_odd(draw, kind);
        }
        asked.odd = asked.oddities();
        asked
    }

    fn make_odd(&mut self, draw: &mut Draw, kind: usize) {
        match kind {
            0 => self.id = None,
            1 | 2 => draw.of(&ODD_PATHS).clone_into(&mut self.path),
            3 => draw.of(&ODD_HOSTS).clone_into(&mut self.host),
            4 => {
                let value = draw.of(&VALUES).to_owned();
                match self.lines.last().cloned() {
                    // A second line, or a list in the first.
                    Some((name, _)) if draw.once_in(2) => self.lines.push((name, value)),
                    Some((_, first)) => {
                        self.lines.last_mut().expect("there is one").1 = format!("{first},{value}")
                    }
                    None => self.lines.push(("x-a", format!("{value}, v"))),
                }
            }
            _ => "TRACE".clone_into(&mut self.method),
        }
    }

    fn oddities(&self) -> Vec<Odd> {
        let mut out = Vec::new();
        if self.id.is_none() {
            out.push(Odd::Unauthenticated);
        }
        match CanonPath::parse(&self.path, &PathOptions::default()) {
            Ok(path) if path.path_and_query() == self.path => {
                if path.views().count() > 1 {
                    out.push(Odd::Readings);
                }
            }
            _ => out.push(Odd::CanonicalPath),
        }
        match CanonHost::parse(&self.host) {
            Ok(host) if host.to_string() != self.host.to_ascii_lowercase() => out.push(Odd::CanonicalHost),
            Ok(host) if host.port().is_some() => out.push(Odd::HostPort),
            Ok(_) => {}
            Err(_) => out.push(Odd::CanonicalHost),
        }
        let several = |name: &str| self.lines.iter().filter(|(line, _)| *line == name).count() > 1;
        if self.lines.iter().any(|(name, value)| value.contains(',') || several(name)) {
            out.push(Odd::HeaderValues);
        }
        if self.method == "TRACE" {
            out.push(Odd::NamedMethods);
        }
        out
    }

    /// Whether an export says the same of it: Envoy brings no request into Postern's form first.
    pub(crate) fn is_exported(&self) -> bool {
        self.odd.iter().all(|odd| matches!(odd, Odd::Unauthenticated | Odd::HostPort | Odd::NamedMethods))
    }

    /// What is sent to the route of a set.
    pub(crate) fn bytes(&self, set: usize) -> Vec<u8> {
        let lines: String = self.lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let Self { method, path, host, .. } = self;
        format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nx-set: {set}\r\n{lines}\r\n").into_bytes()
    }

    pub(crate) fn judged_by(&self, generation: &Generation) -> bool {
        let id = self.id.map(|id| SpiffeId::parse(id).expect("a literal"));
        let source = Source { identity: id.as_ref(), address: self.address };
        let method = CanonMethod::parse(&self.method).expect("a token");
        // Answered with 400.
        let Ok(path) = CanonPath::parse(&self.path, &PathOptions::default()) else { return false };
        let Ok(host) = CanonHost::parse(&self.host) else { return false };
        let mut fields = HeaderFields::new();
        for (name, value) in &self.lines {
            fields.push(name, value).expect("names and values are sound");
        }
        let operation = Operation::Http {
            method: &method,
            path: &path,
            host: Some(&host),
            headers: Some(&fields as &dyn HeaderLines),
            upgrade: None,
            tokens: postern_policy::Tokens::Absent,
        };
        let verdict = generation.decide(&generation.connection(source), self.port, operation);
        assert_eq!(verdict, generation.decide_by_reference(source, self.port, operation));
        verdict.is_allowed()
    }
}

/// A value of the set, or nearly one; or any.
fn near(draw: &mut Draw, set: &[Policy], key: &str, any: &[&str]) -> String {
    let values: Vec<&String> = set.iter().flat_map(|policy| policy.values(key)).collect();
    if values.is_empty() || draw.once_in(3) {
        return draw.of(any).to_owned();
    }
    let filled = values[draw.below(values.len())].replace("{**}", "x/y").replace("{*}", "x").replace('*', "");
    let text = match (draw.below(6), key) {
        (0, "paths") => format!("{filled}/"),
        (1, "paths") => format!("{filled}/x"),
        (2, _) => format!("{filled}x"),
        (3, _) if filled.len() > 1 && filled.is_ascii() => filled[..filled.len() - 1].to_owned(),
        _ => filled,
    };
    match key {
        "paths" if !text.starts_with('/') => format!("/x{text}"),
        _ if text.is_empty() => "x".to_owned(),
        _ => text,
    }
}
