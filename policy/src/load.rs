//! From files to a generation, or to all mistakes in them.

mod document;

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use postern_svid::{SpiffeId, TrustDomain};

use crate::check::{self, Page, Policy, Rules, Settled, Test};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, SourceFile};
use crate::engine::Engine;
use crate::generation::Generation;
use crate::norm::{EscapedSlashes, PathOptions};
use crate::rule::{OwnDomains, PortsJudged, Rule};
use crate::services::{Service, Services};
use crate::text::Text;
use crate::verdict::{Action, Defaults, DocumentSummary, Enforcement, RuleName, Scope, Workload};
use crate::yaml;

use document::{Body, Parsed, body, pieces};

/// A set of documents is read and compiled within a second or so on a small machine, and held twice while it is
/// replaced. These bounds keep it there; the largest set in `policy check`'s own figures has a tenth of them.
const MAX_FILES: usize = 4_096;
const MAX_BYTES: usize = 24 * 1024 * 1024;
const MAX_DOCUMENTS: usize = 25_000;
const MAX_RULES: usize = 100_000;
const MAX_CASES: usize = 50_000;
/// From here on a decision takes tens of microseconds, which an operator should know.
const MANY_CANDIDATES: usize = 1_000;

/// Checks a set of documents and compiles what concerns the scope's workload. All or nothing: one mistake anywhere
/// refuses the set, because a rule that is skipped is a rule that does not deny.
pub fn load(files: &[SourceFile], scope: &Scope, number: u64) -> Result<Generation, Diagnostics> {
    let checked = checked(files, scope)?;
    let mut generation = match &scope.workload {
        Some(workload) => checked.compiled(workload, number),
        None => checked.assembled((Vec::new(), Vec::new()), number),
    };
    let Checked { services, documents, mut warnings, misnamed, .. } = checked;
    // A test that has been left behind by its rules is no reason to keep new rules out of the mesh.
    for finding in misnamed {
        warnings.push(finding.warning());
    }
    let worst = generation.engine.worst_list();
    if worst > MANY_CANDIDATES {
        let message =
            format!("a request can make the engine look at {worst} rules that share all their keys");
        warnings.push(
            Diagnostic::whole("", message).with_help("join rules that differ in methods only").warning(),
        );
    }
    generation.services = Services::new(services);
    generation.documents = documents;
    generation.warnings = warnings.finished();
    Ok(generation)
}

/// A set without mistakes.
pub(crate) struct Checked {
    /// With the index of their document.
    policies: Vec<(usize, Policy)>,
    services: Vec<Service>,
    pub(crate) tests: Vec<Test>,
    /// Tests that name rules that are not there.
    pub(crate) misnamed: Diagnostics,
    documents: Vec<DocumentSummary>,
    warnings: Diagnostics,
    settled: Settled,
    domains: OwnDomains,
    widest: EscapedSlashes,
}

impl Checked {
    /// The names of all rules, whomever they concern.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &RuleName> {
        self.policies.iter().flat_map(|(_, policy)| policy.rules.iter().map(|(name, _)| name))
    }

    /// What concerns a workload, without services and documents: it decides and explains.
    pub(crate) fn compiled(&self, workload: &Workload, number: u64) -> Generation {
        self.assembled(applying(workload, &self.policies), number)
    }

    fn assembled(&self, (names, applied): (Vec<RuleName>, Vec<Rule>), number: u64) -> Generation {
        Generation {
            number,
            services: Services::new(Vec::new()),
            defaults: Defaults {
                path: PathOptions { escaped_slashes: self.settled.slashes, ..PathOptions::default() },
                on_change: self.settled.on_change,
                aliases: self.settled.aliases.clone(),
            },
            documents: Vec::new(),
            warnings: Diagnostics::new(),
            ports_named: ports_named(&applied),
            headers_named: headers_named(&applied),
            paths_judged: PortsJudged::by_path(&applied),
            sni_judged: PortsJudged::by_sni(&applied),
            nameable: self.widest,
            names,
            engine: Engine::new(applied, self.domains.clone(), number),
        }
    }
}

/// Reads and checks a set, for whatever workload.
pub(crate) fn checked(files: &[SourceFile], scope: &Scope) -> Result<Checked, Diagnostics> {
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
    let Bodies { policies, services, tests } = reader.check(&rules);
    let most = |errors: &mut Diagnostics, count: usize, what: &str, most: usize| {
        if count > most {
            errors
                .push(Diagnostic::whole("", format!("the set has {count} {what}; at most {most} are taken")));
        }
    };
    let count: usize = policies.iter().map(|(_, policy)| policy.rules.len()).sum();
    most(&mut reader.errors, count, "rules", MAX_RULES);
    let count: usize = tests.iter().map(|(_, test)| test.cases.len()).sum();
    most(&mut reader.errors, count, "cases of tests", MAX_CASES);
    if !reader.errors.is_empty() {
        return Err(reader.errors.finished());
    }
    let documents = reader.summaries(scope, &policies);
    let misnamed = reader.misnamed(&policies, &tests);
    let tests = tests.into_iter().map(|(_, test)| test).collect();
    let warnings = reader.warnings;
    Ok(Checked { policies, services, tests, misnamed, documents, warnings, settled, domains, widest })
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
fn applying(workload: &Workload, policies: &[(usize, Policy)]) -> (Vec<RuleName>, Vec<Rule>) {
    let applying = policies.iter().filter(|(_, policy)| policy.applies_to(workload));
    let mut rules: Vec<(RuleName, Rule)> =
        applying.flat_map(|(_, policy)| policy.rules.iter().cloned()).collect();
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

/// Checked documents, with the index of each.
#[derive(Default)]
struct Bodies {
    policies: Vec<(usize, Policy)>,
    services: Vec<Service>,
    tests: Vec<(usize, Test)>,
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
        // Cut short, or written by something that failed: what stood in it is gone, and nobody said so.
        if text.trim().is_empty() {
            return self.errors.push(
                Diagnostic::whole(&file.name, "the file is empty")
                    .with_help("remove it, or leave a comment in it if it is meant to hold nothing"),
            );
        }
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

    fn check(&mut self, rules: &Rules<'_>) -> Bodies {
        let Bodies { mut policies, mut services, mut tests } = Bodies::default();
        for (at, document) in self.documents.iter().enumerate() {
            let mut page = document.page();
            match &document.body {
                Body::Access(body) => policies.push((at, check::policy(&mut page, body, rules))),
                Body::Service(body) => services.push(check::service(&mut page, body, rules)),
                Body::Test(body) => tests.push((at, check::policy_test(&mut page, body, rules))),
                Body::Defaults(_) => {}
            }
            let Page { text: _, first_line: _, errors, warnings } = page;
            self.errors.extend(errors);
            self.warnings.extend(warnings);
        }
        Bodies { policies, services, tests }
    }

    /// Names in tests that no rule has.
    fn misnamed(&self, policies: &[(usize, Policy)], tests: &[(usize, Test)]) -> Diagnostics {
        let mut found = Diagnostics::new();
        if tests.is_empty() {
            return found;
        }
        let rules = policies.iter().flat_map(|(_, policy)| policy.rules.iter().map(|(name, _)| name));
        let rules: HashMap<String, &RuleName> = rules.map(|name| (name.to_string(), name)).collect();
        for (at, test) in tests {
            let Some(document) = self.documents.get(*at) else { continue };
            let mut page = document.page();
            check::names_of_rules(&mut page, test, &rules);
            found.extend(page.errors);
        }
        found.finished()
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
                    // A test is about a workload of its own choice, and about nobody's traffic.
                    _ if matches!(document.body, Body::Test(_)) => Some(false),
                    (Some(policy), Some(workload)) => Some(policy.applies_to(workload)),
                    (Some(_), None) => None,
                    (None, _) => Some(true),
                },
            }
        };
        self.documents.iter().enumerate().map(summary).collect()
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
