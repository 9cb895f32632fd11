//! One rule of Istio's in our words.

use super::super::{Clause, Field, IdentityPattern, Test, TextPattern, What, Who};
use crate::pattern::PathPattern;
use crate::verdict::Action;

const OTHER_DOMAINS: &str = "Istio means namespaces and service accounts of every trust domain, this rule the mesh's own and its aliases";
const OTHER_DOMAINS_LOST: &str =
    "Istio means namespaces and service accounts of every trust domain, and so must this rule";
const NO_PATTERN: &str = "an AccessPolicy knows no patterns for identities";
const NO_METHOD_PATTERN: &str = "an AccessPolicy knows no patterns for methods";
const NO_PATH_PATTERN: &str = "an AccessPolicy has prefixes in whole segments only, and no suffixes";
const HOST_PORTS: &str = "hosts of an AccessPolicy are meant with any port behind them";
const ABSENT: &str = "a field that is absent fulfils no `not` of an Allow";
const ELEMENTS: &str = "a field that is a list is compared element by element";

/// Writes a rule, and notes what it cannot say: whether it is written more strictly then.
pub(super) struct Rewriter {
    action: Action,
    pub(super) notes: Vec<(&'static str, bool)>,
}

impl Rewriter {
    pub(super) fn new(action: Action) -> Self {
        Self { action, notes: Vec::new() }
    }

    fn note(&mut self, what: &'static str, is_stricter: bool) {
        if !self.notes.contains(&(what, is_stricter)) {
            self.notes.push((what, is_stricter));
        }
    }

    fn opens(&self) -> bool {
        !self.action.is_wide()
    }

    /// Its lines but for the name.
    pub(super) fn rule(&mut self, clause: &Clause) -> String {
        let Clause { from, to, fields } = clause;
        let layer7 = to.iter().filter(|what| what.asks_layer7()).count();
        if self.opens() && fields.is_empty() && layer7 > 0 && layer7 < to.len() {
            self.note(
                "Istio allows no opaque TCP by a rule that asks for HTTP in another alternative",
                false,
            );
        }
        let mut out = String::new();
        let peers: Vec<Vec<String>> = from.iter().map(|who| self.who(who)).collect();
        // An alternative that asks for nothing means everybody, whatever stands beside it.
        if peers.iter().all(|fields| !fields.is_empty()) {
            out.push_str("    from:\n");
            for fields in peers {
                out.push_str(&format!("    - {{{}}}\n", fields.join(", ")));
            }
        }
        let headers = self.headers(fields);
        let mut targets: Vec<Vec<String>> = to.iter().map(|what| self.what(what)).collect();
        if !headers.is_empty() {
            for fields in &mut targets {
                fields.push(format!("headers: [{}]", headers.join(", ")));
            }
        }
        if targets.iter().all(|fields| !fields.is_empty()) {
            out.push_str("    to:\n");
            for fields in targets {
                out.push_str(&format!("    - {{{}}}\n", fields.join(", ")));
            }
        }
        out
    }

    fn who(&mut self, who: &Who) -> Vec<String> {
        let Who { identities, addresses, tokens } = who;
        if !tokens.is_empty() {
            self.note(
                "an AccessPolicy asks for tokens of one issuer that MeshDefaults name: write `jwt` yourself",
                false,
            );
        }
        let mut names = Names::default();
        let mut not = Names::default();
        for Test { values, not: excluded } in identities {
            let any = values.iter().any(is_anybody);
            if any && self.action.is_wide() {
                self.note("a Deny of an AccessPolicy cannot mean peers with an identity alone", false);
            } else if !any && !values.is_empty() {
                self.identities(&mut names, values, self.opens());
            }
            // Exclusions are joined by OR, however many tests they stand in.
            let narrow = !self.opens();
            if excluded.iter().any(is_anybody) {
                self.note("an AccessPolicy cannot exclude everybody with an identity", false);
            }
            for pattern in excluded {
                self.identities(&mut not, std::slice::from_ref(pattern), narrow);
            }
        }
        let mut cidrs: Option<Vec<String>> = None;
        let mut not_cidrs = Vec::new();
        for Test { values, not: excluded } in addresses {
            let all: Vec<String> = values.iter().map(|net| format!("{:?}", net.to_string())).collect();
            match &cidrs {
                _ if all.is_empty() => {}
                None => cidrs = Some(all),
                Some(_) => self.note("two lists of addresses cannot both hold in one alternative", false),
            }
            not_cidrs.extend(excluded.iter().map(|net| format!("{:?}", net.to_string())));
        }
        if !not_cidrs.is_empty() && self.action.is_wide() {
            self.note("a Deny of an AccessPolicy excludes no peer without an identity", true);
        }
        if names.tests > 1 {
            self.note("two lists of the same kind of identities cannot both hold in one alternative", false);
        }
        let mut out = names.fields();
        out.extend(cidrs.map(|list| format!("cidrs: [{}]", list.join(", "))));
        let mut excluded = not.fields();
        if !not_cidrs.is_empty() {
            excluded.push(format!("cidrs: [{}]", not_cidrs.join(", ")));
        }
        if !excluded.is_empty() {
            out.push(format!("not: {{{}}}", excluded.join(", ")));
        }
        out
    }

    /// One test. `narrower_is_stricter`: whether meaning fewer peers allows less or denies more.
    fn identities(&mut self, names: &mut Names, list: &[IdentityPattern], narrower_is_stricter: bool) {
        let before = [names.ids.len(), names.namespaces.len(), names.accounts.len()];
        for pattern in list {
            match pattern {
                IdentityPattern::Id(id) => names.ids.push(format!("{:?}", id.as_str())),
                IdentityPattern::Namespace(name) => names.namespaces.push(format!("{name:?}")),
                IdentityPattern::Account { namespace, name } => {
                    names.accounts.push(format!("{:?}", format!("{namespace}/{name}")));
                }
                IdentityPattern::Glob(_) => self.note(NO_PATTERN, false),
            }
            if matches!(pattern, IdentityPattern::Namespace(_) | IdentityPattern::Account { .. }) {
                let what = if narrower_is_stricter { OTHER_DOMAINS } else { OTHER_DOMAINS_LOST };
                self.note(what, narrower_is_stricter);
            }
        }
        let after = [names.ids.len(), names.namespaces.len(), names.accounts.len()];
        let added = before.iter().zip(after).filter(|(before, after)| **before != *after).count();
        let twice = before.iter().zip(after).any(|(before, after)| *before > 0 && *before != after);
        names.tests += usize::from(added > 1 || twice) * 2;
    }

    fn what(&mut self, what: &What) -> Vec<String> {
        let What { hosts, methods, paths, ports, sni } = what;
        if !sni.is_empty() {
            self.note(
                "server names of an AccessPolicy hold on opaque TCP alone: write `sni` yourself",
                false,
            );
        }
        let (mut out, mut not) = (Vec::new(), Vec::new());
        let list = |name: &str, items: &[String]| format!("{name}: [{}]", items.join(", "));
        let named = self.methods(&methods.values);
        let only_paths = named.is_empty() && hosts.is_empty() && methods.is_empty() && paths.not.is_empty();
        if !named.is_empty() {
            out.push(list("methods", &named));
        } else if only_paths && paths.values.iter().any(is_any_path) {
            // Any path, but still only where paths can be read.
            out.push("methods: [\"*\"]".to_owned());
        }
        let excluded = self.methods(&methods.not);
        if !excluded.is_empty() {
            not.push(list("methods", &excluded));
        }
        if methods.not.contains(&TextPattern::Present) || paths.not.iter().any(is_any_path) {
            self.note("this alternative never matches", false);
        }
        if !paths.values.is_empty() && !paths.values.iter().any(is_any_path) {
            let items = self.paths(&paths.values);
            out.push(list("paths", &items));
        }
        if !paths.not.is_empty() {
            let items = self.paths(&paths.not);
            not.push(list("paths", &items));
        }
        let names = self.hosts(&hosts.values, self.action.is_wide());
        if !names.is_empty() {
            out.push(list("hosts", &names));
        }
        let names = self.hosts(&hosts.not, self.opens());
        if !names.is_empty() {
            not.push(list("hosts", &names));
        }
        let mut on: Option<Vec<u16>> = None;
        let mut off = Vec::new();
        for Test { values, not } in ports {
            match &mut on {
                _ if values.is_empty() => {}
                None => on = Some(values.clone()),
                Some(on) => on.retain(|port| values.contains(port)),
            }
            off.extend(not.iter().map(u16::to_string));
        }
        if let Some(on) = on {
            if on.is_empty() {
                self.note("this alternative never matches", false);
            }
            out.push(list("ports", &on.iter().map(u16::to_string).collect::<Vec<_>>()));
        }
        if !off.is_empty() {
            not.push(list("ports", &off));
        }
        if !not.is_empty() {
            out.push(format!("not: {{{}}}", not.join(", ")));
        }
        out
    }

    fn methods(&mut self, list: &[TextPattern]) -> Vec<String> {
        let mut out = Vec::new();
        for pattern in list {
            match pattern {
                TextPattern::Exact(name) => out.push(format!("{name:?}")),
                TextPattern::Present if list.len() == 1 => out.push("\"*\"".to_owned()),
                _ => self.note(NO_METHOD_PATTERN, false),
            }
        }
        out
    }

    fn paths(&mut self, list: &[PathPattern]) -> Vec<String> {
        let mut out = Vec::new();
        for pattern in list {
            match pattern {
                PathPattern::Exact(path) if !path.contains('*') => out.push(format!("{path:?}")),
                PathPattern::Template(template) => out.push(format!("{:?}", template.to_string())),
                PathPattern::Beginning(start) if start.ends_with('/') => {
                    out.push(format!("{:?}", format!("{start}{{**}}")))
                }
                _ => self.note(NO_PATH_PATTERN, false),
            }
        }
        out
    }

    /// `any_port`: whether Istio's rule, as it is read here, means the host with any port behind it too.
    fn hosts(&mut self, list: &[TextPattern], any_port: bool) -> Vec<String> {
        let mut out = Vec::new();
        for pattern in list {
            match pattern {
                TextPattern::Exact(name) if any_port && !name.contains(':') => out.push(format!("{name:?}")),
                TextPattern::Suffix(end) if any_port && end.starts_with('.') && is_domain(&end[1..]) => {
                    out.push(format!("{:?}", format!("*{end}")));
                }
                _ => self.note(HOST_PORTS, false),
            }
        }
        out
    }

    fn headers(&mut self, fields: &[Field]) -> Vec<String> {
        let mut out = Vec::new();
        for Field { name, test: Test { values, not } } in fields {
            if values.contains(&TextPattern::Present) {
                out.push(format!("{{name: {name}, present: true}}"));
            } else if !values.is_empty() {
                // A prefix is that of the whole line in Istio, and of an element here.
                let texts = self.values(values, self.opens());
                out.push(format!("{{name: {name}, {texts}}}"));
            }
            if not.contains(&TextPattern::Present) {
                out.push(format!("{{name: {name}, present: false}}"));
            } else if !not.is_empty() {
                if self.opens() {
                    self.note(ABSENT, true);
                }
                let texts = self.values(not, self.action.is_wide());
                out.push(format!("{{name: {name}, not: {{{texts}}}}}"));
            }
        }
        out
    }

    fn values(&mut self, list: &[TextPattern], prefixes_differ: bool) -> String {
        let (mut exact, mut prefix) = (Vec::new(), Vec::new());
        for pattern in list {
            match pattern {
                TextPattern::Exact(text) if !text.contains(',') => exact.push(format!("{text:?}")),
                TextPattern::Prefix(text) if !text.contains(',') => {
                    if prefixes_differ {
                        self.note(ELEMENTS, true);
                    }
                    prefix.push(format!("{text:?}"));
                }
                _ => self
                    .note("header fields of an AccessPolicy have values and prefixes without a comma", false),
            }
        }
        let lists = [("exact", exact), ("prefix", prefix)];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        lists.map(|(word, list)| format!("{word}: [{}]", list.join(", "))).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Default)]
struct Names {
    ids: Vec<String>,
    namespaces: Vec<String>,
    accounts: Vec<String>,
    /// Two or more if one field would have to hold two lists.
    tests: usize,
}

impl Names {
    fn fields(&self) -> Vec<String> {
        let Self { ids, namespaces, accounts, tests: _ } = self;
        let lists = [("spiffe", ids), ("namespaces", namespaces), ("serviceAccounts", accounts)];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        lists.map(|(word, list)| format!("{word}: [{}]", list.join(", "))).collect()
    }
}

fn is_anybody(pattern: &IdentityPattern) -> bool {
    matches!(pattern, IdentityPattern::Glob(glob) if glob.parts().eq(["spiffe://", ""]))
}

fn is_any_path(pattern: &PathPattern) -> bool {
    matches!(pattern, PathPattern::Beginning(start) if start.is_empty())
}

/// A name of which there are others below: the last label of an address is a number.
fn is_domain(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or_default();
    !text.contains(':') && last.bytes().any(|byte| byte.is_ascii_alphabetic())
}
