//! One value in JavaScript's notation, which is JSON with names that are not quoted and more kinds of quotes.

use serde_json::{Map, Value as Json};

/// The value that a module exports.
pub(super) fn module(text: &str) -> Option<Json> {
    let (_, value) = text.split_once("export const tests = ")?;
    Reader { rest: value }.value()
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn eat(&mut self, sign: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self) -> Option<Json> {
        self.rest = self.rest.trim_start();
        let first = self.rest.chars().next()?;
        if first == '{' {
            let mut out = Map::new();
            self.eat('{');
            while !self.eat('}') {
                self.rest = self.rest.trim_start();
                let key = if self.rest.starts_with(['"', '\'', '`']) {
                    self.text()?
                } else {
                    self.word().to_owned()
                };
                self.eat(':').then_some(())?;
                out.insert(key, self.value()?);
                self.eat(',');
            }
            return Some(Json::Object(out));
        }
        if first == '[' {
            let mut out = Vec::new();
            self.eat('[');
            while !self.eat(']') {
                out.push(self.value()?);
                self.eat(',');
            }
            return Some(Json::Array(out));
        }
        if matches!(first, '"' | '\'' | '`') {
            return self.text().map(Json::String);
        }
        let word = self.word();
        // To the nearest double, which serde_json does not promise.
        match word.parse::<f64>() {
            Ok(double) if word.contains(['.', 'e', 'E']) => Some(double.into()),
            _ => serde_json::from_str(word).ok(),
        }
    }

    fn word(&mut self) -> &str {
        let len = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && !"_$.+-".contains(c))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(len);
        self.rest = rest;
        word
    }

    fn text(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut chars = self.rest[1..].char_indices();
        let mut units: Vec<u16> = Vec::new();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.rest = &self.rest[at + 2..];
                return String::from_utf16(&units).ok();
            }
            if c != '\\' {
                push(&mut units, c);
                continue;
            }
            let (_, escape) = chars.next()?;
            match escape {
                'n' => push(&mut units, '\n'),
                'r' => push(&mut units, '\r'),
                't' => push(&mut units, '\t'),
                'b' => push(&mut units, '\u{8}'),
                'f' => push(&mut units, '\u{c}'),
                'v' => push(&mut units, '\u{b}'),
                '0' => push(&mut units, '\0'),
                'x' | 'u' => {
                    let count = if escape == 'x' { 2 } else { 4 };
                    let digits: String = chars.by_ref().take(count).map(|(_, digit)| digit).collect();
                    units.push(u16::from_str_radix(&digits, 16).ok()?);
                }
                other => push(&mut units, other),
            }
        }
        None
    }
}

fn push(units: &mut Vec<u16>, c: char) {
    units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
}

/// Standard base64, with padding or without.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let digit = DIGITS.iter().position(|digit| *digit == byte)?;
        bits = bits << 6 | u32::try_from(digit).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(out)
}
