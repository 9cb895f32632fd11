//! From files to a generation, or to all mistakes in them.

mod document;

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use postern_svid::{SpiffeId, TrustDomain};

use crate::check::{self, Page, Policy, Rules, Settled};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, SourceFile};
use crate::engine::Engine;
use crate::generation::Generation;
use crate::norm::{EscapedSlashes, PathOptions};
use crate::rule::{OwnDomains, PathsJudged, Rule};
use crate::services::{Service, Services};
use crate::text::Text;
use crate::verdict::{Action, Defaults, DocumentSummary, Enforcement, RuleName, Scope};
use crate::yaml;

use document::{Body, Parsed, body, pieces};

/// A set of documents is read and compiled within a second or so on a small machine, and held twice while it is
/// replaced. These bounds keep it there; the largest set in `policy check`'s own figures has a tenth of them.
const MAX_FILES: usize = 4_096;
const MAX_BYTES: usize = 24 * 1024 * 1024;
const MAX_DOCUMENTS: usize = 25_000;
const MAX_RULES: usize = 100_000;
/// From here on a decision takes tens of microseconds, which an operator should know.
const MANY_CANDIDATES: usize = 1_000;

/// Checks a set of documents and compiles what concerns the scope's workload. All or nothing: one mistake anywhere
/// refuses the set, because a rule that is skipped is a rule that does not deny.
pub fn load(files: &[SourceFile], scope: &Scope, number: u64) -> Result<Generation, Diagnostics> {
    bounds(files)?;
    let mut reader = Reader::default();
    for file in files {
        reader.read(file);
        if reader.errors.is_full() {
            let mut errors = reader.errors.finished();
            errors.note(Diagnostic::whole("", "the rest of the set was not read: mend these first"));
            return Err(errors);
        }
    }
    if reader.documents.is_empty() && reader.errors.is_empty() {
        reader.errors.push(no_documents());
    }
    reader.check_set(scope);
    let settled = reader.settle(scope);
    let domains = OwnDomains { canonical: scope.trust_domain.clone(), aliases: settled.aliases.clone() };
    let widest = reader.widest(settled.slashes);
    let rules =
        Rules { root_namespace: &scope.root_namespace, domains: &domains, slashes: settled.slashes, widest };
    let (policies, services) = reader.check(&rules);
    let count: usize = policies.iter().map(|(_, policy)| policy.rules.len()).sum();
    if count > MAX_RULES {
        reader
            .errors
            .push(Diagnostic::whole("", format!("the set has {count} rules; at most {MAX_RULES} are taken")));
    }
    if !reader.errors.is_empty() {
        return Err(reader.errors.finished());
    }
    let documents = reader.summaries(scope, &policies);
    let mut warnings = reader.warnings;
    let (names, applied) = applying(scope, policies);
    let ports_named = ports_named(&applied);
    let headers_named = headers_named(&applied);
    let paths_judged = PathsJudged::by(&applied);
    let engine = Engine::new(applied, domains, number);
    let worst = engine.worst_list();
    if worst > MANY_CANDIDATES {
        let message =
            format!("a request can make the engine look at {worst} rules that share all their keys");
        warnings.push(
            Diagnostic::whole("", message).with_help("join rules that differ in methods only").warning(),
        );
    }
    Ok(Generation {
        number,
        services: Services::new(services),
        defaults: Defaults {
            path: PathOptions { escaped_slashes: settled.slashes, ..PathOptions::default() },
            on_change: settled.on_change,
            aliases: settled.aliases,
        },
        documents,
        warnings: warnings.finished(),
        ports_named,
        headers_named,
        paths_judged,
        nameable: widest,
        names,
        engine,
    })
}

/// The trust domain that a set of documents speaks of: MeshDefaults' canonical one, else that of the first service's
/// identity. For checks without a mesh; nothing is decided by it.
pub fn trust_domain_of(files: &[SourceFile]) -> Option<TrustDomain> {
    bounds(files).ok()?;
    let mut reader = Reader::default();
    for file in files {
        reader.read(file);
    }
    let canonical = reader.documents.iter().find_map(|document| match &document.body {
        Body::Defaults(defaults) => defaults.spec.value.trust_domains.as_ref()?.value.canonical.as_ref(),
        _ => None,
    });
    let identity = reader.documents.iter().find_map(|document| match &document.body {
        Body::Service(service) => service.spec.value.identity.as_ref(),
        _ => None,
    });
    match canonical {
        Some(name) => TrustDomain::parse(&name.value).ok(),
        None => SpiffeId::parse(&identity?.value).ok().map(|id| id.trust_domain()),
    }
}

/// An empty set is what a wrong mount or an unfinished copy looks like: taken for good, it would take everything away.
fn no_documents() -> Diagnostic {
    Diagnostic::whole("", "the set holds no documents").with_help(
        "documents are read from files whose names end in .yaml or .yml; to deny everything on purpose, keep one that \
         allows nothing, such as MeshDefaults",
    )
}

fn bounds(files: &[SourceFile]) -> Result<(), Diagnostic> {
    if files.len() > MAX_FILES {
        return Err(Diagnostic::whole("", format!("{} files; at most {MAX_FILES} are taken", files.len())));
    }
    let bytes: usize = files.iter().map(|file| file.text.len()).sum();
    if bytes > MAX_BYTES {
        return Err(Diagnostic::whole("", format!("the set is larger than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(())
}

/// The rules that concern the workload, with their names: tier by tier, and within one in the order of the set.
fn applying(scope: &Scope, policies: Vec<(usize, Policy)>) -> (Vec<RuleName>, Vec<Rule>) {
    let Some(workload) = &scope.workload else { return (Vec::new(), Vec::new()) };
    let applying = policies.into_iter().filter(|(_, policy)| policy.applies_to(workload));
    let mut rules: Vec<(RuleName, Rule)> = applying.flat_map(|(_, policy)| policy.rules).collect();
    rules.sort_by_key(|(_, rule)| rule.tier);
    rules.into_iter().unzip()
}

fn ports_named(rules: &[Rule]) -> BTreeSet<u16> {
    let allows =
        rules.iter().filter(|rule| rule.action == Action::Allow && rule.enforcement == Enforcement::Enforce);
    allows
        .flat_map(|rule| {
            let target = rule.target_ports.iter().flatten();
            let to = rule.to.iter().flatten().flat_map(|to| to.ports.iter().flatten());
            target.chain(to).copied()
        })
        .collect()
}

fn headers_named(rules: &[Rule]) -> Vec<Box<str>> {
    let targets = rules.iter().flat_map(|rule| rule.to.iter().flatten());
    let names: BTreeSet<Box<str>> =
        targets.flat_map(|target| target.headers.iter().map(|header| header.name.clone())).collect();
    names.into_iter().collect()
}

#[derive(Default)]
struct Reader<'a> {
    documents: Vec<Parsed<'a>>,
    errors: Diagnostics,
    warnings: Diagnostics,
}

impl<'a> Reader<'a> {
    fn read(&mut self, file: &'a SourceFile) {
        let text = match yaml::text_of(file) {
            Ok(text) => text,
            Err(error) => return self.errors.push(error),
        };
        let text = Rc::new(Text::new(file, text));
        for (first_line, piece) in pieces(text.text) {
            if self.documents.len() >= MAX_DOCUMENTS || self.errors.is_full() {
                let message = format!("at most {MAX_DOCUMENTS} documents are taken");
                return if self.errors.is_empty() {
                    self.errors.push(Diagnostic::whole(&file.name, message));
                };
            }
            match body(&text, piece, first_line) {
                Ok(body) => self.documents.push(Parsed { text: Rc::clone(&text), first_line, body }),
                Err(error) => self.errors.push(error),
            }
        }
    }

    /// Mistakes that no single document shows.
    fn check_set(&mut self, scope: &Scope) {
        let mut seen: HashMap<(&str, &str, &str), Place> = HashMap::new();
        let mut first_defaults: Option<Place> = None;
        let mut errors = Diagnostics::new();
        for document in &self.documents {
            let metadata = document.body.metadata();
            let (namespace, name) = (metadata.namespace.value.as_str(), metadata.name.value.as_str());
            let mut page = document.page();
            if let Some(earlier) = seen.get(&(document.body.kind(), namespace, name)) {
                page.error_with(
                    metadata.name.referenced,
                    format!(
                        "{} {}/{} exists twice",
                        document.body.kind(),
                        yaml::printable(namespace),
                        yaml::printable(name)
                    ),
                    format!("the first stands at {earlier}"),
                );
            } else {
                seen.insert((document.body.kind(), namespace, name), document.place());
                if let Body::Defaults(_) = document.body {
                    match &first_defaults {
                        Some(earlier) if namespace == scope.root_namespace => page.error_with(
                            metadata.name.referenced,
                            "MeshDefaults exist once in a mesh",
                            format!("the first stand at {earlier}"),
                        ),
                        _ => first_defaults = Some(document.place()),
                    }
                }
            }
            errors.extend(page.errors);
        }
        self.errors.extend(errors);
    }

    /// Defaults come first: other documents are read in their light.
    fn settle(&mut self, scope: &Scope) -> Settled {
        let mut settled = Settled::default();
        let mut errors = Diagnostics::new();
        for document in &self.documents {
            if let Body::Defaults(body) = &document.body {
                let mut page = document.page();
                settled = check::defaults(&mut page, body, &scope.root_namespace, &scope.trust_domain);
                errors.extend(page.errors);
            }
        }
        self.errors.extend(errors);
        settled
    }

    /// Of the default and what Services' ports say, the mode that lets rules name most paths: a rule may speak of any
    /// port's, and which ports of a workload a Service leads to is its owner's to change.
    fn widest(&self, default: EscapedSlashes) -> EscapedSlashes {
        let services = self.documents.iter().filter_map(|document| match &document.body {
            Body::Service(service) => Some(&service.spec.value.ports.value),
            _ => None,
        });
        let words = services.flatten().filter_map(|port| port.value.escaped_slashes.as_ref());
        words.filter_map(|word| EscapedSlashes::parse(&word.value)).fold(default, Ord::max)
    }

    /// Policies with the index of their document, and services.
    fn check(&mut self, rules: &Rules<'_>) -> (Vec<(usize, Policy)>, Vec<Service>) {
        let mut policies = Vec::new();
        let mut services = Vec::new();
        for (at, document) in self.documents.iter().enumerate() {
            let mut page = document.page();
            match &document.body {
                Body::Access(body) => policies.push((at, check::policy(&mut page, body, rules))),
                Body::Service(body) => services.push(check::service(&mut page, body, rules)),
                Body::Defaults(_) => {}
            }
            let Page { text: _, first_line: _, errors, warnings } = page;
            self.errors.extend(errors);
            self.warnings.extend(warnings);
        }
        (policies, services)
    }

    fn summaries(&self, scope: &Scope, policies: &[(usize, Policy)]) -> Vec<DocumentSummary> {
        let policies: HashMap<usize, &Policy> = policies.iter().map(|(at, policy)| (*at, policy)).collect();
        let summary = |(at, document): (usize, &Parsed<'_>)| {
            let metadata = document.body.metadata();
            let policy = policies.get(&at);
            DocumentSummary {
                kind: document.body.kind(),
                namespace: metadata.namespace.value.as_str().into(),
                name: metadata.name.value.as_str().into(),
                place: document.place(),
                rules: policy.map_or(0, |policy| policy.rules.len()),
                applies: match (policy, &scope.workload) {
                    (Some(policy), Some(workload)) => policy.applies_to(workload),
                    (Some(_), None) => false,
                    (None, _) => true,
                },
            }
        };
        self.documents.iter().enumerate().map(summary).collect()
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
