//! What an attestor found to be true of a caller.

use std::fmt::{self, Write as _};

use crate::lineage::Attestor;

/// The longest text of facts in a log line or a record of the ledger.
pub const MAX_SHOWN: usize = 1_024;
/// The longest value in it.
const MAX_VALUE: usize = 256;

/// Which fact.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum FactName {
    /// The cluster, by the name that the control plane's configuration gives it.
    KubernetesCluster,
    /// The pod's namespace.
    KubernetesNamespace,
    /// Its service account.
    KubernetesServiceAccount,
    /// Its name.
    KubernetesPodName,
    /// Its uid.
    KubernetesPodUid,
    /// Its node.
    KubernetesNode,
    /// The OIDC provider, by the name that the control plane's configuration gives it.
    OidcProvider,
    /// The token's `iss`.
    OidcIssuer,
    /// The token's `sub`.
    OidcSubject,
    /// The bundle of roots, by the name that the control plane's configuration gives it.
    X509Ca,
    /// SHA-256 of the root that the path ends at, in hexadecimal.
    X509CaFingerprint,
    /// SHA-256 of the certificate.
    X509Fingerprint,
    /// Its subject, as a text.
    X509Subject,
    /// The common name of its subject.
    X509CommonName,
    /// A DNS name of it.
    X509Dns,
    /// A URI of it.
    X509Uri,
    /// The user of the process that connected, as a number.
    UnixUid,
    /// Its group.
    UnixGid,
    /// The path of its program.
    UnixPath,
    /// SHA-256 of its program, in hexadecimal.
    UnixSha256,
    /// Another claim: a text, a number or a truth; each item of a list of those.
    OidcClaim(String),
}

/// The facts with a fixed name: as it stands in selectors, as it stands in templates (without its attestor's), whose it is.
const NAMES: [(FactName, &str, &str, Attestor); 20] = [
    (FactName::KubernetesCluster, "cluster", "cluster", Attestor::Kubernetes),
    (FactName::KubernetesNamespace, "ns", "namespace", Attestor::Kubernetes),
    (FactName::KubernetesServiceAccount, "sa", "serviceAccount", Attestor::Kubernetes),
    (FactName::KubernetesPodName, "pod-name", "podName", Attestor::Kubernetes),
    (FactName::KubernetesPodUid, "pod-uid", "podUid", Attestor::Kubernetes),
    (FactName::KubernetesNode, "node-name", "node", Attestor::Kubernetes),
    (FactName::OidcProvider, "provider", "provider", Attestor::Oidc),
    (FactName::OidcIssuer, "iss", "issuer", Attestor::Oidc),
    (FactName::OidcSubject, "sub", "subject", Attestor::Oidc),
    (FactName::X509Ca, "ca", "ca", Attestor::X509Pop),
    (FactName::X509CaFingerprint, "ca-fingerprint", "caFingerprint", Attestor::X509Pop),
    (FactName::X509Fingerprint, "fingerprint", "fingerprint", Attestor::X509Pop),
    (FactName::X509Subject, "subject", "subject", Attestor::X509Pop),
    (FactName::X509CommonName, "cn", "commonName", Attestor::X509Pop),
    (FactName::X509Dns, "san-dns", "dnsName", Attestor::X509Pop),
    (FactName::X509Uri, "san-uri", "uri", Attestor::X509Pop),
    (FactName::UnixUid, "uid", "uid", Attestor::Unix),
    (FactName::UnixGid, "gid", "gid", Attestor::Unix),
    (FactName::UnixPath, "path", "path", Attestor::Unix),
    (FactName::UnixSha256, "sha256", "sha256", Attestor::Unix),
];
/// What stands before the name of a claim.
const CLAIM: &str = "claim";

impl FactName {
    /// Who finds it.
    pub fn attestor(&self) -> Attestor {
        self.row().map_or(Attestor::Oidc, |(_, _, _, attestor)| *attestor)
    }

    /// The variable of a template, without its braces: `k8s.namespace`, `oidc.claim.repository`.
    pub fn variable(&self) -> String {
        match self {
            Self::OidcClaim(name) => format!("oidc.{CLAIM}.{name}"),
            _ => self.row().map_or_else(String::new, |(_, _, variable, attestor)| {
                format!("{}.{variable}", attestor.selector())
            }),
        }
    }

    /// The fact that a template's variable stands for.
    pub fn of_variable(variable: &str) -> Option<Self> {
        let (attestor, name) = variable.split_once('.')?;
        if let Some(("", claim)) = name.strip_prefix(CLAIM).and_then(|rest| rest.split_once('.')) {
            return (attestor == "oidc" && !claim.is_empty()).then(|| Self::OidcClaim(claim.to_owned()));
        }
        let mut rows = NAMES.iter();
        rows.find(|row| row.3.selector() == attestor && row.2 == name).map(|row| row.0.clone())
    }

    /// All variables of templates; for a claim's name stands `NAME`.
    pub fn variables() -> impl Iterator<Item = String> {
        let named = NAMES.iter().map(|(name, ..)| name.variable());
        named.chain([Self::OidcClaim("NAME".to_owned()).variable()])
    }

    fn row(&self) -> Option<&'static (Self, &'static str, &'static str, Attestor)> {
        NAMES.iter().find(|row| row.0 == *self)
    }
}

impl fmt::Display for FactName {
    /// As a selector, without its value: `k8s:ns`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.row()) {
            (Self::OidcClaim(name), _) => write!(f, "oidc:{CLAIM}:{}", Shown(name)),
            (_, Some((_, name, _, attestor))) => write!(f, "{}:{name}", attestor.selector()),
            (_, None) => Ok(()),
        }
    }
}

/// One fact.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fact {
    /// Which.
    pub name: FactName,
    /// Its value: a text of a stranger's, in whatever characters.
    pub value: String,
}

impl Fact {
    /// Reads `k8s:ns:shop`, as a person writes it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let no_fact = || {
            let known: Vec<String> = NAMES.iter().map(|(name, ..)| format!("{name}:…")).collect();
            format!("{text:?} is no fact; write one of {}, oidc:{CLAIM}:NAME:…", known.join(", "))
        };
        let (attestor, rest) = text.split_once(':').ok_or_else(no_fact)?;
        let (name, value) = rest.split_once(':').ok_or_else(no_fact)?;
        if attestor == "oidc" && name == CLAIM {
            let (name, value) = value.split_once(':').ok_or_else(no_fact)?;
            return Ok(Self { name: FactName::OidcClaim(name.to_owned()), value: value.to_owned() });
        }
        let row = NAMES.iter().find(|row| row.3.selector() == attestor && row.1 == name);
        let row = row.ok_or_else(no_fact)?;
        Ok(Self { name: row.0.clone(), value: value.to_owned() })
    }
}

impl fmt::Display for Fact {
    /// As a selector, in printable ASCII without a space: `k8s:ns:shop`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, Shown(&self.value))
    }
}

/// What one attestor found. A name may have several values.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    attestor: Attestor,
    all: Vec<Fact>,
}

impl Facts {
    /// No fact yet.
    pub fn new(attestor: Attestor) -> Self {
        Self { attestor, all: Vec::new() }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, name: FactName, value: impl Into<String>) -> Self {
        self.all.push(Fact { name, value: value.into() });
        self
    }

    /// Who found them.
    pub fn attestor(&self) -> Attestor {
        self.attestor
    }

    /// The facts that a person tells; all must be of one attestor.
    pub fn told(facts: Vec<Fact>) -> Result<Self, String> {
        let first = facts.first().ok_or("no facts are told")?;
        let attestor = first.name.attestor();
        match facts.iter().find(|fact| fact.name.attestor() != attestor) {
            Some(other) => Err(format!("{first} and {other} are of two attestors; one proof has one")),
            None => Ok(Self { attestor, all: facts }),
        }
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Fact> {
        self.all.iter()
    }

    /// The values of one name.
    pub fn values<'f>(&'f self, name: &'f FactName) -> impl Iterator<Item = &'f str> {
        self.all.iter().filter(move |fact| fact.name == *name).map(|fact| fact.value.as_str())
    }

    /// The value of a name that has exactly one.
    pub fn only(&self, name: &FactName) -> Option<&str> {
        let mut all = self.all.iter().filter(|fact| fact.name == *name);
        let first = all.next()?;
        all.next().is_none().then_some(first.value.as_str())
    }
}

impl fmt::Display for Facts {
    /// Selectors, parted by spaces, in printable ASCII and at most [`MAX_SHOWN`] bytes: what is cut off ends in `...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CUT: &str = " ...";
        let mut text = String::new();
        for fact in &self.all {
            let before = text.len();
            let _ = write!(text, "{}{fact}", if before == 0 { "" } else { " " });
            if text.len() > MAX_SHOWN - CUT.len() {
                text.truncate(before);
                text.push_str(CUT);
                break;
            }
        }
        f.write_str(&text)
    }
}

/// A stranger's text in printable ASCII without a space, so that it can neither end a word nor steer a terminal.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut length = 0;
        for byte in self.0.bytes() {
            length += 1;
            if length > MAX_VALUE {
                return f.write_str("...");
            }
            match byte {
                b'!'..=b'~' if byte != b'%' => f.write_char(char::from(byte))?,
                _ => write!(f, "%{byte:02x}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_written_and_read() {
        for text in ["k8s:ns:shop", "k8s:sa:a:b", "oidc:sub:repo:acme/shop:ref", "oidc:claim:team:red"] {
            assert_eq!(Fact::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "k8s", "k8s:ns", "k8s:nss:shop", "unix:ns:shop", "oidc:claim:team"] {
            assert!(Fact::parse(text).unwrap_err().contains("k8s:ns"), "{text}");
        }
        for (name, ..) in &NAMES {
            assert_eq!(FactName::of_variable(&name.variable()).as_ref(), Some(name));
        }
        assert_eq!(FactName::of_variable("oidc.claim.team"), Some(FactName::OidcClaim("team".into())));
        for none in ["", "k8s", "k8s.ns", "oidc.claim", "oidc.claim.", "k8s.claim.x", "namespace"] {
            assert_eq!(FactName::of_variable(none), None, "{none}");
        }
        let two = [Fact::parse("k8s:ns:shop").unwrap(), Fact::parse("oidc:sub:x").unwrap()];
        assert!(Facts::told(two.to_vec()).unwrap_err().contains("two attestors"));
    }

    #[test]
    fn what_is_shown_is_bounded_and_plain() {
        let mut facts = Facts::new(Attestor::Oidc).with(FactName::OidcSubject, "a b\n\u{1b}[2J%ü");
        assert_eq!(facts.to_string(), "oidc:sub:a%20b%0a%1b[2J%25%c3%bc");
        for _ in 0..100 {
            facts = facts.with(FactName::OidcClaim("x".repeat(3_000)), "y".repeat(3_000));
        }
        let shown = facts.to_string();
        assert!(shown.len() <= MAX_SHOWN && shown.ends_with(" ..."), "{}", shown.len());
        assert!(shown.bytes().all(|b| (b' '..=b'~').contains(&b)));
    }
}
