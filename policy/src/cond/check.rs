//! Binds the names of an expression and looks at its types, as far as they are known before there are values.

use super::ast::{Each, Expr, Function, Kind, Literal, Macro, Mistake, Span};
use super::literals;
use super::regex::Pattern;
use super::types::{Type, result};
use crate::yaml;

/// Names of types, for `type(x) == int`.
const TYPES: [(&str, &str); 12] = [
    ("bool", "bool"),
    ("bytes", "bytes"),
    ("double", "double"),
    ("google.protobuf.Duration", "google.protobuf.Duration"),
    ("google.protobuf.Timestamp", "google.protobuf.Timestamp"),
    ("int", "int"),
    ("list", "list"),
    ("map", "map"),
    ("null_type", "null_type"),
    ("string", "string"),
    ("type", "type"),
    ("uint", "uint"),
];

/// What an expression may speak of.
pub(super) struct Environment<'e> {
    /// Names, possibly with dots, and their types.
    pub(super) variables: &'e [(&'e str, Type)],
    /// The variable of which single fields are named literally, if there is one.
    pub(super) headers: Option<&'e str>,
    /// Whether what can be seen to be wrong is a mistake; else it fails when it is evaluated.
    pub(super) strict: bool,
}

/// A bound expression.
pub(super) struct Bound {
    pub(super) expr: Expr,
    pub(super) result: Type,
    /// Header fields that it names, in lower case, each once, with where it is named first.
    pub(super) headers: Vec<(Box<str>, Span)>,
    /// Variables that it names.
    pub(super) variables: Vec<usize>,
}

pub(super) fn bind(mut expr: Expr, environment: &Environment<'_>) -> Result<Bound, Mistake> {
    let mut binder = Binder { environment, locals: Vec::new(), headers: Vec::new(), variables: Vec::new() };
    let result = binder.bind(&mut expr)?;
    let Binder { headers, mut variables, .. } = binder;
    variables.sort_unstable();
    variables.dedup();
    Ok(Bound { expr, result, headers, variables })
}

struct Binder<'e> {
    environment: &'e Environment<'e>,
    locals: Vec<(Box<str>, Type)>,
    headers: Vec<(Box<str>, Span)>,
    variables: Vec<usize>,
}

impl Binder<'_> {
    fn bind(&mut self, expr: &mut Expr) -> Result<Type, Mistake> {
        if let Some(found) = self.header(expr)? {
            return Ok(found);
        }
        if matches!(expr.kind, Kind::Name(_) | Kind::Select(..)) {
            return self.path(expr);
        }
        let at = expr.at;
        Ok(match &mut expr.kind {
            Kind::Literal(literal) => type_of(literal),
            Kind::Has(of, _) => {
                let of_type = self.bind(of)?;
                self.expect(
                    of_type,
                    &Type::Map(Box::new(Type::Text), Box::new(Type::Dyn)),
                    of.at,
                    "`has` asks for the field of a map",
                )?;
                Type::Bool
            }
            Kind::Call(Function::Matches, _) => return self.matches(expr),
            Kind::Call(function, arguments) => {
                let function = *function;
                let mut types = Vec::with_capacity(arguments.len());
                for argument in &mut *arguments {
                    types.push(self.bind(argument)?);
                }
                let found = self.call(function, &types, at)?;
                if self.environment.strict {
                    literals::check(function, arguments)?;
                }
                found
            }
            Kind::All(parts) | Kind::Any(parts) => {
                for part in parts {
                    let found = self.bind(part)?;
                    self.expect(found, &Type::Bool, part.at, "`&&` and `||` join what is true or false")?;
                }
                Type::Bool
            }
            Kind::Choice(parts) => {
                let [cond, yes, no] = &mut **parts;
                let found = self.bind(cond)?;
                self.expect(found, &Type::Bool, cond.at, "what stands before `?` is true or false")?;
                let (yes, no) = (self.bind(yes)?, self.bind(no)?);
                yes.join(&no)
            }
            Kind::List(items) => {
                let mut of = None::<Type>;
                for item in items {
                    let found = self.bind(item)?;
                    of = Some(of.map_or_else(|| found.clone(), |of| of.join(&found)));
                }
                Type::list(of.unwrap_or(Type::Dyn))
            }
            Kind::Map(entries) => {
                let mut of = None::<(Type, Type)>;
                for (key, value) in entries {
                    let found = (self.bind(key)?, self.bind(value)?);
                    if !matches!(found.0, Type::Dyn | Type::Text | Type::Int | Type::Uint | Type::Bool)
                        && self.environment.strict
                    {
                        return Err(Mistake::new(
                            key.at,
                            format!("a key is no {}", found.0),
                            "keys are strings, ints, uints or bools",
                        ));
                    }
                    of = Some(match of {
                        None => found,
                        Some((key, value)) => (key.join(&found.0), value.join(&found.1)),
                    });
                }
                let (key, value) = of.unwrap_or((Type::Dyn, Type::Dyn));
                Type::Map(Box::new(key), Box::new(value))
            }
            Kind::Each(each) => self.each(each)?,
            // Bound already: a tree is bound once.
            Kind::Variable(_) | Kind::Local(_) | Kind::Header(_) | Kind::HasHeader(_) | Kind::Matches(..) => {
                Type::Dyn
            }
            Kind::Name(_) | Kind::Select(..) => Type::Dyn,
        })
    }

    fn expect(&self, found: Type, wanted: &Type, at: Span, message: &str) -> Result<(), Mistake> {
        if wanted.meets(&found) || !self.environment.strict {
            return Ok(());
        }
        Err(Mistake::new(at, format!("{message}; this is {found}"), "compare it with something"))
    }

    fn call(&self, function: Function, types: &[Type], at: Span) -> Result<Type, Mistake> {
        match result(function, types) {
            Some(found) => Ok(found),
            None if !self.environment.strict => Ok(Type::Dyn),
            None => {
                let list: Vec<String> = types.iter().map(ToString::to_string).collect();
                let help = match (function, types) {
                    (Function::Equal | Function::Unequal | Function::In, [a, b]) => {
                        format!("{a} is never {b}: convert one of them, with string(x) or int(x) for example")
                    }
                    _ => "docs/conditions.md lists what functions take; int(x), double(x) and string(x) convert".to_owned(),
                };
                let message = format!("`{}` does not take {}", function.written(), list.join(" and "));
                Err(Mistake::new(at, message, help))
            }
        }
    }

    /// A pattern that comes with a request could be any: only one that is written here is taken.
    fn matches(&mut self, expr: &mut Expr) -> Result<Type, Mistake> {
        let at = expr.at;
        let Kind::Call(_, arguments) = &mut expr.kind else { return Ok(Type::Dyn) };
        let (Some(pattern), Some(text), true) = (arguments.pop(), arguments.pop(), arguments.is_empty())
        else {
            return Err(Mistake::new(
                at,
                "`matches` takes a text and a pattern",
                "write `x.matches(\"^a+$\")`",
            ));
        };
        let mut text = text;
        let found = self.bind(&mut text)?;
        let Kind::Literal(Literal::Text(literal)) = &pattern.kind else {
            let help = "write it in quotes; startsWith, endsWith and contains take any text";
            return Err(Mistake::new(pattern.at, "a pattern is written where it is used", help));
        };
        self.call(Function::Matches, &[found, Type::Text], at)?;
        let compiled = Pattern::new(literal).map_err(|error| {
            let error = yaml::printable(&error);
            Mistake::new(
                pattern.at,
                format!("this pattern is not taken: {error}"),
                "patterns are those of RE2, without classes of Unicode, and of bounded size",
            )
        })?;
        expr.kind = Kind::Matches(Box::new(text), compiled);
        Ok(Type::Bool)
    }

    fn each(&mut self, each: &mut Each) -> Result<Type, Mistake> {
        let Each { what, over, name, test, body } = each;
        let element = match self.bind(over)? {
            Type::List(of) => *of,
            Type::Map(key, _) => *key,
            Type::Dyn => Type::Dyn,
            found if self.environment.strict => {
                return Err(Mistake::new(
                    over.at,
                    format!("this is {found}, and has no elements"),
                    "write it behind a list or a map",
                ));
            }
            _ => Type::Dyn,
        };
        self.locals.push((name.clone(), element.clone()));
        let mut inner = || -> Result<Type, Mistake> {
            if let Some(test) = test {
                let found = self.bind(test)?;
                self.expect(found, &Type::Bool, test.at, "a condition is true or false")?;
            }
            let found = self.bind(body)?;
            if *what != Macro::Map {
                self.expect(found.clone(), &Type::Bool, body.at, "a condition is true or false")?;
            }
            Ok(found)
        };
        let found = inner();
        self.locals.pop();
        let found = found?;
        Ok(match what {
            Macro::All | Macro::Exists | Macro::ExistsOne => Type::Bool,
            Macro::Filter => Type::list(element),
            Macro::Map => Type::list(found),
        })
    }

    /// A name, or fields of one. The longest name that is known is meant.
    fn path(&mut self, expr: &mut Expr) -> Result<Type, Mistake> {
        let at = expr.at;
        if let Some(name) = dotted(expr)
            && let Some((kind, found)) = self.find(&name)
        {
            if let Kind::Variable(variable) = &kind {
                self.variables.push(*variable);
            }
            (expr.kind, expr.depth) = (kind, 1);
            return Ok(found);
        }
        let whole = dotted(expr);
        match &mut expr.kind {
            Kind::Select(of, field) => {
                if let Some(name) = whole
                    && !self.is_begun(&name)
                {
                    return Err(self.unknown(at, &name));
                }
                let found = self.bind(of)?;
                match found {
                    Type::Dyn => Ok(Type::Dyn),
                    Type::Map(_, value) => Ok(*value),
                    _ if !self.environment.strict => Ok(Type::Dyn),
                    found => Err(Mistake::new(
                        at,
                        format!("{found} has no field `{}`", yaml::printable(field)),
                        "leave it out",
                    )),
                }
            }
            Kind::Name(name) => Err(self.unknown(at, name)),
            _ => Ok(Type::Dyn),
        }
    }

    fn find(&self, name: &str) -> Option<(Kind, Type)> {
        // What a macro names hides everything of that name.
        let root = name.split('.').next().unwrap_or(name);
        if let Some(at) = self.locals.iter().rposition(|(local, _)| **local == *root) {
            return (root == name).then(|| (Kind::Local(at), self.locals[at].1.clone()));
        }
        if let Some(at) = self.environment.variables.iter().position(|(known, _)| *known == name) {
            return Some((Kind::Variable(at), self.environment.variables[at].1.clone()));
        }
        let (_, full) = TYPES.iter().find(|(known, _)| *known == name)?;
        Some((Kind::Literal(Literal::Type(full)), Type::Kind))
    }

    /// Whether something known stands at the beginning of `name`.
    fn is_begun(&self, name: &str) -> bool {
        name.match_indices('.').any(|(at, _)| self.find(&name[..at]).is_some())
    }

    fn unknown(&self, at: Span, name: &str) -> Mistake {
        let known: Vec<&str> = self
            .environment
            .variables
            .iter()
            .map(|(name, _)| *name)
            .chain(self.environment.headers)
            .chain(self.locals.iter().map(|(name, _)| &**name))
            .collect();
        Mistake::new(at, format!("unknown name `{}`", yaml::printable(name)), yaml::suggest(name, &known))
    }

    /// A header field, which is named literally: only fields that rules name are kept of a request.
    fn header(&mut self, expr: &mut Expr) -> Result<Option<Type>, Mistake> {
        let Some(headers) = self.environment.headers else { return Ok(None) };
        let hides = |(local, _): &(Box<str>, Type)| {
            headers.strip_prefix(&**local).is_some_and(|rest| rest.starts_with('.'))
        };
        if self.locals.iter().any(hides) {
            return Ok(None);
        }
        let is_headers = |expr: &Expr| dotted(expr).is_some_and(|name| name == headers);
        let (named, is_test) = match &expr.kind {
            Kind::Select(of, field) if is_headers(of) => (Some((field.clone(), expr.at)), false),
            Kind::Has(of, field) if is_headers(of) => (Some((field.clone(), expr.at)), true),
            Kind::Call(Function::Index, arguments) => match &arguments[..] {
                [of, key] if is_headers(of) => (literal(key), false),
                _ => return Ok(None),
            },
            Kind::Call(Function::In, arguments) => match &arguments[..] {
                [key, of] if is_headers(of) => (literal(key), true),
                _ => return Ok(None),
            },
            _ if is_headers(expr) => (None, false),
            _ => return Ok(None),
        };
        let Some((name, at)) = named else {
            return Err(Mistake::new(
                expr.at,
                "a header field is named literally: only fields that rules name are kept of a request",
                format!("write `{headers}[\"x-tenant\"]`, or `\"x-tenant\" in {headers}`"),
            ));
        };
        let index = match self.headers.iter().position(|(known, _)| *known == name) {
            Some(index) => index,
            None => {
                self.headers.push((name, at));
                self.headers.len() - 1
            }
        };
        expr.depth = 1;
        expr.kind = if is_test { Kind::HasHeader(index) } else { Kind::Header(index) };
        Ok(Some(if is_test { Type::Bool } else { Type::Text }))
    }
}

fn literal(key: &Expr) -> Option<(Box<str>, Span)> {
    match &key.kind {
        Kind::Literal(Literal::Text(text)) => Some(((&**text).into(), key.at)),
        _ => None,
    }
}

/// `a.b.c` as one name.
fn dotted(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Name(name) => Some(name.to_string()),
        Kind::Select(of, field) => dotted(of).map(|of| format!("{of}.{field}")),
        _ => None,
    }
}

fn type_of(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::Text(_) => Type::Text,
        Literal::Bytes(_) => Type::Bytes,
        Literal::Type(_) => Type::Kind,
    }
}
