//! Expressions as trees.

use std::sync::Arc;

use super::regex::Pattern;

/// Bytes of the expression's text.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(super) fn to(self, other: Self) -> Self {
        Self { start: self.start, end: other.end.max(self.start) }
    }
}

/// What is wrong with an expression, where, and the way out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mistake {
    pub(crate) at: Span,
    pub(crate) message: String,
    pub(crate) help: String,
}

impl Mistake {
    pub(super) fn new(at: Span, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { at, message: message.into(), help: help.into() }
    }
}

/// A part of an expression.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) at: Span,
    /// Levels below and including it: evaluation recurses so deep.
    pub(super) depth: usize,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Literal(Literal),
    /// A name that is not bound yet.
    Name(Box<str>),
    /// A name that stands for the n-th variable of the environment.
    Variable(usize),
    /// A name that a macro introduced, by its place on the stack.
    Local(usize),
    /// A header field by its place in the list of those that the expression names.
    Header(usize),
    HasHeader(usize),
    Select(Box<Expr>, Box<str>),
    /// `has(e.f)`.
    Has(Box<Expr>, Box<str>),
    /// Operators and functions; a receiver comes first.
    Call(Function, Vec<Expr>),
    /// `matches` with a pattern that is known when the expression is read.
    Matches(Box<Expr>, Pattern),
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Choice(Box<[Expr; 3]>),
    List(Vec<Expr>),
    Map(Vec<(Expr, Expr)>),
    Each(Box<Each>),
}

#[derive(Clone, Debug)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    Type(&'static str),
}

/// A macro that looks at every element.
#[derive(Debug)]
pub(super) struct Each {
    pub(super) what: Macro,
    pub(super) over: Expr,
    pub(super) name: Box<str>,
    /// For `filter`, and for `map` with three arguments.
    pub(super) test: Option<Expr>,
    pub(super) body: Expr,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Macro {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Function {
    Not,
    Negate,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Index,
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Matches,
    LowerAscii,
    UpperAscii,
    ToInt,
    ToUint,
    ToDouble,
    ToText,
    ToBytes,
    ToBool,
    ToDyn,
    TypeOf,
    ToTimestamp,
    ToDuration,
    Get(Part),
}

/// Parts of a point in time, or of a length of time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    FullYear,
    Month,
    DayOfYear,
    DayOfMonth,
    Date,
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

/// How a function can be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Style {
    /// `f(x)`.
    Free,
    /// `x.f()`.
    Member,
    Both,
}

/// The functions by their names.
pub(super) const FUNCTIONS: [(&str, Function, Style); 27] = [
    ("bool", Function::ToBool, Style::Free),
    ("bytes", Function::ToBytes, Style::Free),
    ("contains", Function::Contains, Style::Member),
    ("double", Function::ToDouble, Style::Free),
    ("duration", Function::ToDuration, Style::Free),
    ("dyn", Function::ToDyn, Style::Free),
    ("endsWith", Function::EndsWith, Style::Member),
    ("getDate", Function::Get(Part::Date), Style::Member),
    ("getDayOfMonth", Function::Get(Part::DayOfMonth), Style::Member),
    ("getDayOfWeek", Function::Get(Part::DayOfWeek), Style::Member),
    ("getDayOfYear", Function::Get(Part::DayOfYear), Style::Member),
    ("getFullYear", Function::Get(Part::FullYear), Style::Member),
    ("getHours", Function::Get(Part::Hours), Style::Member),
    ("getMilliseconds", Function::Get(Part::Milliseconds), Style::Member),
    ("getMinutes", Function::Get(Part::Minutes), Style::Member),
    ("getMonth", Function::Get(Part::Month), Style::Member),
    ("getSeconds", Function::Get(Part::Seconds), Style::Member),
    ("int", Function::ToInt, Style::Free),
    ("lowerAscii", Function::LowerAscii, Style::Member),
    ("matches", Function::Matches, Style::Both),
    ("size", Function::Size, Style::Both),
    ("startsWith", Function::StartsWith, Style::Member),
    ("string", Function::ToText, Style::Free),
    ("timestamp", Function::ToTimestamp, Style::Free),
    ("type", Function::TypeOf, Style::Free),
    ("uint", Function::ToUint, Style::Free),
    ("upperAscii", Function::UpperAscii, Style::Member),
];

impl Function {
    /// How people write it.
    pub(super) fn written(self) -> &'static str {
        match self {
            Self::Not => "!",
            Self::Negate | Self::Subtract => "-",
            Self::Add => "+",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
            Self::Equal => "==",
            Self::Unequal => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::In => "in",
            Self::Index => "[]",
            named => {
                FUNCTIONS.iter().find(|(_, function, _)| *function == named).map_or("?", |(name, ..)| name)
            }
        }
    }
}
