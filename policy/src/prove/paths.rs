//! One path of every class: two paths are alike if the same patterns match them.
//!
//! Each pattern is a small automaton over segments. A breadth-first walk over all of them at once, with the segments that
//! some pattern waits for and one that none waits for, reaches every joint state; a state says of every pattern whether it
//! matches here, and with an empty last segment. So a path for each state is a path for each class.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::TooLarge;
use crate::norm::{CanonMethod, CanonPath, PathOptions};
use crate::pattern::{PathPattern, Segment};

/// States looked at. Rules of one workload have hundreds.
const MAX_STATES: usize = 20_000;
/// Steps of single patterns: a second or so.
const MAX_STEPS: usize = 20_000_000;
/// What no pattern of gRPC methods can begin with, for a method that only begins as one does.
const ODD: &str = "~";

/// A path of its class.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// As a request has it, with all its readings.
    pub(super) real: CanonPath,
    /// The same without any other reading, as one reading is judged.
    pub(super) alone: CanonPath,
    /// `*`, which only OPTIONS has.
    pub(super) is_star: bool,
}

/// Samples of all classes that `patterns` tell apart.
pub(super) fn samples(patterns: &[&PathPattern]) -> Result<Vec<Sample>, TooLarge> {
    if patterns.iter().any(|pattern| matches!(pattern, PathPattern::Beginning(_) | PathPattern::Ending(_))) {
        return Err(TooLarge("Istio's patterns of paths are not taken apart".to_owned()));
    }
    let atoms: Vec<Atom<'_>> = patterns.iter().map(|pattern| Atom::of(pattern)).collect();
    let other = fresh(&atoms);
    let mut out = Vec::new();
    let mut seen = HashSet::new();
    let mut queue = VecDeque::new();
    let start: State = (0..).zip(&atoms).map(|(at, _)| (at, 1)).collect();
    seen.insert((start.clone(), false));
    queue.push_back((start, String::new()));
    let mut steps = 0_usize;
    while let Some((state, text)) = queue.pop_front() {
        if !text.is_empty() {
            out.extend(sample(&text));
        }
        out.extend(sample(&format!("{text}/")));
        // A state is reached in plain spelling, if it can be, and once more with characters that are read in several
        // ways: what follows is the same, but a request for the plain one is judged in one reading alone.
        let segments = segments(&atoms, &state, &other);
        steps = steps.saturating_add(segments.len().saturating_mul(state.len()));
        if steps > MAX_STEPS {
            return Err(TooLarge(format!("{} patterns of paths are too many to be told apart", atoms.len())));
        }
        for segment in segments {
            let next = step(&atoms, &state, &segment);
            let text = format!("{text}/{segment}");
            let is_ambiguous = text.contains(['%', ';']);
            if seen.insert((next.clone(), is_ambiguous)) {
                if seen.len() > MAX_STATES {
                    return Err(TooLarge(format!(
                        "the rules tell more than {MAX_STATES} kinds of paths apart"
                    )));
                }
                queue.push_back((next, text));
            }
        }
    }
    let options = CanonMethod::parse("OPTIONS");
    let star = options.and_then(|options| CanonPath::parse_for(&options, "*", &PathOptions::default()));
    out.extend(star.map(|star| Sample { real: star.clone(), alone: star, is_star: true }));
    Ok(out)
}

/// None for what no request can have, such as a path with too many readings.
fn sample(text: &str) -> Option<Sample> {
    // Slashes that are kept stand in rules only where a port keeps them.
    let options =
        PathOptions { escaped_slashes: crate::norm::EscapedSlashes::Keep, ..PathOptions::default() };
    let real = CanonPath::parse(text, &options).ok()?;
    let alone = CanonPath::of_one_reading(real.path());
    Some(Sample { real, alone, is_star: false })
}

/// For each pattern that can still match, by number, the places in it at which the path may be: bit n is after n tokens.
type State = Vec<(usize, u64)>;

struct Atom<'p> {
    tokens: Vec<Token<'p>>,
}

enum Token<'p> {
    Literal(&'p str),
    /// One segment that is not empty.
    One,
    /// One segment or more.
    Many,
    /// One segment that begins so.
    Begins(&'p str),
    /// Whatever follows, or nothing.
    Rest,
}

impl<'p> Atom<'p> {
    /// A pattern has at most 48 segments, so its places fit into 64 bits.
    fn of(pattern: &'p PathPattern) -> Self {
        let literals = |path: &'p str| path[1..].split('/').map(Token::Literal);
        let tokens = match pattern {
            PathPattern::Exact(path) => literals(path).collect(),
            PathPattern::Prefix(path) if **path == *"/" => vec![Token::Rest],
            PathPattern::Prefix(path) => literals(path).chain([Token::Rest]).collect(),
            PathPattern::Template(template) => template
                .segments
                .iter()
                .map(|segment| match segment {
                    Segment::Literal(text) => Token::Literal(text),
                    Segment::One => Token::One,
                    Segment::Many => Token::Many,
                })
                .collect(),
            // Of Istio's alone, whose rules come here as rules for everything.
            PathPattern::Beginning(_) | PathPattern::Ending(_) => Vec::new(),
            PathPattern::Methods { service, prefix } => {
                vec![Token::Literal(service.trim_matches('/')), Token::Begins(prefix)]
            }
        };
        Self { tokens }
    }

    fn places(&self, mask: u64) -> impl Iterator<Item = (usize, &Token<'p>)> {
        self.tokens.iter().enumerate().filter(move |(at, _)| mask >> at & 1 == 1)
    }

    fn step(&self, mask: u64, segment: &str) -> u64 {
        self.places(mask).fold(0, |next, (at, token)| {
            let (stay, go) = match token {
                Token::Literal(text) => (false, *text == segment),
                Token::One => (false, !segment.is_empty()),
                Token::Many => (true, true),
                Token::Begins(text) => (false, segment.starts_with(*text)),
                Token::Rest => (true, false),
            };
            next | u64::from(stay) << at | u64::from(go) << (at + 1)
        })
    }
}

fn step(atoms: &[Atom<'_>], state: &State, segment: &str) -> State {
    let next = state.iter().map(|(at, mask)| (*at, atoms[*at].step(*mask, segment)));
    next.filter(|(_, mask)| *mask != 0).collect()
}

/// What can follow: every segment that some pattern waits for, and one that none does.
fn segments(atoms: &[Atom<'_>], state: &State, other: &str) -> Vec<String> {
    let mut found: BTreeSet<String> = BTreeSet::new();
    for (_, token) in state.iter().flat_map(|(at, mask)| atoms[*at].places(*mask)) {
        match token {
            Token::Literal(text) if !text.is_empty() => {
                found.insert((*text).to_owned());
            }
            Token::Begins(text) => {
                found.insert(format!("{text}{ODD}"));
                if !text.is_empty() {
                    found.insert((*text).to_owned());
                }
            }
            Token::Literal(_) | Token::One | Token::Many | Token::Rest => {}
        }
    }
    let mut out = vec![other.to_owned()];
    let (plain, ambiguous): (Vec<String>, Vec<String>) =
        found.into_iter().partition(|segment| !segment.contains(['%', ';']));
    out.extend(plain);
    out.extend(ambiguous);
    out
}

/// A segment that no pattern names and none begins.
fn fresh(atoms: &[Atom<'_>]) -> String {
    let tokens = || atoms.iter().flat_map(|atom| &atom.tokens);
    let is_free = |candidate: &str| {
        !tokens().any(|token| match token {
            Token::Literal(text) => *text == candidate,
            Token::Begins(text) => !text.is_empty() && candidate.starts_with(*text),
            Token::One | Token::Many | Token::Rest => false,
        })
    };
    let mut candidate = "x".to_owned();
    let mut words = ["other", "y", "z"].into_iter();
    while !is_free(&candidate) {
        candidate = words.next().map_or_else(|| format!("{ODD}{candidate}"), str::to_owned);
    }
    candidate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::norm::EscapedSlashes;

    /// Every path over a small alphabet has a sample that the same patterns match.
    #[test]
    fn every_path_has_its_like() {
        let words = ["a", "b", "ab", "a;x", "c", ""];
        let sets: [&[&str]; 7] = [
            &["/a", "/a/", "/a/b", "P/a", "P/a/b"],
            &["/{*}", "/{*}/b", "/a/{**}", "/{**}/b", "/{**}/a/b", "P/"],
            &["/{*}/a/{**}/{*}", "/{**}", "/{*}/{*}/{*}", "/a;x", "P/a;x"],
            &["Ga/a*", "Ga/ab*", "Ga/*", "/a/ab", "/a/{*}"],
            &["/", "P/", "/{**}/a/{*}"],
            &["/{**}/b/{*}/b", "/{*}/b/{**}", "/a/{**}/a"],
            &[],
        ];
        let mut paths: Vec<String> = vec!["/".to_owned()];
        for depth in 1..=5 {
            for mut n in 0..6_usize.pow(depth) {
                let mut path = String::new();
                for at in 0..depth {
                    let word = words[n % 6];
                    n /= 6;
                    if word.is_empty() && at + 1 < depth {
                        path.clear();
                        break;
                    }
                    path = format!("{path}/{word}");
                }
                paths.extend((!path.is_empty()).then_some(path));
            }
        }
        for set in sets {
            let parse = |text: &&str| match (text.strip_prefix('P'), text.strip_prefix('G')) {
                (Some(prefix), _) => PathPattern::parse_prefix(prefix, EscapedSlashes::Reject).unwrap(),
                (_, Some(grpc)) => PathPattern::parse_grpc(grpc).unwrap(),
                _ => PathPattern::parse(text, EscapedSlashes::Reject).unwrap(),
            };
            let patterns: Vec<PathPattern> = set.iter().map(parse).collect();
            let matched =
                |path: &str| patterns.iter().map(|pattern| pattern.matches(path)).collect::<Vec<_>>();
            let samples = samples(&patterns.iter().collect::<Vec<_>>()).unwrap();
            let classes: HashSet<Vec<bool>> =
                samples.iter().map(|sample| matched(sample.real.path())).collect();
            for path in &paths {
                assert!(classes.contains(&matched(path)), "{set:?}: nothing like {path}");
            }
        }
    }

    #[test]
    fn too_many_are_refused() {
        let patterns: Vec<PathPattern> = (0..11_000)
            .map(|n| PathPattern::parse(&format!("/p{n}/x"), EscapedSlashes::Reject).unwrap())
            .collect();
        assert!(samples(&patterns.iter().collect::<Vec<_>>()).is_err());
    }
}
