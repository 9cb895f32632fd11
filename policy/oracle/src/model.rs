//! Rules as they are told to both engines.

use std::fmt::Write as _;
use std::net::IpAddr;

use postern_policy::{Scope, SourceFile, Workload};
use postern_svid::TrustDomain;

/// The mesh's own trust domain.
pub const TRUST_DOMAIN: &str = "td";

/// What a rule does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// `action: Allow`.
    Allow,
    /// `action: Deny`.
    Deny,
}

/// Which rules are asked first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Tier {
    /// `tier: Platform`.
    Platform,
    /// `tier: App`.
    App,
    /// `tier: Baseline`.
    Baseline,
}

impl Tier {
    /// In the order in which they are asked.
    pub const ALL: [Self; 3] = [Self::Platform, Self::App, Self::Baseline];
}

/// One rule. An empty list is a field that is left out.
#[derive(Clone, Debug)]
pub struct Model {
    /// What it does.
    pub side: Side,
    /// Its tier.
    pub tier: Tier,
    /// `target.ports`.
    pub ports: Vec<u16>,
    /// `from`.
    pub from: Vec<Who>,
    /// `to`.
    pub to: Vec<What>,
}

/// An alternative of `from`.
#[derive(Clone, Debug, Default)]
pub struct Who {
    /// `unauthenticated: true`; only `cidrs` may stand beside it.
    pub unauthenticated: bool,
    /// `spiffe`.
    pub spiffe: Vec<String>,
    /// `serviceAccounts`, each `namespace/name`.
    pub accounts: Vec<String>,
    /// `namespaces`.
    pub namespaces: Vec<String>,
    /// `trustDomain`.
    pub trust_domain: Option<String>,
    /// `cidrs`.
    pub cidrs: Vec<String>,
    /// `not`.
    pub not: Option<NotWho>,
}

/// `not` of an alternative of `from`.
#[derive(Clone, Debug, Default)]
pub struct NotWho {
    /// `spiffe`.
    pub spiffe: Vec<String>,
    /// `serviceAccounts`, each `namespace/name`.
    pub accounts: Vec<String>,
    /// `namespaces`.
    pub namespaces: Vec<String>,
    /// `cidrs`.
    pub cidrs: Vec<String>,
}

/// An alternative of `to`.
#[derive(Clone, Debug, Default)]
pub struct What {
    /// `methods`; `*` among them alone.
    pub methods: Vec<String>,
    /// `paths`: exact ones and templates.
    pub paths: Vec<String>,
    /// `pathPrefix`.
    pub prefixes: Vec<String>,
    /// `hosts`.
    pub hosts: Vec<String>,
    /// `ports`.
    pub ports: Vec<u16>,
    /// `not`.
    pub not: Option<NotWhat>,
}

/// `not` of an alternative of `to`.
#[derive(Clone, Debug, Default)]
pub struct NotWhat {
    /// `methods`.
    pub methods: Vec<String>,
    /// `paths`: exact ones and templates.
    pub paths: Vec<String>,
    /// `pathPrefix`.
    pub prefixes: Vec<String>,
    /// `hosts`.
    pub hosts: Vec<String>,
    /// `ports`.
    pub ports: Vec<u16>,
}

/// A question.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The peer's SPIFFE id.
    pub identity: Option<String>,
    /// Where it connects from.
    pub address: IpAddr,
    /// The port that it asks for.
    pub port: u16,
    /// `None`: opaque bytes.
    pub http: Option<Http>,
}

/// A request, in canonical form.
#[derive(Clone, Debug)]
pub struct Http {
    /// The method.
    pub method: String,
    /// The path, in one reading.
    pub path: String,
    /// The host, without a port.
    pub host: String,
}

/// The workload that all rules are for: `shop/orders`, in a mesh whose root namespace is `root`.
pub fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse(TRUST_DOMAIN).expect("a literal that is one"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: Default::default(),
        }),
    }
}

/// Rules of one document.
const IN_DOCUMENT: usize = 5;
/// Documents of one file.
const IN_FILE: usize = 50;

/// The rules as documents. Rule `n` of the list is named `r{n}`.
pub fn documents(rules: &[Model]) -> Vec<SourceFile> {
    let mut texts: Vec<String> = Vec::new();
    let (mut last, mut count) = (None, 0);
    for (n, rule) in rules.iter().enumerate() {
        let head = (rule.side, rule.tier, &rule.ports);
        if last != Some(head) || count == IN_DOCUMENT {
            texts.push(head_of(rule, n));
            (last, count) = (Some(head), 0);
        }
        count += 1;
        if let Some(text) = texts.last_mut() {
            let _ = writeln!(text, "  - {}", rule_text(rule, n));
        }
    }
    let file = |(n, texts): (usize, &[String])| SourceFile {
        name: format!("{n}.yaml"),
        text: texts.join("---\n").into_bytes(),
    };
    texts.chunks(IN_FILE).enumerate().map(file).collect()
}

fn head_of(rule: &Model, n: usize) -> String {
    let Model { side, tier, ports, from: _, to: _ } = rule;
    let (namespace, tier, all) = match tier {
        Tier::Platform => ("root", "  tier: Platform\n", true),
        Tier::App => ("shop", "", false),
        Tier::Baseline => ("shop", "  tier: Baseline\n", false),
    };
    let mut target = Fields::default();
    target.flag("all", all);
    target.numbers("ports", ports);
    let target = if target.0.is_empty() { String::new() } else { format!("  target: {}\n", target.text()) };
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{n}, namespace: {namespace}}}\nspec:\n  action: {side:?}\n{tier}{target}  rules:\n"
    )
}

fn rule_text(rule: &Model, n: usize) -> String {
    let mut fields = Fields::default();
    fields.push("name", &format!("r{n}"));
    fields.list("from", rule.from.iter().map(who));
    fields.list("to", rule.to.iter().map(what));
    fields.text()
}

fn who(who: &Who) -> String {
    let Who { unauthenticated, spiffe, accounts, namespaces, trust_domain, cidrs, not } = who;
    let mut fields = Fields::default();
    fields.flag("unauthenticated", *unauthenticated);
    fields.words("spiffe", spiffe);
    fields.words("serviceAccounts", accounts);
    fields.words("namespaces", namespaces);
    if let Some(domain) = trust_domain {
        fields.push("trustDomain", domain);
    }
    fields.words("cidrs", cidrs);
    if let Some(NotWho { spiffe, accounts, namespaces, cidrs }) = not {
        let mut not = Fields::default();
        not.words("spiffe", spiffe);
        not.words("serviceAccounts", accounts);
        not.words("namespaces", namespaces);
        not.words("cidrs", cidrs);
        fields.push("not", &not.text());
    }
    fields.text()
}

fn what(what: &What) -> String {
    let What { methods, paths, prefixes, hosts, ports, not } = what;
    let mut fields = Fields::default();
    fields.words("methods", methods);
    fields.words("paths", paths);
    fields.words("pathPrefix", prefixes);
    fields.words("hosts", hosts);
    fields.numbers("ports", ports);
    if let Some(NotWhat { methods, paths, prefixes, hosts, ports }) = not {
        let mut not = Fields::default();
        not.words("methods", methods);
        not.words("paths", paths);
        not.words("pathPrefix", prefixes);
        not.words("hosts", hosts);
        not.numbers("ports", ports);
        fields.push("not", &not.text());
    }
    fields.text()
}

/// Fields of a mapping in flow style.
#[derive(Default)]
struct Fields(Vec<String>);

impl Fields {
    fn push(&mut self, name: &str, value: &str) {
        self.0.push(format!("{name}: {value}"));
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.push(name, "true");
        }
    }

    fn list(&mut self, name: &str, items: impl Iterator<Item = String>) {
        let items: Vec<String> = items.collect();
        if !items.is_empty() {
            self.push(name, &format!("[{}]", items.join(", ")));
        }
    }

    fn words(&mut self, name: &str, words: &[String]) {
        self.list(name, words.iter().map(|word| format!("'{word}'")));
    }

    fn numbers(&mut self, name: &str, numbers: &[u16]) {
        self.list(name, numbers.iter().map(u16::to_string));
    }

    fn text(&self) -> String {
        format!("{{{}}}", self.0.join(", "))
    }
}
