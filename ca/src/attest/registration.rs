//! Which facts are granted which ids. Default deny: what no registration says is not granted.

use std::fmt;
use std::time::Duration;

use postern_svid::{SpiffeId, TrustDomain};

use super::facts::{FactName, Facts};
use super::template::Template;
use crate::lineage::Attestor;

/// Registrations are asked one after the other: so many take less than the signature that follows.
pub const MAX_REGISTRATIONS: usize = 4_096;
/// Clauses of all of them together.
pub const MAX_CLAUSES: usize = 16_384;

/// What a value must be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Pattern {
    /// Exactly this.
    Is(String),
    /// It begins so; everything does with nothing.
    Begins(String),
}

impl Pattern {
    /// A trailing `*` stands for whatever follows, and nothing for itself anywhere else.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text.strip_suffix('*') {
            _ if text.is_empty() => Err("an empty text fits nothing"),
            Some(start) if start.contains('*') => Err("`*` may stand at the end alone"),
            Some(start) => Ok(Self::Begins(start.to_owned())),
            None if text.contains('*') => Err("`*` may stand at the end alone"),
            None => Ok(Self::Is(text.to_owned())),
        }
    }

    fn fits(&self, value: &str) -> bool {
        match self {
            Self::Is(whole) => value == whole,
            Self::Begins(start) => value.starts_with(start.as_str()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(whole) => f.write_str(whole),
            Self::Begins(start) => write!(f, "{start}*"),
        }
    }
}

/// What facts must say, all of it: each of these names has a value that one of its patterns fits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Clause {
    /// Whose facts.
    pub attestor: Attestor,
    /// The names and what fits them.
    pub wants: Vec<(FactName, Vec<Pattern>)>,
}

impl Clause {
    /// What keeps these facts from fitting; nothing if they do.
    fn lacks<'c>(&'c self, facts: &'c Facts) -> impl Iterator<Item = &'c (FactName, Vec<Pattern>)> {
        self.wants.iter().filter(|(name, patterns)| {
            let mut values = facts.values(name);
            !values.any(|value| patterns.iter().any(|pattern| pattern.fits(value)))
        })
    }

    fn fits(&self, facts: &Facts) -> bool {
        self.attestor == facts.attestor() && self.lacks(facts).next().is_none()
    }
}

/// One registration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Registration {
    /// Its name.
    pub name: String,
    /// Where it is written: `orders.yaml:3:5`.
    pub place: String,
    /// The id that it grants.
    pub id: Template,
    /// To whom: facts that fit one of these.
    pub from: Vec<Clause>,
    /// The longest life of a certificate by it.
    pub ttl: Option<Duration>,
}

/// An id is granted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Granted {
    /// The id.
    pub id: SpiffeId,
    /// By which registration.
    pub registration: String,
    /// The longest life of the certificate.
    pub ttl: Option<Duration>,
}

/// What a registration says to facts and an id.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Judged<'r> {
    /// The registration.
    pub registration: &'r Registration,
    /// What it says.
    pub outcome: Outcome,
}

/// What becomes of facts and an id that is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The id is granted.
    Grants,
    /// The facts fit, and are granted this id instead.
    Other(SpiffeId),
    /// The facts fit, and make no id.
    NoId(String),
    /// Facts that are not as this clause of its `from` wants them, of the same attestor; of several clauses, the nearest.
    Lacks(Vec<String>),
    /// It is for facts of other attestors.
    Elsewhere,
}

impl Outcome {
    /// Nearest first.
    fn rank(&self) -> usize {
        match self {
            Self::Grants => 0,
            Self::Other(_) => 1,
            Self::NoId(_) => 2,
            Self::Lacks(all) => 2 + all.len(),
            Self::Elsewhere => usize::MAX,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grants => f.write_str("grants the id"),
            Self::Other(id) => write!(f, "grants {id}, not the id asked for"),
            Self::NoId(why) => write!(f, "fits, but makes no id: {why}"),
            Self::Lacks(all) => write!(f, "does not fit: {}", all.join("; ")),
            Self::Elsewhere => f.write_str("is for facts of another attestor"),
        }
    }
}

/// All registrations in force.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Registrations(Vec<Registration>);

impl Registrations {
    /// These.
    pub fn new(all: Vec<Registration>) -> Self {
        Self(all)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any of them wants this fact.
    pub fn ask_for(&self, name: &FactName) -> bool {
        let mut wants =
            self.0.iter().flat_map(|registration| &registration.from).flat_map(|clause| &clause.wants);
        wants.any(|(wanted, _)| wanted == name)
            || self.0.iter().any(|one| one.id.facts().any(|fact| fact == name))
    }

    /// Whether the facts are granted exactly the id asked for; of several registrations that grant it, the first counts.
    pub fn grant(&self, td: &TrustDomain, facts: &Facts, asked: &SpiffeId) -> Option<Granted> {
        self.0.iter().find_map(|registration| {
            let fits = registration.from.iter().any(|clause| clause.fits(facts));
            let id = fits.then(|| registration.id.render(td, facts).ok()).flatten()?;
            (id == *asked).then(|| Granted {
                id,
                registration: registration.name.clone(),
                ttl: registration.ttl,
            })
        })
    }

    /// What each registration says, the nearest first.
    pub fn explain(&self, td: &TrustDomain, facts: &Facts, asked: &SpiffeId) -> Vec<Judged<'_>> {
        let mut all: Vec<Judged<'_>> = self
            .0
            .iter()
            .map(|registration| Judged { registration, outcome: registration.judge(td, facts, asked) })
            .collect();
        all.sort_by_key(|judged| judged.outcome.rank());
        all
    }
}

impl Registration {
    fn judge(&self, td: &TrustDomain, facts: &Facts, asked: &SpiffeId) -> Outcome {
        if self.from.iter().any(|clause| clause.fits(facts)) {
            return match self.id.render(td, facts) {
                Ok(id) if id == *asked => Outcome::Grants,
                Ok(id) => Outcome::Other(id),
                Err(why) => Outcome::NoId(why),
            };
        }
        let same = self.from.iter().filter(|clause| clause.attestor == facts.attestor());
        let lacking = same.map(|clause| {
            clause.lacks(facts).map(|(name, patterns)| unlike(name, patterns, facts)).collect::<Vec<_>>()
        });
        lacking.min_by_key(Vec::len).map_or(Outcome::Elsewhere, Outcome::Lacks)
    }
}

/// A fact and what was wanted instead.
fn unlike(name: &FactName, patterns: &[Pattern], facts: &Facts) -> String {
    const LISTED: usize = 5;
    let mut wanted: Vec<String> = patterns.iter().take(LISTED).map(Pattern::to_string).collect();
    if patterns.len() > LISTED {
        wanted.push("…".to_owned());
    }
    let found = facts.iter().find(|fact| fact.name == *name);
    let found = found.map_or_else(|| format!("{name} is not there"), ToString::to_string);
    format!("{found}, wanted: {}", wanted.join(", "))
}

#[cfg(test)]
#[path = "registration_tests.rs"]
mod tests;
