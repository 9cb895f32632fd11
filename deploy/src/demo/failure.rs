//! A failed expectation in the words in which a person will read it.

use std::fmt::{self, Display};

/// Why something the demo expects did not hold, or could not be looked at. Either is a failed line.
#[derive(Clone, Debug)]
pub(crate) struct Failure(String);

/// Adds what was being done to an error or to a missing value.
pub(crate) trait Explain<T> {
    /// `what` finishes the sentence "… :".
    fn explain(self, what: impl Display) -> Result<T, Failure>;
}

impl Failure {
    /// A failure with this reason.
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T, E: Display> Explain<T> for Result<T, E> {
    fn explain(self, what: impl Display) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}

impl<T> Explain<T> for Option<T> {
    fn explain(self, what: impl Display) -> Result<T, Failure> {
        self.ok_or_else(|| Failure(what.to_string()))
    }
}

/// Returns a [`Failure`] unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($reason:tt)+) => {
        if !$holds {
            return Err($crate::demo::failure::Failure::new(format!($($reason)+)));
        }
    };
}
pub(crate) use ensure;
