//! `when`: one attribute and its values.

use super::super::doc::ConditionDoc;
use super::super::{Clause, Field, Test, TextPattern};
use super::Context;
use super::operation::port_test;
use super::source::{Kind, address_test, identity_test, no_remote_address, no_tokens};
use crate::check::{Page, field_name};
use crate::doc::{List, Sp};
use crate::yaml;

/// What the keys of `when` can be here.
const KEYS: [&str; 7] = [
    "request.headers[NAME]",
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.port",
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
        "connection.sni" => page.error_with(
            key.referenced,
            "rules do not know the name that TLS asked for here: the mesh's transport has none",
            "name the hosts with `hosts`, or the peer with `principals`",
        ),
        _ if text.starts_with("request.auth.") => no_tokens(page, key),
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

fn header(
    page: &mut Page<'_>,
    key: &Sp<String>,
    name: &str,
    (values, not): (Option<&List<String>>, Option<&List<String>>),
    clause: &mut Clause,
) {
    let name = name.to_ascii_lowercase();
    let pseudo = [(":authority", "hosts"), (":path", "paths"), (":method", "methods")];
    if let Some((_, field)) = pseudo.iter().find(|(pseudo, _)| *pseudo == name) {
        page.error_with(key.referenced, format!("`{name}` is no header field"), format!("write `{field}`"));
    } else {
        field_name(page, key.referenced, &name);
    }
    let mut all = |list: Option<&List<String>>| {
        let value = |text: &String| {
            let known = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            if text.is_empty() || text.len() > MAX_VALUE || !known || text.trim() != text {
                return Err(format!(
                    "a value has 1 to {MAX_VALUE} ASCII characters and no space at its ends"
                ));
            }
            Ok(TextPattern::new(text))
        };
        list.map(|list| page.each(list, "values", value)).unwrap_or_default()
    };
    let test = Test { values: all(values), not: all(not) };
    clause.fields.push(Field { name: name.into(), test });
}
