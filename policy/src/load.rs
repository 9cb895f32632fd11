//! From files to a generation, or to all mistakes in them.

mod addresses;
pub(crate) mod crowds;
pub(crate) mod document;
mod egress;
mod file;
mod hosts;
mod issuers;
mod loader;
mod parallel;
mod ports;
mod set;

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use postern_svid::{SpiffeId, TrustDomain};

use crate::check::issuers::MAX_ISSUERS;
use crate::check::{EgressPolicy, LimitPolicy, Policy, Rules, Settled, Test};
use crate::diagnostic::{Diagnostic, Diagnostics, SourceFile};
use crate::egress::EgressRule;
use crate::engine::Engine;
use crate::engine::egress::Egress;
use crate::generation::Generation;
use crate::issuers::{Issuer, Jwt};
use crate::istio::{self, RequestPolicy};
use crate::limits::{self, LimitRule, Limits};
use crate::norm::{EscapedSlashes, PathOptions};
use crate::rule::{OwnDomains, PortsJudged, Rule};
use crate::services::Services;
use crate::verdict::{Action, Defaults, DocumentSummary, Enforcement, RuleName, Scope, Workload};

use document::Body;
use file::{CheckedFile, ReadFile};
pub use loader::Loader;
use set::Set;

/// A set of documents is read and compiled within a second or so on a small machine, and held twice while it is
/// replaced. These bounds keep it there; the largest set in `policy check`'s own figures has a tenth of them.
const MAX_FILES: usize = 4_096;
const MAX_BYTES: usize = 24 * 1024 * 1024;
const MAX_DOCUMENTS: usize = 25_000;
const MAX_RULES: usize = 100_000;
const MAX_CASES: usize = 50_000;
const MAX_INVARIANTS: usize = 5_000;

/// Checks a set of documents and compiles what concerns the scope's workload. All or nothing: one mistake anywhere
/// refuses the set, because a rule that is skipped is a rule that does not deny. Who loads one set after the other has a
/// [`Loader`].
pub fn load(files: &[SourceFile], scope: &Scope, number: u64) -> Result<Generation, Diagnostics> {
    Ok(assemble(checked(files, scope)?, scope, number))
}

fn assemble(checked: Checked, scope: &Scope, number: u64) -> Generation {
    let mut generation = match &scope.workload {
        Some(workload) => checked.compiled(workload, number),
        None => checked.assembled(Applied::default(), number),
    };
    let Checked { documents, mut warnings, misnamed, policies, implied, .. } = checked;
    // A test that has been left behind by its rules is no reason to keep new rules out of the mesh.
    for finding in misnamed {
        warnings.push(finding.warning());
    }
    // For a workload they are looked for when somebody asks: that must not keep new rules from being obeyed.
    if scope.workload.is_none() {
        for crowd in crowds::of_set(&policies, &implied) {
            warnings.push(crowd);
        }
    }
    generation.keep_documents(documents);
    generation.warnings = warnings;
    generation
}

/// Everything that the documents of a set are checked under.
#[derive(Debug, PartialEq)]
pub(crate) struct Terms {
    root_namespace: String,
    domains: OwnDomains,
    slashes: EscapedSlashes,
    widest: EscapedSlashes,
    issuers: Arc<[Issuer]>,
    request_issuers: Arc<[Box<str>]>,
}

impl Terms {
    /// The only place where checks get their terms: what is not here cannot be looked at by them, so what was checked
    /// under equal terms is the same.
    fn rules(&self) -> Rules<'_> {
        let Self { root_namespace, domains, slashes, widest, issuers, request_issuers } = self;
        Rules { root_namespace, domains, slashes: *slashes, widest: *widest, issuers, request_issuers }
    }
}

/// A set without mistakes.
pub(crate) struct Checked {
    policies: Vec<Arc<Policy>>,
    /// What Istio's namespaces mean without saying it.
    implied: Vec<Policy>,
    limits: Vec<Arc<LimitPolicy>>,
    egress: Vec<Arc<EgressPolicy>>,
    requests: Vec<Arc<RequestPolicy>>,
    services: Arc<Services>,
    pub(crate) tests: Vec<Arc<Test>>,
    /// Tests that name rules that are not there.
    pub(crate) misnamed: Diagnostics,
    documents: Vec<DocumentSummary>,
    warnings: Diagnostics,
    settled: Settled,
    terms: Arc<Terms>,
}

impl Checked {
    /// All policies that are written.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().map(|policy| &**policy)
    }

    /// What RequestAuthentications say.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &RequestPolicy> {
        self.requests.iter().map(|policy| &**policy)
    }

    /// The names of all rules, whomever they concern.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &RuleName> {
        let written = self.policies.iter().map(|policy| &**policy);
        let access = written.chain(&self.implied).flat_map(|policy| &policy.rules).map(|(name, _)| &**name);
        access.chain(self.egress.iter().flat_map(|policy| &policy.rules).map(|(name, _)| &**name))
    }

    /// What concerns a workload, without documents: it decides and explains.
    pub(crate) fn compiled(&self, workload: &Workload, number: u64) -> Generation {
        let (mut names, rules) = applying(workload, &self.policies, &self.implied);
        let policies = self.egress.iter().filter(|policy| policy.applies_to(workload));
        let mut egress: Vec<_> = policies.flat_map(|policy| policy.rules.iter().cloned()).collect();
        egress.sort_by_key(|(_, rule)| rule.tier);
        let (egress_names, egress): (Vec<_>, _) = egress.into_iter().unzip();
        let first_egress = names.len();
        names.extend(egress_names);
        let limits = limits_of(workload, &self.limits).cloned().collect();
        let requests = self.requests.iter().map(|policy| &**policy);
        let (jwt, verifies) = issuers::of_workload(&self.settled.jwt, requests, workload);
        let jwt = Some(jwt);
        self.assembled(Applied { names, rules, first_egress, egress, limits, jwt, verifies }, number)
    }

    fn assembled(&self, applied: Applied, number: u64) -> Generation {
        let Applied { names, rules: applied, first_egress, egress, limits, jwt, verifies } = applied;
        let counted = limits.iter().map(|limit| &limit.rule);
        Generation {
            number,
            egress: Egress::new(egress, &self.services, first_egress, number),
            services: Arc::clone(&self.services),
            defaults: Defaults {
                path: PathOptions { escaped_slashes: self.settled.slashes, ..PathOptions::default() },
                on_change: self.settled.on_change,
                aliases: self.settled.aliases.clone(),
                jwt: jwt.unwrap_or_else(|| self.settled.jwt.clone()),
                stale_after: self.settled.stale_after,
            },
            documents: Vec::new(),
            glass_rules: Vec::new(),
            warnings: Diagnostics::new(),
            told: OnceLock::new(),
            ports_named: ports_named(&applied),
            headers_named: headers_named(&applied, &limits),
            paths_judged: PortsJudged::by_path(&applied),
            sni_judged: PortsJudged::by_sni(applied.iter().chain(counted)),
            asks_tokens: verifies
                || applied.iter().any(|rule| rule.asks_tokens())
                || limits.iter().any(|limit| limit.asks_tokens()),
            nameable: self.terms.widest,
            names,
            engine: Engine::with_limits(
                applied,
                limits.iter().map(|limit| &**limit),
                self.terms.domains.clone(),
                number,
            ),
            limits: Limits::new(limits),
        }
    }
}

/// What concerns one workload: the names of all its rules, those of egress from `first_egress` on.
#[derive(Default)]
struct Applied {
    names: Vec<Arc<RuleName>>,
    rules: Vec<Arc<Rule>>,
    first_egress: usize,
    egress: Vec<Arc<EgressRule>>,
    limits: Vec<Arc<LimitRule>>,
    /// `None`: what MeshDefaults say.
    jwt: Option<Jwt>,
    /// Whether tokens are verified even if no rule asks for one.
    verifies: bool,
}

/// Reads and checks a set, for whatever workload.
pub(crate) fn checked(files: &[SourceFile], scope: &Scope) -> Result<Checked, Diagnostics> {
    checked_with(files, scope, &|_| None, &mut Vec::new())
}

/// What a file came to, if that is known.
type Known = Option<Arc<CheckedFile>>;

/// Reads and checks a set. `known` says what a file came to before, under whatever terms. What files without mistakes come
/// to now is put in `good`, if the set was read to its end.
fn checked_with<F: Borrow<SourceFile> + Sync>(
    files: &[F],
    scope: &Scope,
    known: &dyn Fn(&SourceFile) -> Known,
    good: &mut Vec<Known>,
) -> Result<Checked, Diagnostics> {
    bounds(files.iter().map(Borrow::borrow))?;
    let before: Vec<Known> = files.iter().map(|file| known(file.borrow())).collect();
    let unknown = files.iter().zip(&before).filter(|(_, known)| known.is_none());
    let read = read_all(unknown.map(|(file, _)| file.borrow()).collect());
    let mut set = Set::new(files.iter().map(Borrow::borrow).zip(before), read)?;
    set.check_set(scope);
    set.check_policy_names();
    let settled = set.settle(scope);
    let terms = Arc::new(Terms {
        root_namespace: scope.root_namespace.clone(),
        domains: OwnDomains { canonical: scope.trust_domain.clone(), aliases: settled.aliases.clone() },
        slashes: settled.slashes,
        widest: set.widest(settled.slashes),
        issuers: Arc::clone(&settled.jwt.issuers),
        request_issuers: set.request_issuers(),
    });
    let mut set = set.check(&terms);
    set.check_hosts();
    set.check_addresses();
    let (egress, requests) = (set.egress(), set.request_policies());
    if requests.iter().map(|policy| policy.issuers.len()).sum::<usize>() <= issuers::MAX_WRITTEN {
        set.check_issuers(&settled.jwt);
    }
    let (policies, limits, tests) = (set.policies(), set.limits(), set.tests());
    let mut most = |count: usize, what: &str, most: usize| {
        if count > most {
            let message = format!("the set has {count} {what}; at most {most} are taken");
            set.errors.push(Diagnostic::whole("", message));
        }
    };
    let count: usize = egress.iter().map(|policy| policy.rules.len()).sum();
    most(count + policies.iter().map(|policy| policy.rules.len()).sum::<usize>(), "rules", MAX_RULES);
    most(tests.iter().map(|test| test.cases.len()).sum(), "cases of tests", MAX_CASES);
    let count = requests.iter().map(|policy| policy.issuers.len()).sum();
    most(count, "issuers in RequestAuthentications", issuers::MAX_WRITTEN);
    if let Some(workload) = &scope.workload {
        let requests = requests.iter().map(|policy| &**policy);
        let (jwt, _) = issuers::of_workload(&settled.jwt, requests, workload);
        most(jwt.issuers.len(), "issuers of tokens for this workload", MAX_ISSUERS);
        let count = limits_of(workload, &limits).count();
        most(count, "rate limits that concern this workload", limits::MAX_LIMITS);
    }
    most(tests.iter().map(|test| test.invariants.len()).sum(), "invariants", MAX_INVARIANTS);
    let errors = std::mem::take(&mut set.errors);
    let implied = istio::implied(policies.iter().map(|policy| &**policy));
    let checked = if errors.is_empty() {
        Ok(Checked {
            documents: set.summaries(scope),
            misnamed: set.misnamed(&implied),
            policies,
            limits,
            egress,
            requests,
            services: Arc::new(Services::new(set.services(), &scope.root_namespace)),
            tests,
            warnings: set.warnings(&implied),
            implied,
            settled,
            terms,
        })
    } else {
        Err(errors.finished())
    };
    *good = set.good();
    checked
}

fn read_all(files: Vec<&SourceFile>) -> Vec<ReadFile<'_>> {
    parallel::map(files, |file| file.text.len(), ReadFile::read)
}

/// The trust domain that a set of documents speaks of: MeshDefaults' canonical one, else that of the first service's
/// identity. For checks without a mesh; nothing is decided by it.
pub fn trust_domain_of(files: &[SourceFile]) -> Option<TrustDomain> {
    bounds(files).ok()?;
    let read = read_all(files.iter().collect());
    let mut bodies = read.iter().flat_map(|file| &file.documents).map(|(_, body)| body);
    let canonical = bodies.clone().find_map(|body| match body {
        Body::Defaults(defaults) => defaults.spec.value.trust_domains.as_ref()?.value.canonical.as_ref(),
        _ => None,
    });
    let identity = bodies.find_map(|body| match body {
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

fn bounds<'a>(files: impl IntoIterator<Item = &'a SourceFile>) -> Result<(), Diagnostic> {
    let (mut count, mut bytes) = (0, 0);
    for file in files {
        count += 1;
        bytes += file.text.len();
    }
    if count > MAX_FILES {
        return Err(Diagnostic::whole("", format!("{count} files; at most {MAX_FILES} are taken")));
    }
    if bytes > MAX_BYTES {
        return Err(Diagnostic::whole("", format!("the set is larger than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(())
}

/// The rules that concern the workload, with their names: tier by tier, and within one in the order of the set.
fn applying(
    workload: &Workload,
    policies: &[Arc<Policy>],
    implied: &[Policy],
) -> (Vec<Arc<RuleName>>, Vec<Arc<Rule>>) {
    let policies = || policies.iter().map(|policy| &**policy);
    let applying = policies().filter(|policy| policy.applies_to(workload));
    let applying = applying.chain(istio::selected(workload, policies(), implied));
    let mut rules: Vec<(Arc<RuleName>, Arc<Rule>)> =
        applying.flat_map(|policy| policy.rules.iter().cloned()).collect();
    rules.sort_by_key(|(_, rule)| rule.tier);
    rules.into_iter().unzip()
}

fn limits_of<'p>(
    workload: &'p Workload,
    policies: &'p [Arc<LimitPolicy>],
) -> impl Iterator<Item = &'p Arc<LimitRule>> {
    policies.iter().filter(|policy| policy.applies_to(workload)).flat_map(|policy| &policy.limits)
}

fn ports_named(rules: &[Arc<Rule>]) -> BTreeSet<u16> {
    let allows =
        rules.iter().filter(|rule| rule.action == Action::Allow && rule.enforcement == Enforcement::Enforce);
    allows
        .flat_map(|rule| {
            let target = rule.target_ports.iter().flatten();
            let to = rule.to.iter().flatten().flat_map(|to| to.ports.iter().flatten());
            let istio = rule.istio.iter().flat_map(|clause| &clause.to).flat_map(|what| &what.ports);
            target.chain(to).chain(istio.flat_map(|test| &test.values)).copied()
        })
        .collect()
}

fn headers_named(rules: &[Arc<Rule>], limits: &[Arc<LimitRule>]) -> Vec<Box<str>> {
    let istio = rules.iter().flat_map(|rule| &rule.istio).flat_map(|clause| &clause.fields);
    let rules = rules.iter().chain(limits.iter().map(|limit| &limit.rule));
    let conditions = rules.clone().filter_map(|rule| rule.condition.as_ref());
    let of_conditions =
        conditions.flat_map(|condition| condition.headers().iter().map(|(name, _)| name.clone()));
    let targets = rules.flat_map(|rule| rule.to.iter().flatten());
    let own = targets.flat_map(|target| target.headers.iter().map(|header| header.name.clone()));
    let mut names: BTreeSet<Box<str>> =
        own.chain(of_conditions).chain(istio.map(|field| field.name.clone())).collect();
    names.extend(limits.iter().flat_map(|limit| limit.headers_in_key()).cloned());
    names.into_iter().collect()
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
