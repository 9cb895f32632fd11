//! Policies as they are drawn, and as Postern reads them: YAML. What Envoy reads is made from the same values, by
//! [`super::rbac`], and nothing of Postern's stands between.

use super::draw::Draw;

/// An attribute with its values and those that are excluded.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) key: &'static str,
    pub(crate) values: Vec<String>,
    pub(crate) not: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    pub(crate) from: Vec<Vec<Pair>>,
    pub(crate) to: Vec<Vec<Pair>>,
    pub(crate) when: Vec<Pair>,
}

#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) action: &'static str,
    pub(crate) rules: Vec<Rule>,
}

/// Words that depend on the machine.
pub(crate) struct Words {
    pub(crate) ports: Vec<String>,
    pub(crate) networks: Vec<String>,
}

const PRINCIPALS: [&str; 9] = [
    "*",
    "home/ns/web/sa/front",
    "cluster.local/ns/web/sa/front",
    "home/ns/web/*",
    "*/sa/front",
    "else/ns/web/sa/front",
    "home/ns/web/sa/f*",
    "h*",
    "*nt",
];
const NAMESPACES: [&str; 6] = ["web", "webs", "web*", "*b", "ops", "shop"];
const ACCOUNTS: [&str; 4] = ["front", "web/front", "web/fron", "shop/front"];
const METHODS: [&str; 7] = ["GET", "POST", "P*", "*T", "*", "DELETE", "TRACE"];
const PATHS: [&str; 20] = [
    "/",
    "/a",
    "/a/",
    "/a*",
    "/a/*",
    "/a/b*",
    "*b",
    "*/b",
    "*.html",
    "*",
    "/a/b",
    "/a/{*}",
    "/a/{**}",
    "/{*}/b",
    "/a/{**}/b",
    "/{*}/{**}",
    "/admin",
    "/admin*",
    "/a;x",
    "/b%20c",
];
const HOSTS: [&str; 10] = ["a.x", "A.X", "ab", "a.x:80", "a.x:*", "*.x", "*", "a*", "10.0.0.1", "*:81"];
const VALUES: [&str; 7] = ["v", "w", "v*", "*w", "*", "vw", "v,w"];

fn list(draw: &mut Draw, of: &[&str]) -> Vec<String> {
    (0..1 + draw.below(2)).map(|_| draw.of(of).to_owned()).collect()
}

fn pair(draw: &mut Draw, key: &'static str, of: &[&str]) -> Pair {
    let (values, not) = match draw.below(8) {
        0..5 => (list(draw, of), Vec::new()),
        5..7 => (Vec::new(), list(draw, of)),
        _ => (list(draw, of), list(draw, of)),
    };
    Pair { key, values, not }
}

impl Policy {
    pub(crate) fn draw(draw: &mut Draw, words: &Words) -> Self {
        let action = draw.of(&["ALLOW", "ALLOW", "ALLOW", "DENY", "DENY"]);
        // An ALLOW without rules allows nothing; a DENY without rules is none.
        let rules = if action == "ALLOW" && draw.once_in(25) { 0 } else { 1 + draw.below(3) };
        Self { action, rules: (0..rules).map(|_| Rule::draw(draw, words)).collect() }
    }

    pub(crate) fn yaml(&self, n: usize) -> String {
        let rules: Vec<String> = self.rules.iter().map(Rule::yaml).collect();
        let rules = if rules.is_empty() {
            String::new()
        } else {
            format!("\n  rules:\n  - {}", rules.join("\n  - "))
        };
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{n}, namespace: shop}}\n\
             spec:\n  action: {}{rules}\n",
            self.action
        )
    }

    pub(crate) fn asks(&self, keys: &[&str]) -> bool {
        let pairs =
            self.rules.iter().flat_map(|rule| rule.from.iter().chain(&rule.to).flatten().chain(&rule.when));
        pairs.into_iter().any(|pair| keys.iter().any(|key| pair.key.starts_with(key)))
    }

    /// Values of an attribute.
    pub(crate) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a String> {
        let pairs = self.rules.iter().flat_map(|rule| rule.to.iter().flatten().chain(&rule.when));
        pairs.filter(move |pair| pair.key == key).flat_map(|pair| pair.values.iter().chain(&pair.not))
    }
}

impl Rule {
    fn draw(draw: &mut Draw, words: &Words) -> Self {
        if draw.once_in(30) {
            return Self::default();
        }
        let mut rule = Self::default();
        let networks: Vec<&str> = words.networks.iter().map(String::as_str).collect();
        let ports: Vec<&str> = words.ports.iter().map(String::as_str).collect();
        for _ in 0..draw.below(3) {
            let mut source = match draw.below(4) {
                0 => vec![pair(draw, "principals", &PRINCIPALS)],
                1 => vec![pair(draw, "namespaces", &NAMESPACES)],
                2 => vec![pair(draw, "serviceAccounts", &ACCOUNTS)],
                _ => vec![pair(draw, "ipBlocks", &networks)],
            };
            if source[0].key == "namespaces" && draw.once_in(3) {
                source.push(pair(draw, "principals", &PRINCIPALS));
            }
            if source[0].key != "ipBlocks" && draw.once_in(4) {
                source.push(pair(draw, "ipBlocks", &networks));
            }
            rule.from.push(source);
        }
        for _ in 0..draw.below(3) {
            let mut operation = Vec::new();
            if draw.once_in(2) {
                operation.push(pair(draw, "methods", &METHODS));
            }
            if draw.once_in(2) {
                operation.push(pair(draw, "paths", &PATHS));
            }
            if draw.once_in(4) {
                operation.push(pair(draw, "hosts", &HOSTS));
            }
            if operation.is_empty() || draw.once_in(6) {
                operation.push(pair(draw, "ports", &ports));
            }
            rule.to.push(operation);
        }
        if draw.once_in(3) {
            let condition = match draw.below(7) {
                0 => pair(draw, "source.namespace", &NAMESPACES),
                1 => pair(draw, "source.principal", &PRINCIPALS),
                2 => pair(draw, "source.ip", &networks),
                3 => pair(draw, "destination.port", &ports),
                _ => pair(draw, "request.headers[x-a]", &VALUES),
            };
            rule.when.push(condition);
            if draw.once_in(3) {
                rule.when.push(pair(draw, "request.headers[X-B]", &VALUES));
            }
        }
        rule
    }

    fn yaml(&self) -> String {
        let fields = |pairs: &Vec<Pair>| {
            let mut out = Vec::new();
            for Pair { key, values, not } in pairs {
                if !values.is_empty() {
                    out.push(format!("{key}: {values:?}"));
                }
                if !not.is_empty() {
                    out.push(format!("not{}{}: {not:?}", key[..1].to_uppercase(), &key[1..]));
                }
            }
            out.join(", ")
        };
        let mut out = Vec::new();
        if !self.from.is_empty() {
            let items: Vec<String> =
                self.from.iter().map(|pairs| format!("{{source: {{{}}}}}", fields(pairs))).collect();
            out.push(format!("from: [{}]", items.join(", ")));
        }
        if !self.to.is_empty() {
            let items: Vec<String> =
                self.to.iter().map(|pairs| format!("{{operation: {{{}}}}}", fields(pairs))).collect();
            out.push(format!("to: [{}]", items.join(", ")));
        }
        if !self.when.is_empty() {
            let item = |Pair { key, values, not }: &Pair| {
                let values = if values.is_empty() { String::new() } else { format!(", values: {values:?}") };
                let not = if not.is_empty() { String::new() } else { format!(", notValues: {not:?}") };
                format!("{{key: {key:?}{values}{not}}}")
            };
            let items: Vec<String> = self.when.iter().map(item).collect();
            out.push(format!("when: [{}]", items.join(", ")));
        }
        format!("{{{}}}", out.join(", "))
    }
}
