//! What looks like a call and is none: `has`, and the macros that look at every element (CEL specification, "Macros").

use super::ast::{Each, Expr, Kind, Macro, Mistake, Span};
use super::parse::{Parsed, node};

pub(super) const MACROS: [(&str, Macro); 6] = [
    ("all", Macro::All),
    ("exists", Macro::Exists),
    ("exists_one", Macro::ExistsOne),
    ("existsOne", Macro::ExistsOne),
    ("filter", Macro::Filter),
    ("map", Macro::Map),
];

pub(super) fn has(at: Span, whole: Span, arguments: Vec<Expr>) -> Parsed {
    let mut arguments = arguments.into_iter();
    match (arguments.next().map(|expr| expr.kind), arguments.next()) {
        (Some(Kind::Select(expr, field)), None) => node(whole, Kind::Has(expr, field)),
        _ => Err(Mistake::new(at, "`has` asks for a field", "write `has(jwt.tenant)`")),
    }
}

/// The inner error gives back what is no macro.
pub(super) fn each_macro(
    name: &str,
    at: Span,
    whole: Span,
    over: Expr,
    arguments: Vec<Expr>,
) -> Result<Result<Expr, (Expr, Vec<Expr>)>, Mistake> {
    let Some((_, what)) = MACROS.iter().find(|(known, _)| *known == name) else {
        return Ok(Err((over, arguments)));
    };
    let wrong = |message: &str| Mistake::new(at, message.to_owned(), format!("write `list.{name}(x, ...)`"));
    let count = arguments.len();
    let mut arguments = arguments.into_iter();
    let (variable, first, second) = (arguments.next(), arguments.next(), arguments.next());
    let (Some(variable), Some(first)) = (variable, first) else {
        return Err(wrong("a name for each element and a condition are missing"));
    };
    let Kind::Name(variable) = variable.kind else {
        return Err(wrong("the first argument is a name for each element"));
    };
    let (test, body) = match (what, second, count) {
        (Macro::Map, Some(body), 3) => (Some(first), body),
        (_, None, 2) => (None, first),
        _ => return Err(wrong("these are too many arguments")),
    };
    let each = Each { what: *what, over, name: variable, test, body };
    node(whole, Kind::Each(Box::new(each))).map(Ok)
}
