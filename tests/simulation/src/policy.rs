//! What the documents of one version allow: as text for the sidecars, and as a table to hold them to. The table is made
//! first, and knows nothing of the engine.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::seed::Rng;

/// The trust domain.
pub(crate) const DOMAIN: &str = "sim.postern";
/// The workloads, each with a service of its name in the namespace `shop`.
pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];
/// What a workload serves.
pub(crate) const PATHS: [&str; 3] = ["/open", "/ledger", "/admin"];
/// The file that tells the version.
pub(crate) const FILE: &str = "policy.yaml";

/// A question to a table.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Call {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) post: bool,
    pub(crate) path: usize,
}

impl Call {
    pub(crate) const fn method(&self) -> &'static str {
        if self.post { "POST" } else { "GET" }
    }
}

/// One version of the documents.
pub(crate) struct Version {
    pub(crate) number: u32,
    allowed: BTreeSet<Call>,
}

impl Version {
    /// Half of all calls, by chance.
    pub(crate) fn random(number: u32, rng: &mut Rng) -> Self {
        let allowed = all_calls().filter(|_| rng.percent(55)).collect();
        Self { number, allowed }
    }

    pub(crate) fn allows(&self, call: &Call) -> bool {
        self.allowed.contains(call)
    }

    /// The policy documents.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("# version {}\n", self.number);
        for (to, name) in NAMES.iter().enumerate() {
            let _ = write!(
                text,
                "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\n\
                 metadata: {{name: to-{name}, namespace: shop}}\nspec:\n  \
                 target: {{selector: {{app: {name}}}}}\n  action: Allow\n  rules:\n  \
                 - {{name: nobody, from: [{{serviceAccounts: [nobody]}}]}}\n",
            );
            for from in (0..NAMES.len()).filter(|from| *from != to) {
                let paths = |post| {
                    let these = self
                        .allowed
                        .iter()
                        .filter(|call| (call.from, call.to, call.post) == (from, to, post));
                    these.map(|call| PATHS[call.path]).collect::<Vec<_>>().join(", ")
                };
                let [get, post] = [("GET", paths(false)), ("POST", paths(true))];
                let operations: Vec<_> = [get, post]
                    .into_iter()
                    .filter(|(_, paths)| !paths.is_empty())
                    .map(|(method, paths)| format!("{{methods: [{method}], paths: [{paths}]}}"))
                    .collect();
                if !operations.is_empty() {
                    let (from, operations) = (NAMES[from], operations.join(", "));
                    let _ = writeln!(
                        text,
                        "  - {{name: {from}, from: [{{serviceAccounts: [{from}]}}], to: [{operations}]}}"
                    );
                }
            }
        }
        text
    }

    /// Which version a file is, if it is one.
    pub(crate) fn number_of(text: &[u8]) -> Option<u32> {
        let text = std::str::from_utf8(text).ok()?;
        text.strip_prefix("# version ")?.lines().next()?.parse().ok()
    }
}

/// Every call from one workload to another.
pub(crate) fn all_calls() -> impl Iterator<Item = Call> {
    let many = NAMES.len();
    (0..many * many * 2 * PATHS.len())
        .map(move |number| Call {
            from: number % many,
            to: number / many % many,
            post: number / (many * many) % 2 == 1,
            path: number / (many * many * 2),
        })
        .filter(|call| call.from != call.to)
}

/// The workloads' services.
pub(crate) fn services(addresses: &[IpAddr]) -> String {
    let mut text = String::new();
    for (name, address) in NAMES.iter().zip(addresses) {
        let _ = write!(
            text,
            "---\napiVersion: postern.dev/v1alpha1\nkind: Service\n\
             metadata: {{name: {name}, namespace: shop}}\nspec:\n  identity: {}\n  \
             ports: [{{port: 80, targetPort: 8080, protocol: http}}]\n  endpoints: [{{address: {address}}}]\n",
            id(name)
        );
    }
    text
}

/// A workload's SPIFFE id.
pub(crate) fn id(name: &str) -> String {
    format!("spiffe://{DOMAIN}/ns/shop/sa/{name}")
}
