//! `when`: one attribute and its values.

use super::super::doc::ConditionDoc;
use super::super::{Clause, Field, Test, TextPattern};
use super::Context;
use super::operation::port_test;
use super::source::{Kind, Pair, address_test, identity_test, no_remote_address};
use super::token;
use crate::check::{Page, field_name};
use crate::doc::{List, Sp};
use crate::yaml;

/// What the keys of `when` can be here.
const KEYS: [&str; 12] = [
    "request.headers[NAME]",
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.port",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[NAME]",
    "connection.sni",
];
/// Longer ones are no value that a person wrote.
const MAX_VALUE: usize = 1_024;

pub(super) fn condition(
    page: &mut Page<'_>,
    entry: &Sp<ConditionDoc>,
    context: &Context<'_>,
    clause: &mut Clause,
) {
    let ConditionDoc { key, values, not_values } = &entry.value;
    let pair = (values.as_ref(), not_values.as_ref());
    if values.is_none() && not_values.is_none() {
        page.error_with(entry.referenced, "this condition asks for nothing", "write `values` or `notValues`");
    }
    let text = key.value.as_str();
    let mut identity = |page: &mut Page<'_>, kind: Kind| {
        let test = identity_test(page, pair, kind, context);
        for who in &mut clause.from {
            who.identities.push(test.clone());
        }
    };
    match text {
        "source.principal" => identity(page, Kind::Principal),
        "source.namespace" => identity(page, Kind::Namespace),
        "source.serviceAccount" => identity(page, Kind::Account),
        "source.trustDomain" => identity(page, Kind::TrustDomain),
        "source.ip" => {
            let test = address_test(page, pair);
            for who in &mut clause.from {
                who.addresses.push(test.clone());
            }
        }
        "destination.port" => {
            let test = port_test(page, pair.0, pair.1);
            for what in &mut clause.to {
                what.ports.push(test.clone());
            }
        }
        "remote.ip" => no_remote_address(page, key),
        "destination.ip" => page.error_with(
            key.referenced,
            "rules do not know the workload's address here",
            "select the workload by its labels, or name its port with `destination.port`",
        ),
        "connection.sni" => {
            let test = Test { values: names(page, pair.0), not: names(page, pair.1) };
            for what in &mut clause.to {
                what.sni.push(test.clone());
            }
        }
        _ if text.starts_with("request.auth.") => {
            let Some(test) = token::attribute(page, key, pair, context) else { return };
            for who in &mut clause.from {
                who.tokens.push(test.clone());
            }
        }
        _ if text.starts_with("experimental.envoy.filters.") => page.error_with(
            key.referenced,
            "there are no filters of Envoy here",
            "say it by what the filter has read, if rules know it",
        ),
        _ => match text.strip_prefix("request.headers[").and_then(|name| name.strip_suffix(']')) {
            Some(name) => header(page, key, name, pair, clause),
            None => page.error_with(
                key.referenced,
                format!("unknown attribute `{}`", yaml::printable(text)),
                yaml::suggest(text, &KEYS),
            ),
        },
    }
}

fn header(page: &mut Page<'_>, key: &Sp<String>, name: &str, (values, not): Pair<'_>, clause: &mut Clause) {
    let name = name.to_ascii_lowercase();
    let pseudo = [(":authority", "hosts"), (":path", "paths"), (":method", "methods")];
    if let Some((_, field)) = pseudo.iter().find(|(pseudo, _)| *pseudo == name) {
        page.error_with(key.referenced, format!("`{name}` is no header field"), format!("write `{field}`"));
    } else {
        field_name(page, key.referenced, &name);
    }
    let test = Test { values: texts(page, values), not: texts(page, not) };
    clause.fields.push(Field { name: name.into(), test });
}

/// Values that are texts.
pub(super) fn texts(page: &mut Page<'_>, list: Option<&List<String>>) -> Vec<TextPattern> {
    let value = |text: &String| {
        let known = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if text.is_empty() || text.len() > MAX_VALUE || !known || text.trim() != text {
            return Err(format!("a value has 1 to {MAX_VALUE} ASCII characters and no space at its ends"));
        }
        Ok(TextPattern::new(text))
    };
    list.map(|list| page.each(list, "values", value)).unwrap_or_default()
}

/// Server names, in lower case: TLS compares them so.
fn names(page: &mut Page<'_>, list: Option<&List<String>>) -> Vec<TextPattern> {
    let name = |text: &String| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte);
        if text.is_empty() || text.len() > 253 || !text.bytes().all(known) || text.ends_with('.') {
            return Err((
                format!("`{}` is no server name", yaml::printable(text)),
                "write a name without a port, with a `*` at one end or not: `db.example`, `*.example`",
            ));
        }
        Ok(TextPattern::new(&text.to_ascii_lowercase()))
    };
    list.map(|list| page.each(list, "values", name)).unwrap_or_default()
}
