//! From text to tokens (CEL specification, "Syntax").

use super::ast::{Mistake, Span};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'s> {
    Name(&'s str),
    /// In backquotes: a field whose name is no word.
    Quoted(&'s str),
    /// Without its sign: up to 2^63.
    Int(u64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Sign(&'static str),
    End,
}

const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "(", ")", "[", "]", "{", "}", ",", ".", ":", "?", "+", "-", "*", "/",
    "%", "<", ">", "!",
];

/// All tokens, with where they stand; the last is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<(Token<'_>, Span)>, Mistake> {
    let mut lexer = Lexer { text, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip_space();
        let start = lexer.at;
        let token = lexer.token()?;
        let is_end = token == Token::End;
        out.push((token, Span { start, end: lexer.at }));
        if is_end {
            return Ok(out);
        }
    }
}

struct Lexer<'s> {
    text: &'s str,
    at: usize,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn mistake(&self, start: usize, message: &str, help: &str) -> Mistake {
        Mistake::new(Span { start, end: self.at.max(start + 1) }, message, help)
    }

    fn skip_space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn token(&mut self) -> Result<Token<'s>, Mistake> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        let digit_after_dot = rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        if first.is_ascii_digit() || (first == '.' && digit_after_dot) {
            return self.number();
        }
        if first == '"' || first == '\'' {
            return self.string(false, false);
        }
        if first == '`' {
            return self.backquoted();
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let len = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
            let word = &rest[..len];
            if rest[len..].starts_with(['"', '\'']) {
                let lower = word.to_ascii_lowercase();
                if matches!(lower.as_str(), "r" | "b" | "rb" | "br") {
                    self.at += len;
                    return self.string(lower.contains('r'), lower.contains('b'));
                }
            }
            self.at += len;
            return Ok(Token::Name(word));
        }
        match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => {
                self.at += sign.len();
                Ok(Token::Sign(sign))
            }
            None => {
                let (start, len) = (self.at, first.len_utf8());
                self.at += len;
                let help = match first {
                    '&' => "write `&&`",
                    '|' => "write `||`",
                    '=' => "write `==`",
                    _ => "write text in quotes",
                };
                let shown = if first.is_control() { '\u{fffd}' } else { first };
                Err(self.mistake(start, &format!("`{shown}` has no meaning here"), help))
            }
        }
    }

    fn number(&mut self) -> Result<Token<'s>, Mistake> {
        let start = self.at;
        let rest = self.rest();
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (token, len) = if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let len = hex.bytes().take_while(u8::is_ascii_hexdigit).count();
            (u64::from_str_radix(&hex[..len], 16).ok().map(Token::Int), len + 2)
        } else {
            let mut len = digits(rest);
            let mut is_double = false;
            if rest[len..].starts_with('.') && digits(&rest[len + 1..]) > 0 {
                len += 1 + digits(&rest[len + 1..]);
                is_double = true;
            }
            if rest[len..].starts_with(['e', 'E']) {
                let sign = usize::from(rest[len + 1..].starts_with(['+', '-']));
                let exponent = digits(&rest[len + 1 + sign..]);
                if exponent > 0 {
                    len += 1 + sign + exponent;
                    is_double = true;
                }
            }
            let token = if is_double {
                rest[..len].parse().ok().map(Token::Double)
            } else {
                rest[..len].parse().ok().map(Token::Int)
            };
            (token, len)
        };
        self.at += len;
        let token = match token {
            Some(Token::Int(value)) if self.rest().starts_with(['u', 'U']) => {
                self.at += 1;
                Some(Token::Uint(value))
            }
            token => token,
        };
        if self.peek().is_some_and(|next| next.is_ascii_alphanumeric() || next == '_') {
            self.at += 1;
            return Err(self.mistake(start, "this is not a number", "write text in quotes"));
        }
        token.ok_or_else(|| self.mistake(start, "this number is too large", "numbers have 64 bits"))
    }

    fn backquoted(&mut self) -> Result<Token<'s>, Mistake> {
        let start = self.at;
        let inner = &self.rest()[1..];
        let name = inner.split('`').next().unwrap_or_default();
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/ ".contains(&byte);
        if name.len() == inner.len() || name.is_empty() || !name.bytes().all(good) {
            self.at += 1;
            return Err(self.mistake(start, "this is not the name of a field", "write it as `[\"name\"]`"));
        }
        self.at += name.len() + 2;
        Ok(Token::Quoted(name))
    }

    /// Behind the prefix.
    fn string(&mut self, raw: bool, bytes: bool) -> Result<Token<'s>, Mistake> {
        let start = self.at;
        let rest = self.rest();
        let quote = &rest[..1];
        let triple = rest.starts_with(&quote.repeat(3));
        let close = if triple { quote.repeat(3) } else { quote.to_owned() };
        self.at += close.len();
        let mut out = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(&close) {
                self.at += close.len();
                break;
            }
            let next = rest.chars().next().filter(|next| triple || !matches!(next, '\n' | '\r'));
            let Some(next) = next else {
                return Err(Mistake::new(
                    Span { start, end: start + 1 },
                    "this text has no end",
                    "close it with the quote that opens it",
                ));
            };
            if next == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else {
                self.at += next.len_utf8();
                out.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(Token::Bytes(out));
        }
        match String::from_utf8(out) {
            Ok(text) => Ok(Token::Text(text)),
            Err(_) => Err(self.mistake(start, "this text is not UTF-8", "write it as bytes: b\"...\"")),
        }
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), Mistake> {
        let start = self.at;
        let rest = self.rest();
        let letter = rest.as_bytes().get(1).copied().unwrap_or(0);
        let simple = match letter {
            b'a' => Some(7),
            b'b' => Some(8),
            b'f' => Some(12),
            b'n' => Some(b'\n'),
            b'r' => Some(b'\r'),
            b't' => Some(b'\t'),
            b'v' => Some(11),
            b'\\' | b'?' | b'"' | b'\'' | b'`' => Some(letter),
            _ => None,
        };
        if let Some(byte) = simple {
            self.at += 2;
            out.push(byte);
            return Ok(());
        }
        let (skip, len, radix) = match letter {
            b'x' | b'X' => (2, 2, 16),
            b'u' if !bytes => (2, 4, 16),
            b'U' if !bytes => (2, 8, 16),
            b'0'..=b'3' => (1, 3, 8),
            _ => (0, 0, 0),
        };
        let digits = rest.get(skip..skip + len).filter(|_| len > 0);
        let digits = digits.filter(|digits| digits.chars().all(|digit| digit.is_digit(radix)));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, radix).ok());
        let written = match (code, bytes) {
            (Some(code), true) => u8::try_from(code).ok().map(|byte| out.push(byte)),
            (Some(code), false) => char::from_u32(code)
                .map(|letter| out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes())),
            (None, _) => None,
        };
        self.at += skip + len;
        written.ok_or_else(|| {
            Mistake::new(
                Span { start, end: start + 2 },
                "this escape is not known",
                "write `\\\\` for a backslash, or the text as r\"...\"",
            )
        })
    }
}
