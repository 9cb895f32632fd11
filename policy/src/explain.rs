//! Why a question is answered as it is, for people.

use std::fmt;

use serde::Serialize;

use crate::verdict::{Effect, RuleName, Verdict};

/// Why a question is answered as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The engine's answer.
    #[serde(serialize_with = "verdict")]
    pub verdict: Verdict,
    /// The rule that decided, with its place.
    pub rule: Option<RuleName>,
    /// If nothing allowed it: the rule that came closest.
    pub nearest: Option<Miss>,
}

/// An Allow rule that nearly matched.
#[derive(Clone, Debug, Serialize)]
pub struct Miss {
    /// The rule.
    pub rule: RuleName,
    /// What did not match.
    pub failed: Vec<String>,
    /// The change that would allow the request.
    pub change: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.verdict.effect)
    }
}

fn verdict<S: serde::Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match verdict.effect {
        Effect::Allow => "allow",
        Effect::Deny(reason) => reason.label(),
    })
}
