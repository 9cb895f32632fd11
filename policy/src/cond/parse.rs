//! From tokens to a tree, by descent (CEL specification, "Syntax").

use super::ast::{Expr, FUNCTIONS, Function, Kind, Literal, Mistake, Span, Style};
use super::lexer::{Token, tokens};
use super::macros::{MACROS, each_macro, has};
use crate::yaml;

/// An expression longer than this is a program.
pub(crate) const MAX_LEN: usize = 4_096;
/// Levels of an expression: reading and evaluating it recurse so deep.
const MAX_DEPTH: usize = 48;

/// Words that CEL keeps for itself.
const RESERVED: [&str; 20] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "null",
    "true",
];

pub(super) type Parsed = Result<Expr, Mistake>;

pub(super) fn parse(text: &str) -> Parsed {
    if text.len() > MAX_LEN {
        let at = Span { start: 0, end: 1 };
        return Err(Mistake::new(
            at,
            format!("an expression has at most {MAX_LEN} bytes; this one has {}", text.len()),
            "write several rules: alternatives are what lists of rules are for",
        ));
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let expr = parser.expr()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(parser.unexpected("nothing more, or an operator")),
    }
}

struct Parser<'s> {
    tokens: Vec<(Token<'s>, Span)>,
    at: usize,
    depth: usize,
}

fn too_deep(at: Span) -> Mistake {
    Mistake::new(at, format!("this is nested more than {MAX_DEPTH} deep"), "write several rules")
}

/// A part above its own parts.
pub(super) fn node(at: Span, kind: Kind) -> Parsed {
    let of = |exprs: &[Expr]| exprs.iter().map(|expr| expr.depth).max().unwrap_or(0);
    let below = match &kind {
        Kind::Literal(_) | Kind::Name(_) | Kind::Variable(_) | Kind::Local(_) => 0,
        Kind::Header(_) | Kind::HasHeader(_) => 0,
        Kind::Select(expr, _) | Kind::Has(expr, _) | Kind::Matches(expr, _) => expr.depth,
        Kind::Call(_, exprs) | Kind::All(exprs) | Kind::Any(exprs) | Kind::List(exprs) => of(exprs),
        Kind::Choice(exprs) => of(&exprs[..]),
        Kind::Map(entries) => {
            entries.iter().map(|(key, value)| key.depth.max(value.depth)).max().unwrap_or(0)
        }
        Kind::Each(each) => {
            let test = each.test.as_ref().map_or(0, |test| test.depth);
            each.over.depth.max(each.body.depth).max(test)
        }
    };
    if below >= MAX_DEPTH {
        return Err(too_deep(at));
    }
    Ok(Expr { at, depth: below + 1, kind })
}

impl<'s> Parser<'s> {
    fn peek(&self) -> &Token<'s> {
        // The last token is the end, which is never passed.
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn span(&self) -> Span {
        self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn last(&self) -> Span {
        self.tokens[self.at.saturating_sub(1)].1
    }

    fn take(&mut self) -> Token<'s> {
        let token = self.peek().clone();
        if token != Token::End {
            self.at += 1;
        }
        token
    }

    fn eat(&mut self, sign: &str) -> bool {
        let is = matches!(self.peek(), Token::Sign(found) if *found == sign);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, sign: &str) -> Result<(), Mistake> {
        if self.eat(sign) { Ok(()) } else { Err(self.unexpected(&format!("`{sign}`"))) }
    }

    fn unexpected(&self, wanted: &str) -> Mistake {
        let message = match self.peek() {
            Token::End => format!("the expression ends where {wanted} is missing"),
            _ => format!("{wanted} is expected here"),
        };
        Mistake::new(self.span(), message, "see docs/conditions.md")
    }

    fn expr(&mut self) -> Parsed {
        if self.depth >= MAX_DEPTH {
            return Err(too_deep(self.span()));
        }
        self.depth += 1;
        let out = self.choice();
        self.depth -= 1;
        out
    }

    fn choice(&mut self) -> Parsed {
        let cond = self.any()?;
        if !self.eat("?") {
            return Ok(cond);
        }
        let yes = self.any()?;
        self.expect(":")?;
        let no = self.expr()?;
        node(cond.at.to(no.at), Kind::Choice(Box::new([cond, yes, no])))
    }

    fn any(&mut self) -> Parsed {
        self.joined("||", Self::all, Kind::Any)
    }

    fn all(&mut self) -> Parsed {
        self.joined("&&", Self::relation, Kind::All)
    }

    fn joined(&mut self, sign: &str, part: fn(&mut Self) -> Parsed, kind: fn(Vec<Expr>) -> Kind) -> Parsed {
        let mut parts = vec![part(self)?];
        while self.eat(sign) {
            parts.push(part(self)?);
        }
        match (parts.pop(), parts.is_empty()) {
            (Some(only), true) => Ok(only),
            (last, _) => {
                parts.extend(last);
                let at = parts[0].at.to(parts[parts.len() - 1].at);
                node(at, kind(parts))
            }
        }
    }

    fn relation(&mut self) -> Parsed {
        const RELATIONS: [(&str, Function); 6] = [
            ("<=", Function::LessOrEqual),
            ("<", Function::Less),
            (">=", Function::GreaterOrEqual),
            (">", Function::Greater),
            ("==", Function::Equal),
            ("!=", Function::Unequal),
        ];
        let mut left = self.sum()?;
        loop {
            let function = if matches!(self.peek(), Token::Name("in")) {
                self.at += 1;
                Function::In
            } else {
                match RELATIONS.iter().find(|(sign, _)| self.eat(sign)) {
                    Some((_, function)) => *function,
                    None => return Ok(left),
                }
            };
            let right = self.sum()?;
            left = node(left.at.to(right.at), Kind::Call(function, vec![left, right]))?;
        }
    }

    fn sum(&mut self) -> Parsed {
        self.binary(&[("+", Function::Add), ("-", Function::Subtract)], Self::product)
    }

    fn product(&mut self) -> Parsed {
        let signs = [("*", Function::Multiply), ("/", Function::Divide), ("%", Function::Remainder)];
        self.binary(&signs, Self::unary)
    }

    fn binary(&mut self, signs: &[(&str, Function)], part: fn(&mut Self) -> Parsed) -> Parsed {
        let mut left = part(self)?;
        while let Some((_, function)) = signs.iter().find(|(sign, _)| self.eat(sign)) {
            let right = part(self)?;
            left = node(left.at.to(right.at), Kind::Call(*function, vec![left, right]))?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parsed {
        let start = self.span();
        for (sign, function) in [("!", Function::Not), ("-", Function::Negate)] {
            let mut count = 0_usize;
            while matches!(self.peek(), Token::Sign(found) if *found == sign) {
                // The sign of a number belongs to it: 2^63 exists only below zero.
                let next = self.tokens.get(self.at + 1).map(|(token, _)| token);
                if sign == "-" && matches!(next, Some(Token::Int(_) | Token::Double(_))) {
                    break;
                }
                self.at += 1;
                count += 1;
            }
            if count > 0 {
                let mut expr = self.member()?;
                for _ in 0..count {
                    expr = node(start.to(expr.at), Kind::Call(function, vec![expr]))?;
                }
                return Ok(expr);
            }
        }
        self.member()
    }

    fn member(&mut self) -> Parsed {
        let mut expr = self.primary()?;
        loop {
            if self.eat("[") {
                let index = self.expr()?;
                self.expect("]")?;
                let at = expr.at.to(self.last());
                expr = node(at, Kind::Call(Function::Index, vec![expr, index]))?;
            } else if self.eat(".") {
                let (Token::Name(name) | Token::Quoted(name)) = self.peek().clone() else {
                    return Err(self.unexpected("the name of a field"));
                };
                self.at += 1;
                let at = self.last();
                if self.eat("(") {
                    let arguments = self.list(")")?;
                    expr = self.call(name, at, Some(expr), arguments)?;
                } else {
                    expr = node(expr.at.to(at), Kind::Select(Box::new(expr), name.into()))?;
                }
            } else {
                return Ok(expr);
            }
        }
    }

    fn list(&mut self, close: &str) -> Result<Vec<Expr>, Mistake> {
        let mut out = Vec::new();
        loop {
            // A comma may stand before `]`, as in the specification.
            if (out.is_empty() || close == "]") && self.eat(close) {
                return Ok(out);
            }
            out.push(self.expr()?);
            if !self.eat(",") {
                self.expect(close)?;
                return Ok(out);
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.span();
        let literal = |literal: Literal| node(at, Kind::Literal(literal));
        let next = self.tokens.get(self.at + 1).map(|(token, _)| token);
        let is_negative = matches!(next, Some(Token::Int(_) | Token::Double(_))) && self.eat("-");
        let token = self.take();
        let at = at.to(self.last());
        match token {
            Token::Int(value) => {
                let int = match is_negative {
                    true => 0_i64.checked_sub_unsigned(value),
                    false => i64::try_from(value).ok(),
                };
                match int {
                    Some(int) => node(at, Kind::Literal(Literal::Int(int))),
                    None => Err(Mistake::new(
                        at,
                        "this number is too large",
                        "an int has 64 bits; write `u` behind a uint",
                    )),
                }
            }
            Token::Double(value) => {
                node(at, Kind::Literal(Literal::Double(if is_negative { -value } else { value })))
            }
            Token::Uint(value) => literal(Literal::Uint(value)),
            Token::Text(text) => literal(Literal::Text(text.into())),
            Token::Bytes(bytes) => literal(Literal::Bytes(bytes.into())),
            Token::Name("true") => literal(Literal::Bool(true)),
            Token::Name("false") => literal(Literal::Bool(false)),
            Token::Name("null") => literal(Literal::Null),
            Token::Name(name) => self.name(name, at),
            Token::Sign(".") => match self.take() {
                Token::Name(name) => self.name(name, at.to(self.last())),
                _ => Err(self.unexpected("a name")),
            },
            Token::Sign("(") => {
                let expr = self.expr()?;
                self.expect(")")?;
                Ok(expr)
            }
            Token::Sign("[") => {
                let items = self.list("]")?;
                node(at.to(self.last()), Kind::List(items))
            }
            Token::Sign("{") => {
                let mut entries = Vec::new();
                while !self.eat("}") {
                    let key = self.expr()?;
                    self.expect(":")?;
                    entries.push((key, self.expr()?));
                    if !self.eat(",") {
                        self.expect("}")?;
                        break;
                    }
                }
                node(at.to(self.last()), Kind::Map(entries))
            }
            Token::End => Err(self.unexpected("a value")),
            Token::Quoted(_) | Token::Sign(_) => {
                self.at -= 1;
                Err(self.unexpected("a value"))
            }
        }
    }

    fn name(&mut self, name: &str, at: Span) -> Parsed {
        if RESERVED.contains(&name) {
            return Err(Mistake::new(
                at,
                format!("`{name}` is a word of CEL itself"),
                "write text in quotes",
            ));
        }
        if self.eat("(") {
            let arguments = self.list(")")?;
            return self.call(name, at, None, arguments);
        }
        if matches!(self.peek(), Token::Sign("{")) {
            return Err(Mistake::new(at, "there are no messages here", "write a map: {\"key\": value}"));
        }
        node(at, Kind::Name(name.into()))
    }

    /// `at` is the function's name.
    fn call(&mut self, name: &str, at: Span, receiver: Option<Expr>, mut arguments: Vec<Expr>) -> Parsed {
        let whole = receiver.as_ref().map_or(at, |receiver| receiver.at).to(self.last());
        let receiver = match (name, receiver) {
            ("has", None) => return has(at, whole, arguments),
            (_, Some(receiver)) => match each_macro(name, at, whole, receiver, arguments)? {
                Ok(done) => return Ok(done),
                Err((receiver, given)) => {
                    arguments = given;
                    Some(receiver)
                }
            },
            (_, None) => None,
        };
        let found = FUNCTIONS.iter().find(|(known, ..)| *known == name);
        let Some((_, function, style)) = found else {
            let known: Vec<&str> =
                FUNCTIONS.iter().map(|(name, ..)| *name).chain(MACROS.map(|(name, _)| name)).collect();
            let help = yaml::nearest(name, &known)
                .unwrap_or_else(|| "docs/conditions.md lists the functions".to_owned());
            return Err(Mistake::new(at, format!("unknown function `{}`", yaml::printable(name)), help));
        };
        match (style, &receiver) {
            (Style::Member, None) => {
                return Err(Mistake::new(
                    at,
                    format!("`{name}` stands behind a value"),
                    format!("write `x.{name}(...)`"),
                ));
            }
            (Style::Free, Some(_)) => {
                return Err(Mistake::new(
                    at,
                    format!("`{name}` stands in front of its value"),
                    format!("write `{name}(x)`"),
                ));
            }
            _ => {}
        }
        let arguments: Vec<Expr> = receiver.into_iter().chain(arguments).collect();
        node(whole, Kind::Call(*function, arguments))
    }
}
