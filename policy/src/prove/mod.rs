//! Proofs: that something is never allowed, or always, by a set of rules - for every request there can be.
//!
//! A decision is a function of a few truths: for each rule, whether its `from` means the peer; for each alternative of each
//! `to`, whether its fields hold the port, method, path, host, upgrade and server name. The rules hold finitely many
//! words, so each of these - peer, port, method, … - falls into finitely many classes of values that no rule tells apart,
//! and one sample of each class stands for all of them. The samples are combined, and each combination is put to the engine.
//! What the classes do not know (header fields, times) is settled against the claim ([`relax`]), so that a proof needs no
//! reservation; a counterexample found so is looked for among real requests before it is shown.
//!
//! Readings: a request is allowed if every reading of its path is, and is meant if (for `never`) any is. So if some request
//! breaks a claim, the request for that very reading does, and readings can be judged one by one.

mod operations;
mod paths;
mod relax;
mod report;
mod sources;
mod witness;

#[cfg(test)]
mod tests;

use crate::diagnostic::Place;
use crate::engine::Engine;
use crate::eval_ref;
use crate::norm::{CanonHost, CanonMethod};
use crate::pattern::PathPattern;
use crate::rule::{Rule, Target};
use crate::upgrade::Upgrade;
use crate::verdict::{Action, Operation, RuleId, Source};

pub(crate) use report::results;
pub(crate) use witness::Witness;

use witness::Found;

/// Decisions that one proof may take: some seconds.
const MAX_CLASSES: u64 = 2_000_000;
/// Counterexamples that may turn out to be none.
const MAX_DOUBTS: usize = 200;

/// A claim about a set of rules.
pub(crate) struct Invariant {
    pub(crate) name: Box<str>,
    pub(crate) place: Place,
    /// What it is about, as a rule says it. A Deny: nothing that this would deny is allowed. An Allow: everything that this
    /// would allow is allowed.
    pub(crate) rule: Rule,
}

impl Invariant {
    pub(crate) fn is_never(&self) -> bool {
        self.rule.action == Action::Deny
    }
}

/// What became of a claim.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It holds for every request. So many classes of requests were looked at.
    Proven(u64),
    /// This request breaks it.
    Broken(Box<Witness>),
    /// A request like this one would break it, with header fields or at a time that were not found.
    Open(Box<Witness>),
    /// It speaks of no request at all.
    Empty,
    TooLarge(String),
}

/// Why something cannot be enumerated.
#[derive(Debug)]
struct TooLarge(String);

/// Looks for a request that breaks the claim. `real` is not used for traffic: the time is told to it.
pub(crate) fn prove(real: &Engine, invariant: &Invariant) -> Outcome {
    match Proof::new(real, invariant).and_then(|proof| proof.run()) {
        Ok(outcome) => outcome,
        Err(TooLarge(what)) => Outcome::TooLarge(what),
    }
}

struct Proof<'e> {
    real: &'e Engine,
    /// The rules, with what is not known settled against the claim.
    worst: Engine,
    scope: &'e Rule,
    sources: Vec<sources::Sample>,
    ports: Vec<u16>,
    methods: Vec<CanonMethod>,
    paths: Vec<paths::Sample>,
    hosts: Vec<Option<CanonHost>>,
    upgrades: Vec<Option<Upgrade>>,
    handshakes: Vec<Option<Option<CanonHost>>>,
}

/// A combination of samples without its source.
struct Asked<'p> {
    port: u16,
    what: What<'p>,
}

#[derive(Clone, Copy)]
enum What<'p> {
    Http {
        method: &'p CanonMethod,
        path: &'p paths::Sample,
        host: Option<&'p CanonHost>,
        upgrade: Option<&'p Upgrade>,
    },
    /// `None`: no handshake was read.
    Opaque(Option<Option<&'p CanonHost>>),
}

impl<'e> Proof<'e> {
    fn new(real: &'e Engine, invariant: &'e Invariant) -> Result<Self, TooLarge> {
        let (scope, domains) = (&invariant.rule, &real.domains);
        let rules = relax::relaxed(&real.rules, invariant.is_never());
        let worst = Engine::with_limits(rules, std::iter::empty(), domains.clone(), 0);
        let sources = sources::samples(&worst.rules, scope, domains)?;
        // A rule that means none of these peers has no word here.
        let means = |rule: &&Rule| {
            sources.iter().any(|(id, address)| {
                sources::means(rule, domains, Source { identity: id.as_ref(), address: *address })
            })
        };
        let rules: Vec<&Rule> = worst.rules.iter().map(|rule| &**rule).filter(means).chain([scope]).collect();
        let (ports, methods) = (operations::ports(&rules), operations::methods(&rules));
        // A request has a host: a Deny under a condition on it would fire at one without, which nobody can send.
        let is_conditional = real.rules.iter().any(|rule| rule.condition.is_some());
        let (hosts, upgrades) = (operations::hosts(&rules, is_conditional), operations::upgrades(&rules));
        let handshakes = operations::handshakes(&rules);
        let paths = distinct_paths(&rules)?;
        Ok(Self { real, scope, sources, ports, methods, paths, hosts, upgrades, handshakes, worst })
    }

    fn run(&self) -> Result<Outcome, TooLarge> {
        // One by one, so that the parts of one alternative need not be combined with those of another.
        let everything = Target::default();
        let alternatives: Vec<&Target> = match &self.scope.to {
            Some(targets) => targets.iter().collect(),
            None => vec![&everything],
        };
        let asked: Vec<Vec<Asked<'_>>> =
            alternatives.iter().map(|target| self.asked(target)).collect::<Result<_, _>>()?;
        let count: usize = asked.iter().map(Vec::len).sum();
        let classes = (count as u64).saturating_mul(self.sources.len() as u64);
        if classes > MAX_CLASSES {
            return Err(TooLarge(format!(
                "{} kinds of callers times {count} kinds of operations are more than {MAX_CLASSES}",
                self.sources.len()
            )));
        }
        if classes == 0 {
            return Ok(Outcome::Empty);
        }
        let never = self.scope.action == Action::Deny;
        let mut open = None;
        let mut doubts = 0;
        for (id, address) in &self.sources {
            let source = Source { identity: id.as_ref(), address: *address };
            let connection = self.worst.connection(source);
            for asked in asked.iter().flatten() {
                let verdict = self.worst.decide(&connection, asked.port, asked.alone());
                if verdict.is_allowed() != never {
                    continue;
                }
                let found = Found { source, asked, blamed: verdict.rule.map(RuleId::index) };
                match witness::confirm(self.real, self.scope, &found) {
                    Ok(witness) => return Ok(Outcome::Broken(Box::new(witness))),
                    Err(doubtful) => open = open.or(Some(doubtful)),
                }
                doubts += 1;
                if doubts >= MAX_DOUBTS {
                    return Ok(open.map_or(Outcome::Empty, Outcome::Open));
                }
            }
        }
        Ok(open.map_or(Outcome::Proven(classes), Outcome::Open))
    }

    /// The combinations that an alternative of the claim means.
    fn asked(&self, target: &Target) -> Result<Vec<Asked<'_>>, TooLarge> {
        let action = self.scope.action;
        let mut out = Vec::new();
        let in_target =
            |port: &&u16| self.scope.target_ports.as_ref().is_none_or(|ports| ports.contains(port));
        let ports: Vec<u16> = self.ports.iter().filter(in_target).copied().collect();
        let size = [self.methods.len(), self.paths.len(), self.hosts.len(), self.upgrades.len(), ports.len()];
        let size = size.into_iter().fold(1_u64, |all, one| all.saturating_mul(one as u64));
        if size > 4 * MAX_CLASSES {
            return Err(TooLarge(format!("the rules tell {size} kinds of operations apart")));
        }
        for port in ports {
            // What names something of HTTP speaks of requests; whether a port takes opaque bytes is its protocol's to say.
            if !target.asks_layer7() {
                for handshake in &self.handshakes {
                    let what = What::Opaque(handshake.as_ref().map(Option::as_ref));
                    out.extend(self.meant(target, action, Asked { port, what }));
                }
            }
            for (method, path) in
                self.methods.iter().flat_map(|method| self.paths.iter().map(move |path| (method, path)))
            {
                if path.is_star && method.as_str() != "OPTIONS" {
                    continue;
                }
                for host in &self.hosts {
                    for upgrade in &self.upgrades {
                        let (host, upgrade) = (host.as_ref(), upgrade.as_ref());
                        let what = What::Http { method, path, host, upgrade };
                        out.extend(self.meant(target, action, Asked { port, what }));
                    }
                }
            }
        }
        Ok(out)
    }

    fn meant<'p>(&self, target: &Target, action: Action, asked: Asked<'p>) -> Option<Asked<'p>> {
        let operation = asked.alone();
        let view = match operation {
            Operation::Http { path, .. } => Some(path.path()),
            Operation::Tcp | Operation::Tls { .. } => None,
        };
        let truth = eval_ref::target(target, action, asked.port, operation, view);
        // Nothing of it is unknown: what asks for HTTP is asked of requests only, and a host is known.
        (truth == eval_ref::Truth::True).then_some(asked)
    }
}

impl<'p> Asked<'p> {
    /// In the one reading that it stands for.
    fn alone(&self) -> Operation<'p> {
        self.operation(true, None)
    }

    fn operation(&self, alone: bool, headers: Option<&'p crate::fields::HeaderFields>) -> Operation<'p> {
        match self.what {
            What::Http { method, path, host, upgrade } => Operation::Http {
                method,
                path: if alone { &path.alone } else { &path.real },
                host,
                headers: headers.map(|fields| fields as &dyn crate::fields::HeaderLines),
                upgrade,
                tokens: crate::tokens::Tokens::Absent,
            },
            What::Opaque(None) => Operation::Tcp,
            What::Opaque(Some(sni)) => Operation::Tls { sni },
        }
    }
}

/// Samples of paths, no two of which are alike to every alternative.
fn distinct_paths(rules: &[&Rule]) -> Result<Vec<paths::Sample>, TooLarge> {
    let targets = || rules.iter().flat_map(|rule| rule.to.iter().flatten());
    let lists: Vec<&[PathPattern]> = targets()
        .flat_map(|target| [target.paths.as_deref(), target.not.as_ref().map(|not| not.paths.as_slice())])
        .flatten()
        .collect();
    let mut patterns: Vec<&PathPattern> = Vec::new();
    let mut known = std::collections::HashSet::new();
    patterns.extend(lists.iter().copied().flatten().filter(|pattern| known.insert(*pattern)));
    let mut seen = std::collections::HashSet::new();
    let samples = paths::samples(&patterns)?;
    // What is read in one way comes first and stands for its class where there is one.
    let (plain, ambiguous): (Vec<_>, Vec<_>) =
        samples.into_iter().partition(|sample| !sample.real.is_ambiguous());
    Ok(plain
        .into_iter()
        .chain(ambiguous)
        .filter(|sample| {
            let path = sample.real.path();
            let matched = lists.iter().map(|list| list.iter().any(|pattern| pattern.matches(path)));
            seen.insert(matched.chain([sample.is_star]).collect::<Vec<bool>>())
        })
        .collect())
}
