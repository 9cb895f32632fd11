//! `kind: Registration`: documents that say which facts are granted which ids.
//!
//! They are written as policy documents are, and read by the same strict machinery. A directory is one set: one mistake refuses
//! the whole new set, because a registration that is skipped is an identity that somebody waits for.

mod document;
mod files;

use std::collections::BTreeMap;
use std::time::Duration;

use postern_ca::attest::{
    Clause, FactName, MAX_CLAUSES, MAX_REGISTRATIONS, Pattern, Registration, Registrations, Template,
};
use postern_ca::lineage::Attestor;
use postern_policy::yaml::{self, Piece, Spanned};
use postern_policy::{Diagnostic, Diagnostics, SourceFile};
use postern_svid::TrustDomain;

use document::{Document, From, List};
pub(crate) use files::read_bounded;
pub use files::read_directory;

/// The only version there is.
const API_VERSION: &str = "postern.dev/v1alpha1";
/// The only kind here.
const KIND: &str = "Registration";
/// The longest name; it stands in each record of the ledger that it grants.
const MAX_NAME: usize = 253;
/// Findings that are listed.
const LISTED: usize = 100;

/// What documents are checked under.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Whose ids are granted.
    pub trust_domain: TrustDomain,
    /// The names under `attestation`; `None` takes any, for a check without a configuration.
    pub names: Option<Names>,
    /// The shortest life of a certificate.
    pub least: Duration,
}

/// Names of who is believed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// Clusters.
    pub clusters: Vec<String>,
    /// OIDC providers.
    pub providers: Vec<String>,
    /// Bundles of roots for x509pop.
    pub roots: Vec<String>,
}

/// Checks a set of documents: all or nothing.
pub fn check(files: &[SourceFile], terms: &Terms) -> Result<Registrations, Diagnostics> {
    let mut set =
        Set { terms, all: Vec::new(), clauses: 0, names: BTreeMap::new(), found: Diagnostics::new() };
    for file in files {
        match yaml::pieces(file) {
            Ok(pieces) => pieces.iter().for_each(|piece| set.take(piece)),
            Err(found) => found.into_iter().for_each(|one| set.report(one)),
        }
        if set.found.len() >= LISTED {
            break;
        }
    }
    if set.found.is_empty() && set.all.is_empty() {
        set.report(Diagnostic::whole("", "the set holds no registrations").with_help(
            "they are read from files whose names end in .yaml or .yml; leave `registrations` out of the configuration to grant nothing",
        ));
    }
    if set.found.is_empty() { Ok(Registrations::new(set.all)) } else { Err(set.found) }
}

struct Set<'t> {
    terms: &'t Terms,
    all: Vec<Registration>,
    clauses: usize,
    /// Names that stand already, and where.
    names: BTreeMap<String, String>,
    found: Diagnostics,
}

impl Set<'_> {
    fn report(&mut self, found: Diagnostic) {
        if self.found.len() < LISTED {
            self.found.push(found);
        }
    }

    fn take(&mut self, piece: &Piece<'_>) {
        let document = match piece.parse::<Document>() {
            Ok(document) => document,
            Err(found) => return self.report(found),
        };
        let before = self.found.len();
        let registration = self.registration(piece, document);
        if let Some(registration) = registration
            && self.found.len() == before
        {
            self.clauses += registration.from.len();
            self.all.push(registration);
            let most = match () {
                () if self.all.len() > MAX_REGISTRATIONS => Some((MAX_REGISTRATIONS, "registrations")),
                () if self.clauses > MAX_CLAUSES => Some((MAX_CLAUSES, "clauses of `from`")),
                () => None,
            };
            if let Some((most, what)) = most {
                self.report(Diagnostic::whole("", format!("the set has more than {most} {what}")));
                self.all.pop();
            }
        }
    }

    fn registration(&mut self, piece: &Piece<'_>, document: Document) -> Option<Registration> {
        let Document { api_version, kind, metadata, spec } = document;
        if api_version.value != API_VERSION {
            let found = piece.at(&api_version, "unknown apiVersion");
            self.report(found.with_help(format!("write `{API_VERSION}`")));
        }
        if kind.value != KIND {
            let found = piece.at(&kind, "this directory is for registrations");
            self.report(found.with_help(yaml::suggest(&kind.value, &[KIND])));
        }
        self.name(piece, &metadata.name);
        let id = match Template::parse(&self.terms.trust_domain, &spec.id.value) {
            Ok(id) => Some(id),
            Err(bad) => {
                self.report(piece.at(&spec.id, bad.problem).with_help(bad.help));
                None
            }
        };
        if spec.from.value.is_empty() {
            let found = piece.at(&spec.from, "an empty `from` fits nobody");
            self.report(found.with_help("write at least one of k8s, oidc, x509pop, unix"));
        }
        let mut from = Vec::new();
        for one in &spec.from.value {
            let Some(clause) = self.clause(piece, one) else { continue };
            let foreign = id.iter().flat_map(Template::facts).find(|fact| fact.attestor() != clause.attestor);
            if let Some(fact) = foreign {
                let message = format!("the id holds {{{}}}, which these facts do not have", fact.variable());
                self.report(piece.at(one, message).with_help("write a registration of its own for this"));
            }
            from.push(clause);
        }
        let ttl = spec.ttl.as_ref().map(|ttl| ttl.value.0);
        if let Some(written) = &spec.ttl
            && (written.value.0 < self.terms.least || written.value.0.subsec_nanos() != 0)
        {
            let least = self.terms.least.as_secs();
            let message = format!("a certificate lives for whole seconds, and {least} s at least");
            self.report(piece.at(written, message).with_help("write a longer life, such as 15m"));
        }
        let place = piece.place(&metadata.name).to_string();
        Some(Registration { name: metadata.name.value, place, id: id?, from, ttl })
    }

    fn name(&mut self, piece: &Piece<'_>, name: &Spanned<String>) {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        let text = &name.value;
        if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(letter) {
            let found =
                piece.at(name, "a name has lower-case letters, digits, `-` and `.`, and at most 253 of them");
            return self.report(found.with_help("write a name such as shop-orders"));
        }
        let place = piece.place(name).to_string();
        if let Some(first) = self.names.insert(text.clone(), place) {
            let found = piece.at(name, format!("the name `{text}` stands twice, first at {first}"));
            self.report(found.with_help("the ledger names registrations: give each its own"));
        }
    }

    fn clause(&mut self, piece: &Piece<'_>, one: &Spanned<From>) -> Option<Clause> {
        let From { k8s, oidc, x509pop, unix } = &one.value;
        match (k8s, oidc, x509pop, unix) {
            (Some(k8s), None, None, None) => {
                let known = self.terms.names.as_ref().map(|names| names.clusters.clone());
                let cluster = self.known(piece, &k8s.cluster, known, "cluster", "attestation.kubernetes");
                let mut wants = vec![
                    (FactName::KubernetesCluster, vec![cluster?]),
                    (FactName::KubernetesNamespace, self.patterns(piece, &k8s.namespaces)),
                    (FactName::KubernetesServiceAccount, self.patterns(piece, &k8s.service_accounts)),
                ];
                if let Some(names) = &k8s.pod_names {
                    wants.push((FactName::KubernetesPodName, self.patterns(piece, names)));
                }
                if let Some(nodes) = &k8s.nodes {
                    wants.push((FactName::KubernetesNode, self.patterns(piece, nodes)));
                }
                Some(Clause { attestor: Attestor::Kubernetes, wants })
            }
            (None, Some(oidc), None, None) => {
                let known = self.terms.names.as_ref().map(|names| names.providers.clone());
                let provider = self.known(piece, &oidc.provider, known, "provider", "attestation.oidc");
                let mut wants = vec![(FactName::OidcProvider, vec![provider?])];
                if let Some(subjects) = &oidc.subjects {
                    wants.push((FactName::OidcSubject, self.patterns(piece, subjects)));
                }
                for (name, values) in oidc.claims.iter().flatten() {
                    wants.push((FactName::OidcClaim(name.clone()), self.patterns(piece, values)));
                }
                if wants.len() == 1 {
                    let found = piece.at(one, "whoever has a token of this provider would fit");
                    self.report(found.with_help("say whose tokens: `subjects`, `claims` or both"));
                }
                Some(Clause { attestor: Attestor::Oidc, wants })
            }
            (None, None, Some(machine), None) => {
                let known = self.terms.names.as_ref().map(|names| names.roots.clone());
                let ca = self.known(piece, &machine.ca, known, "bundle of roots", "attestation.x509pop");
                let mut wants = vec![(FactName::X509Ca, vec![ca?])];
                for (name, list) in [
                    (FactName::X509CommonName, &machine.common_names),
                    (FactName::X509Subject, &machine.subjects),
                    (FactName::X509Dns, &machine.dns_names),
                    (FactName::X509Uri, &machine.uris),
                    (FactName::X509Fingerprint, &machine.fingerprints),
                ] {
                    if let Some(list) = list {
                        wants.push((name, self.patterns(piece, list)));
                    }
                }
                if wants.len() == 1 {
                    let found = piece.at(one, "whoever has a certificate of this CA would fit");
                    self.report(found.with_help(
                        "say whose: commonNames, subjects, dnsNames, uris or fingerprints; [\"*\"] for any",
                    ));
                }
                Some(Clause { attestor: Attestor::X509Pop, wants })
            }
            (None, None, None, Some(process)) => {
                let numbers = |list: &Spanned<Vec<u32>>| {
                    list.value.iter().map(|number| Pattern::Is(number.to_string())).collect::<Vec<_>>()
                };
                let mut wants = vec![(FactName::UnixUid, numbers(&process.uids))];
                if let Some(gids) = &process.gids {
                    wants.push((FactName::UnixGid, numbers(gids)));
                }
                for (name, list) in
                    [(FactName::UnixPath, &process.paths), (FactName::UnixSha256, &process.sha256)]
                {
                    if let Some(list) = list {
                        wants.push((name, self.patterns(piece, list)));
                    }
                }
                for list in [Some(&process.uids), process.gids.as_ref()].into_iter().flatten() {
                    if list.value.is_empty() {
                        let found = piece.at(list, "an empty list fits nothing");
                        self.report(found.with_help("write numbers, such as [1000]"));
                    }
                }
                Some(Clause { attestor: Attestor::Unix, wants })
            }
            _ => {
                let found = piece.at(one, "each item of `from` is of one attestor");
                self.report(
                    found.with_help("write one of k8s, oidc, x509pop, unix; several items for several"),
                );
                None
            }
        }
    }

    /// A name that the configuration gives to somebody who is believed.
    fn known(
        &mut self,
        piece: &Piece<'_>,
        name: &Spanned<String>,
        known: Option<Vec<String>>,
        what: &str,
        field: &str,
    ) -> Option<Pattern> {
        if let Some(known) = known
            && !known.contains(&name.value)
        {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let message = format!("no {what} of this name stands under `{field}` of the configuration");
            let help = match known[..] {
                [] => "add it there".to_owned(),
                _ => yaml::suggest(&name.value, &known),
            };
            self.report(piece.at(name, message).with_help(help));
            return None;
        }
        Some(Pattern::Is(name.value.clone()))
    }

    fn patterns(&mut self, piece: &Piece<'_>, list: &List) -> Vec<Pattern> {
        if list.value.is_empty() {
            let found = piece.at(list, "an empty list fits nothing");
            self.report(found.with_help("name what fits, or write [\"*\"] for whatever there is"));
        }
        let mut out = Vec::with_capacity(list.value.len());
        for item in &list.value {
            match Pattern::parse(&item.value) {
                Ok(pattern) => out.push(pattern),
                Err(why) => {
                    let found = piece.at(item, why);
                    self.report(found.with_help("write the whole text, or its beginning and `*`"));
                }
            }
        }
        out
    }
}

#[cfg(test)]
#[path = "registrations/tests.rs"]
mod tests;
