//! From a tree and facts to a value, within bounds.

use std::cell::Cell;
use std::rc::Rc;

use super::ast::{Each, Expr, Function, Kind, Macro};
use super::functions;
use super::value::{Entries, Fail, List, Value, is_same_key};

/// Steps that one evaluation may take: the parts of the expression that are looked at, and more for long texts and
/// lists. All of them take about a millisecond.
const MAX_STEPS: usize = 10_000;
/// Bytes of a text that are one step.
const BYTES: usize = 64;

pub(super) type Evaluated<'a> = Result<Value<'a>, Fail>;

/// Where names get their values from.
pub(super) trait Facts<'a> {
    fn variable(&self, at: usize) -> Evaluated<'a>;
    /// The value of a header field.
    fn header(&self, at: usize) -> Evaluated<'a>;
    fn has_header(&self, at: usize) -> Result<bool, Fail>;
}

pub(super) fn evaluate<'a>(expr: &'a Expr, facts: &dyn Facts<'a>) -> Evaluated<'a> {
    let mut machine = Machine { facts, steps: Steps::new(), locals: Vec::new() };
    machine.value(expr)
}

/// What is left to be spent.
pub(super) struct Steps(Cell<usize>);

impl Steps {
    pub(super) fn new() -> Self {
        Self(Cell::new(MAX_STEPS))
    }

    pub(super) fn spend(&self, count: usize) -> Result<(), Fail> {
        match self.0.get().checked_sub(count) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => {
                self.0.set(0);
                Err(Fail::TooMuch)
            }
        }
    }

    pub(super) fn spend_bytes(&self, len: usize) -> Result<(), Fail> {
        self.spend(len / BYTES)
    }
}

struct Machine<'a, 'f> {
    facts: &'f dyn Facts<'a>,
    steps: Steps,
    locals: Vec<Value<'a>>,
}

impl<'a> Machine<'a, '_> {
    fn value(&mut self, expr: &'a Expr) -> Evaluated<'a> {
        self.steps.spend(1)?;
        match &expr.kind {
            Kind::Literal(literal) => Ok(literal.into()),
            Kind::Name(_) => Err(Fail::Undeclared),
            Kind::Variable(at) => self.facts.variable(*at),
            Kind::Local(at) => match self.locals.get(*at) {
                Some(value) => Ok(value.clone()),
                None => Err(Fail::Undeclared),
            },
            Kind::Header(at) => self.facts.header(*at),
            Kind::HasHeader(at) => self.facts.has_header(*at).map(Value::Bool),
            Kind::Select(of, field) => match self.value(of)? {
                Value::Map(entries) => {
                    self.look_through(&entries)?;
                    entries.field(field).ok_or_else(|| Fail::NoKey(format!("`{field}`")))
                }
                _ => Err(Fail::Overload("a field")),
            },
            Kind::Has(of, field) => match self.value(of)? {
                Value::Map(entries) => {
                    self.look_through(&entries)?;
                    Ok(Value::Bool(entries.field(field).is_some()))
                }
                _ => Err(Fail::Overload("has")),
            },
            Kind::Call(function, arguments) => self.call(*function, arguments),
            Kind::Matches(text, pattern) => match self.value(text)? {
                Value::Text(text) => {
                    self.steps.spend(pattern.steps(&text))?;
                    Ok(Value::Bool(pattern.is_match(&text)))
                }
                _ => Err(Fail::Overload("matches")),
            },
            Kind::All(parts) => self.joined(parts.iter(), false),
            Kind::Any(parts) => self.joined(parts.iter(), true),
            Kind::Choice(parts) => {
                let [cond, yes, no] = &**parts;
                match self.value(cond)? {
                    Value::Bool(true) => self.value(yes),
                    Value::Bool(false) => self.value(no),
                    _ => Err(Fail::NotBool),
                }
            }
            Kind::List(items) => {
                let items: Result<Rc<[Value<'a>]>, Fail> =
                    items.iter().map(|item| self.value(item)).collect();
                Ok(Value::List(List::Items(items?)))
            }
            Kind::Map(entries) => {
                let mut out: Vec<(Value<'a>, Value<'a>)> = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    let (key, value) = (self.value(key)?, self.value(value)?);
                    if !matches!(key, Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Text(_)) {
                        return Err(Fail::Overload("a map"));
                    }
                    self.steps.spend(out.len() / 8)?;
                    if out.iter().any(|(known, _)| is_same_key(known, &key)) {
                        return Err(Fail::DuplicateKey);
                    }
                    out.push((key, value));
                }
                Ok(Value::Map(Entries::Items(out.into())))
            }
            Kind::Each(each) => self.each(each),
        }
    }

    /// A map that the expression made is a list of pairs.
    fn look_through(&self, entries: &Entries<'a>) -> Result<(), Fail> {
        match entries {
            Entries::Items(items) => self.steps.spend(items.len() / 8),
            Entries::Json(_) => Ok(()),
        }
    }

    fn call(&mut self, function: Function, arguments: &'a [Expr]) -> Evaluated<'a> {
        match arguments {
            [a] => {
                let a = self.value(a)?;
                functions::one(function, a, &self.steps)
            }
            [a, b] => {
                let (a, b) = (self.value(a)?, self.value(b)?);
                functions::two(function, a, b, &self.steps)
            }
            _ => Err(Fail::Overload(function.written())),
        }
    }

    /// `decides` decides alone, whatever fails beside it (CEL specification, "Logical Operators").
    fn joined(&mut self, parts: impl Iterator<Item = &'a Expr>, decides: bool) -> Evaluated<'a> {
        let mut failed = None;
        for part in parts {
            match self.value(part) {
                Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or(Some(Fail::NotBool)),
                Err(fail) => failed = failed.or(Some(fail)),
            }
        }
        failed.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn each(&mut self, each: &'a Each) -> Evaluated<'a> {
        let Each { what, over, name: _, test, body } = each;
        let elements = match self.value(over)? {
            Value::List(list) => list,
            Value::Map(entries) => {
                self.steps.spend(entries.len())?;
                List::Items(entries.keys().into())
            }
            _ => return Err(Fail::Overload("a macro")),
        };
        let (mut kept, mut count, mut failed) = (Vec::new(), 0_usize, None);
        for at in 0..elements.len() {
            self.steps.spend(1)?;
            let Some(element) = elements.at(at) else { break };
            self.locals.push(element.clone());
            let answer = self.element(*what, element, test.as_ref(), body);
            self.locals.pop();
            match (what, answer) {
                (Macro::All, Ok(Some(Value::Bool(false)))) => return Ok(Value::Bool(false)),
                (Macro::Exists, Ok(Some(Value::Bool(true)))) => return Ok(Value::Bool(true)),
                (Macro::All | Macro::Exists, Ok(Some(Value::Bool(_)))) => {}
                (Macro::All | Macro::Exists, Ok(_)) => failed = failed.or(Some(Fail::NotBool)),
                // Nothing that comes later can make up for it.
                (Macro::All | Macro::Exists, Err(Fail::TooMuch)) => return Err(Fail::TooMuch),
                (Macro::All | Macro::Exists, Err(fail)) => failed = failed.or(Some(fail)),
                (_, Err(fail)) => return Err(fail),
                (Macro::ExistsOne, Ok(Some(_))) => count += 1,
                (Macro::Map | Macro::Filter, Ok(Some(value))) => kept.push(value),
                (_, Ok(None)) => {}
            }
        }
        match (what, failed) {
            (_, Some(fail)) => Err(fail),
            (Macro::All, None) => Ok(Value::Bool(true)),
            (Macro::Exists, None) => Ok(Value::Bool(false)),
            (Macro::ExistsOne, None) => Ok(Value::Bool(count == 1)),
            (Macro::Map | Macro::Filter, None) => Ok(Value::List(List::Items(kept.into()))),
        }
    }

    /// What a macro makes of one element; `None`: nothing.
    fn element(
        &mut self,
        what: Macro,
        element: Value<'a>,
        test: Option<&'a Expr>,
        body: &'a Expr,
    ) -> Result<Option<Value<'a>>, Fail> {
        let holds = |value: Value<'a>| match value {
            Value::Bool(value) => Ok(value),
            _ => Err(Fail::NotBool),
        };
        if let Some(test) = test
            && !holds(self.value(test)?)?
        {
            return Ok(None);
        }
        let value = self.value(body)?;
        Ok(match what {
            Macro::All | Macro::Exists | Macro::Map => Some(value),
            Macro::ExistsOne | Macro::Filter => holds(value)?.then_some(element),
        })
    }
}
