//! The narrowest alternative that would allow a request, as it is written in a document.

use std::net::IpAddr;

use crate::norm::{CanonHost, CanonMethod};
use crate::verdict::{Operation, Source};

/// An alternative to be written into a rule, with what has to be said before and after.
pub(super) struct Alternative {
    text: String,
    before: &'static str,
    after: &'static str,
}

impl Alternative {
    /// The change that adds it to a list that is there.
    pub(super) fn added_to(&self, list: &str) -> String {
        let Self { text, before, after } = self;
        format!("{before}add an alternative `{text}` to `{list}`{after}")
    }

    /// The change where the rule has no such list: one that is not there means more than any that is. The copy says what it
    /// must in each list that does not match, for the rule itself means more than this request.
    pub(super) fn copied(from: Option<&Self>, to: Option<&Self>) -> String {
        let lists = [("from", from), ("to", to)];
        let lists = || lists.iter().filter_map(|(list, alternative)| Some((list, (*alternative)?)));
        let texts: Vec<String> =
            lists().map(|(list, Self { text, .. })| format!("`{list}: [{text}]`")).collect();
        let before: String = lists().map(|(_, alternative)| alternative.before).collect();
        let after: String = lists().map(|(_, alternative)| alternative.after).collect();
        format!("{before}add a copy of it under another name with {}{after}", texts.join(" and "))
    }
}

/// The alternative of `from` that means this peer and nobody else.
pub(super) fn from_alternative(source: Source<'_>, with_token: bool) -> Alternative {
    let address = source.address.to_canonical();
    let (text, before) = match source.identity {
        Some(id) => (format!("{{spiffe: [\"{id}\"]}}"), ""),
        None => (format!("{{unauthenticated: true, cidrs: [\"{address}\"]}}"), "call through a sidecar, or "),
    };
    // Without it the alternative would open more than the rule does.
    let after = if with_token { ", with the same demands on tokens (`jwt`)" } else { "" };
    Alternative { text, before, after }
}

/// The narrowest alternative of `to` that covers this operation; `paths` is `None` if no rule can name one of them.
pub(super) fn to_alternative(port: u16, operation: Operation<'_>, paths: Option<&[&str]>) -> Alternative {
    let (text, after) = match (operation, paths) {
        (Operation::Tcp, _) => {
            (format!("{{ports: [{port}]}}"), "; that allows every HTTP request on this port too")
        }
        (Operation::Tls { sni: Some(name) }, _) => {
            (format!("{{sni: [\"{}\"], ports: [{port}]}}", name.name()), "")
        }
        (Operation::Tls { sni: None }, _) => (
            format!("{{ports: [{port}]}}"),
            "; that allows every connection to this port, for this one asks for no server name",
        ),
        (Operation::Http { method, .. }, paths) => {
            let method = self::method(method);
            let mut fields = Vec::new();
            fields.extend(method.as_ref().map(|method| format!("methods: [{method}], ")));
            fields.extend(paths.map(|paths| {
                let paths: Vec<String> = paths.iter().map(|path| format!("\"{path}\"")).collect();
                format!("paths: [{}], ", paths.join(", "))
            }));
            let after = match (method, paths) {
                (Some(_), Some(_)) => "",
                (Some(_), None) => "; that allows every path, for no rule can name this one",
                (None, Some(_)) => "; that allows every method, for no rule can name this one",
                (None, None) => "; that allows every method and path, for no rule can name these",
            };
            (format!("{{{}ports: [{port}]}}", fields.concat()), after)
        }
    };
    Alternative { text, before: "", after }
}

/// A method as it is written in a list of them; `None` if no rule can name it: `*` is every method to them.
pub(super) fn method(method: &CanonMethod) -> Option<String> {
    let text = method.as_str();
    (text != "*").then(|| self::text(text))
}

/// A host as an item of a list of them: an address of IPv6 stands in brackets there.
pub(super) fn host(host: &CanonHost) -> String {
    match host.address() {
        Some(IpAddr::V6(address)) => format!("\"[{address}]\""),
        _ => text(host.name()),
    }
}

/// A text as an item of a list in brackets: in quotes where YAML would read something else in it.
pub(super) fn text(text: &str) -> String {
    const WORDS: [&str; 9] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-;=@%~!$&()+".contains(c))
        // Digits in front are a number to somebody (`1e3`, `0x1f`, `1_000`), or a date.
        && (!text.starts_with(|c: char| c.is_ascii_digit()) || text.split('.').count() == 4)
        && !WORDS.contains(&&*text.to_ascii_lowercase());
    if is_plain {
        text.to_owned()
    } else {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_yaml_would_read_otherwise_stands_in_quotes() {
        for plain in ["GET", "M-SEARCH", "/a;b=c", "shop/web", "orders.shop", "10.0.0.1", "spdy/3.1"] {
            assert_eq!(text(plain), plain);
        }
        for quoted in [
            "NULL", "null", "*", "~", "No", "&a", "!x", "1E3", "0x1F", "/a,b", "/a:", "::1", "fd00::1", ".5",
            "-", "'a",
        ] {
            assert_eq!(text(quoted), format!("\"{quoted}\""));
        }
        let of = |text: &str| method(&CanonMethod::parse(text).unwrap());
        assert_eq!((of("GET"), of("NULL")), (Some("GET".to_owned()), Some("\"NULL\"".to_owned())));
        assert_eq!(of("*"), None);
        assert_eq!(of("purge"), Some("purge".to_owned()));
    }
}
