//! Literals that could be looked at before there is a request.

use super::ast::{Expr, Function, Kind, Literal, Mistake};
use super::eval::Steps;
use super::{functions, time};
use crate::yaml;

/// A literal that its function has no value for: the condition would be unknown for ever, and nobody would be told.
pub(super) fn check(function: Function, arguments: &[Expr]) -> Result<(), Mistake> {
    match (function, arguments) {
        (Function::Get(_), [_, zone]) => match &zone.kind {
            Kind::Literal(Literal::Text(name)) if !time::is_zone(name) => Err(Mistake::new(
                zone.at,
                format!("there is no time zone `{}`", yaml::printable(name)),
                "write a name of the IANA database, such as \"Europe/Oslo\", or an offset such as \"+01:00\"",
            )),
            _ => Ok(()),
        },
        (
            Function::ToInt
            | Function::ToUint
            | Function::ToDouble
            | Function::ToBool
            | Function::ToTimestamp
            | Function::ToDuration,
            [of],
        ) => match &of.kind {
            Kind::Literal(literal) if functions::one(function, literal.into(), &Steps::new()).is_err() => {
                let way_out = match function {
                    Function::ToTimestamp => "write it like \"2026-11-27T10:00:00Z\"",
                    Function::ToDuration => "write it like \"1h30m\", \"90s\" or \"500ms\"",
                    Function::ToBool => "write `true` or `false`",
                    _ => "write a number that fits, without quotes",
                };
                let message = format!("`{}` has no value for this one, whatever comes", function.written());
                Err(Mistake::new(of.at, message, way_out))
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}
