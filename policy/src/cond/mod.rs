//! Conditions of rules: expressions of a subset of CEL, the Common Expression Language.
//!
//! An expression is read, bound and looked through for mistakes when its document is loaded, and evaluated last, for rules
//! that match in all else. Its result has three values: what is neither true nor false - a field that is not there, a fact
//! that is not known, a division by zero, more steps than are allowed - is unknown, so that a Deny fires and an Allow does
//! not. `&&`, `||`, `all` and `exists` let a part that decides alone decide, whatever fails beside it, as CEL has it.
//!
//! This is our own evaluator, for these reasons: a decision has a bound in time and memory here, whatever the expression
//! and the request; mistakes have their place; what is unknown is told from what is absent; and a sidecar stands beside
//! every workload, where a general library with its parser generator and its own time zones weighs too much
//! (docs/benchmarks.md has the figures). The cases of CEL's own conformance suite are run against it (`conformance`).

mod ast;
mod check;
mod eval;
mod facts;
mod functions;
mod lexer;
mod literals;
mod macros;
mod parse;
mod regex;
mod time;
mod types;
mod value;

use std::fmt;
use std::sync::Arc;

pub(crate) use ast::{Mistake, Span};
pub(crate) use facts::{Asked, Caller, minute};

use ast::Expr;
use check::{Bound, Environment};
use facts::{HEADERS, HOST, JWT, METHOD, NOW, PATH, Request, VARIABLES};
use types::Type;
use value::{Fail, Value};

use crate::eval_ref::Truth;

/// A condition of a rule.
#[derive(Clone)]
pub(crate) struct Condition(Arc<Inner>);

struct Inner {
    text: Box<str>,
    expr: Expr,
    headers: Vec<(Box<str>, Span)>,
    variables: Vec<usize>,
}

/// The text says it all: there is one way to read it.
impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Condition {
    /// Reads an expression.
    pub(crate) fn parse(text: &str) -> Result<Self, Mistake> {
        let environment = Environment { variables: &VARIABLES, headers: Some(HEADERS), strict: true };
        let Bound { expr, result, headers, variables } = check::bind(parse::parse(text)?, &environment)?;
        if !matches!(result, Type::Bool | Type::Dyn) {
            let message = format!("a condition is true or false; this is {result}");
            return Err(Mistake::new(expr.at, message, "compare it with something"));
        }
        Ok(Self(Arc::new(Inner { text: text.into(), expr, headers, variables })))
    }

    /// Whether it holds.
    pub(crate) fn holds(&self, asked: Asked<'_>) -> Truth {
        self.outcome(asked).map_or(Truth::Unknown, Truth::from)
    }

    /// Whether it holds, or why that is unknown, for people.
    pub(crate) fn explain(&self, asked: Asked<'_>) -> Result<bool, String> {
        self.outcome(asked).map_err(|fail| fail.to_string())
    }

    fn outcome(&self, asked: Asked<'_>) -> Result<bool, Fail> {
        let Inner { expr, headers, .. } = &*self.0;
        match eval::evaluate(expr, &Request { asked, headers })? {
            Value::Bool(value) => Ok(value),
            _ => Err(Fail::NotBool),
        }
    }

    /// Header fields that it names, with where it names them first.
    pub(crate) fn headers(&self) -> &[(Box<str>, Span)] {
        &self.0.headers
    }

    /// Whether it asks for the time.
    pub(crate) fn asks_time(&self) -> bool {
        self.0.variables.contains(&NOW)
    }

    /// Whether it asks for the path.
    pub(crate) fn asks_path(&self) -> bool {
        self.0.variables.contains(&PATH)
    }

    /// Whether it asks for the claims of a token.
    pub(crate) fn asks_tokens(&self) -> bool {
        self.0.variables.contains(&JWT)
    }

    /// Whether it asks for anything that opaque bytes never show.
    pub(crate) fn asks_layer7(&self) -> bool {
        let asks = |variable: &usize| [METHOD, PATH, HOST, JWT].contains(variable);
        !self.0.headers.is_empty() || self.0.variables.iter().any(asks)
    }
}

/// In one line, as messages and logs have it.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.text.lines().map(str::trim).filter(|line| !line.is_empty());
        for (n, line) in lines.enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            f.write_str(line)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({:?})", self.0.text)
    }
}

#[cfg(test)]
mod tests;
