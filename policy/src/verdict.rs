//! The words in which questions and answers are put.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use postern_svid::{SpiffeId, TrustDomain};
use serde::Serialize;

use crate::break_glass::BreakGlass;
use crate::diagnostic::Place;
use crate::fields::HeaderLines;
use crate::issuers::Jwt;
use crate::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use crate::tokens::Tokens;
use crate::upgrade::Upgrade;

/// For whom documents are loaded.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// The namespace whose documents may speak for the whole mesh.
    pub root_namespace: String,
    /// The workload that the generation decides for. `None` checks documents without one: no rule applies then, and
    /// every question is denied.
    pub workload: Option<Workload>,
}

/// A workload, as the operator's configuration or the control plane describes it; never as a peer does.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What [`MeshDefaults`](crate::load) settles for this workload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Defaults {
    /// How paths are read.
    pub path: PathOptions,
    /// What happens to live things that lost permission.
    pub on_change: OnChange,
    /// Trust domains whose namespaces and service accounts count as the mesh's own.
    pub aliases: Vec<TrustDomain>,
    /// Who issues tokens.
    pub jwt: Jwt,
    /// How long nobody could read a good set before this one decides no more, and everything is denied. `None`: it
    /// decides for ever.
    pub stale_after: Option<std::time::Duration>,
}

/// What happens to live things that lost permission: TCP connections close and streams are reset, after a grace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OnChange {
    /// How long they may still run.
    pub grace: std::time::Duration,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The proven id; `None` for a peer that proved nothing.
    pub identity: Option<&'a SpiffeId>,
    /// The address; an IPv4 address in IPv6 clothes counts as IPv4.
    pub address: IpAddr,
}

/// What a stream wants to do.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// An HTTP request.
    Http {
        /// Its method, as the workload sees it (GET for a WebSocket, whichever way it came).
        method: &'a CanonMethod,
        /// Its path.
        path: &'a CanonPath,
        /// Whom it is addressed to. `None`: not known.
        host: Option<&'a CanonHost>,
        /// Its header fields. `None`: not known.
        headers: Option<&'a dyn HeaderLines>,
        /// What it wants to turn into.
        upgrade: Option<&'a Upgrade>,
        /// Whose tokens it carries.
        tokens: Tokens<'a>,
    },
    /// Opaque bytes: nothing about layer 7 will ever be known.
    Tcp,
    /// Opaque bytes that begin with a TLS handshake which has been read: nothing but its server name will ever be known.
    Tls {
        /// The server name that the client asks for (SNI, RFC 6066, 3). `None`: it asks for none.
        sni: Option<&'a CanonHost>,
    },
}

impl<'a> Operation<'a> {
    /// An HTTP request without tokens of which neither host nor header fields are known, and which does not turn into
    /// anything.
    pub const fn http(method: &'a CanonMethod, path: &'a CanonPath) -> Self {
        Self::Http { method, path, host: None, headers: None, upgrade: None, tokens: Tokens::Absent }
    }

    /// Whether not even a TLS handshake was read.
    pub(crate) const fn is_unread(self) -> bool {
        matches!(self, Self::Tcp)
    }

    /// The ways in which the path can be read; one without a path for opaque bytes.
    pub(crate) fn views(self) -> Vec<Option<&'a str>> {
        match self {
            Self::Http { path, .. } => path.views().map(Some).collect(),
            Self::Tcp | Self::Tls { .. } => vec![None],
        }
    }
}

/// A rule's number within its generation: lower numbers are asked first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct RuleId(pub(crate) u32);

impl RuleId {
    /// Its place among the rules of its generation.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a policy does with what it matches.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
pub enum Action {
    /// It is allowed, unless a Deny of its tier or anything of a higher tier matches too.
    Allow,
    /// It is denied.
    Deny,
    /// It is marked in the decision log, and otherwise nothing.
    Audit,
}

impl Action {
    /// Its word in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }

    /// Whether a rule of this action covers all that it does not leave out, the unknown included. An Allow is read the
    /// other way: it covers only what it certainly means.
    pub(crate) fn is_wide(self) -> bool {
        match self {
            Self::Allow => false,
            Self::Deny | Self::Audit => true,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
            Self::Audit => "Audit",
        })
    }
}

/// Whose word comes first. The first tier in which a rule matches decides; within a tier any Deny wins over any Allow.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Tier {
    /// The platform's own documents, which nobody overrides. They stand in the root namespace.
    Platform,
    /// Everybody's.
    #[default]
    App,
    /// What holds where nobody has said anything.
    Baseline,
}

impl Tier {
    /// All of them, first to last.
    pub(crate) const ALL: [Self; 3] = [Self::Platform, Self::App, Self::Baseline];
}

/// Whether rules are obeyed or only tried.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize)]
pub enum Enforcement {
    /// They are obeyed.
    #[default]
    Enforce,
    /// What they would change is logged and counted, and nothing changes.
    Shadow,
}

/// A rule's name and place.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RuleName {
    /// The document's namespace.
    pub namespace: Box<str>,
    /// The document's name.
    pub document: Box<str>,
    /// The rule's name within it.
    pub rule: Box<str>,
    /// What it does.
    pub action: Action,
    /// Whose word it is.
    pub tier: Tier,
    /// Whether it is obeyed.
    pub enforcement: Enforcement,
    /// Where it stands.
    pub place: Place,
}

impl fmt::Display for RuleName {
    /// `namespace/document/rule`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.document, self.rule)
    }
}

/// The answer about one stream.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Whether it may go on.
    pub effect: Effect,
    /// The rule that decided; none if nothing matched.
    pub rule: Option<RuleId>,
    /// What shadow rules would change: the answer if they were obeyed, where one of them would decide.
    pub shadow: Option<Would>,
    /// The first Audit rule that matches.
    pub audit: Option<RuleId>,
    /// The number of the generation that answered.
    pub generation: u64,
}

/// An answer that a shadow rule would give.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Would {
    /// Whether it would be allowed.
    pub effect: Effect,
    /// The shadow rule. None if a call out would be denied only because a shadow EgressPolicy selects the workload.
    pub rule: Option<RuleId>,
}

impl Verdict {
    /// Whether the stream may go on.
    pub fn is_allowed(&self) -> bool {
        match self.effect {
            Effect::Allow => true,
            Effect::Deny(_) => false,
        }
    }
}

/// Allow or deny.
// No `Default` and no `From<bool>`: an answer is never made by accident.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// It may go on.
    Allow,
    /// It may not.
    Deny(DenyReason),
}

/// Why something is denied.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum DenyReason {
    /// No Allow rule matches: the default.
    NoRule,
    /// A Deny rule matches.
    Rule,
    /// Outside of the mesh nobody is called at this address, whatever rules say.
    Address,
    /// The connection was resolved by another generation; resolve it again and ask again.
    StaleContext,
}

impl DenyReason {
    /// A short label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoRule => "no_rule",
            Self::Rule => "rule",
            Self::Address => "address",
            Self::StaleContext => "stale_context",
        }
    }
}

/// What is certain about every stream of a connection: the whole verdict, the rule that it names included.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Every stream will be allowed, by this rule.
    Allow(Verdict),
    /// Every stream will be denied, by this rule or for want of any.
    Deny(Verdict),
    /// It depends on the stream.
    Defer,
}

/// A document of the set, for people who look at a running sidecar.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DocumentSummary {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Where it stands.
    pub place: Place,
    /// Rules in it; 0 for kinds without rules.
    pub rules: usize,
    /// Whether it concerns this workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applies: Option<bool>,
    /// Whether it breaks the glass, and for how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub break_glass: Option<BreakGlass>,
}
