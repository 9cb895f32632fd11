//! `operation`: what.

use super::super::doc::OperationDoc;
use super::super::{Test, TextPattern, What};
use super::Context;
use crate::check::Page;
use crate::doc::{List, Sp};
use crate::norm::{CanonHost, is_token};
use crate::pattern::PathPattern;
use crate::yaml;

pub(super) fn what(page: &mut Page<'_>, entry: &Sp<OperationDoc>, context: &Context<'_>) -> What {
    let OperationDoc { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } =
        &entry.value;
    let lists = [hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths];
    if lists.iter().all(|list| list.is_none()) {
        page.error_with(
            entry.referenced,
            "`operation` is empty",
            "say what is meant, or leave `to` out to mean any operation",
        );
    }
    let mut what = What {
        hosts: Test { values: self::hosts(page, hosts.as_ref()), not: self::hosts(page, not_hosts.as_ref()) },
        methods: Test {
            values: self::methods(page, methods.as_ref()),
            not: self::methods(page, not_methods.as_ref()),
        },
        paths: Test {
            values: self::paths(page, paths.as_ref(), context),
            not: self::paths(page, not_paths.as_ref(), context),
        },
        ports: Vec::new(),
        sni: Vec::new(),
    };
    if ports.is_some() || not_ports.is_some() {
        what.ports.push(port_test(page, ports.as_ref(), not_ports.as_ref()));
    }
    what
}

pub(super) fn port_test(
    page: &mut Page<'_>,
    values: Option<&List<String>>,
    not: Option<&List<String>>,
) -> Test<u16> {
    let mut all = |list: Option<&List<String>>| {
        let port = |text: &String| match text.parse::<u16>() {
            // `u16::from_str` takes a leading '+'.
            Ok(port) if port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
            _ => Err((
                format!("`{}` is no port", yaml::printable(text)),
                "ports are numbers from 1 to 65535, in quotes",
            )),
        };
        list.map(|list| page.each(list, "ports", port)).unwrap_or_default()
    };
    Test { values: all(values), not: all(not) }
}

fn methods(page: &mut Page<'_>, list: Option<&List<String>>) -> Vec<TextPattern> {
    let method = |text: &String| {
        let plain = text.trim_matches('*');
        if text.is_empty() || text.len() > 64 || !plain.bytes().all(is_token) {
            return Err((
                format!("`{}` is not a method", yaml::printable(text)),
                "write a name such as `GET`, with a `*` at one end if need be",
            ));
        }
        Ok(TextPattern::new(text))
    };
    list.map(|list| page.each(list, "methods", method)).unwrap_or_default()
}

fn paths(page: &mut Page<'_>, list: Option<&List<String>>, context: &Context<'_>) -> Vec<PathPattern> {
    let Some(list) = list else { return Vec::new() };
    let mut out = Vec::with_capacity(list.value.len());
    for item in page.items(list, "paths") {
        match PathPattern::parse_istio(&item.value, context.rules.widest) {
            Ok(pattern) => {
                let literal = matches!(&pattern, PathPattern::Exact(path) if path.contains('*'));
                if literal {
                    page.warn(
                        item.referenced,
                        "a star in the middle of a path is only a star, as in Istio",
                        "write `{*}` for one segment, or `{**}` for any number of them",
                    );
                }
                out.push(pattern);
            }
            Err(error) => match error.text() {
                (message, Some(help)) => page.error_with(item.referenced, message, help),
                (message, None) => page.error(item.referenced, message),
            },
        }
    }
    out
}

/// In lower case, as Istio compares them.
fn hosts(page: &mut Page<'_>, list: Option<&List<String>>) -> Vec<TextPattern> {
    /// A name, a port and a star.
    const LONGEST: usize = 270;
    let Some(list) = list else { return Vec::new() };
    let mut out = Vec::with_capacity(list.value.len());
    for item in page.items(list, "hosts") {
        let text = item.value.to_ascii_lowercase();
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:[]*".contains(&byte);
        if text.is_empty() || text.len() > LONGEST || !text.bytes().all(known) {
            page.error_with(
                item.referenced,
                format!("no request has the host `{}`", yaml::printable(&item.value)),
                "a host is a name or an address, with a port behind it or not: `shop.example`, `shop.example:8080`, `*.example`",
            );
            continue;
        }
        let pattern = TextPattern::new(&text);
        if let TextPattern::Exact(exact) = &pattern {
            let canonical = CanonHost::parse(exact).map(|host| host.to_string());
            if canonical.as_deref() != Ok(exact) {
                let help = match canonical {
                    Ok(canonical) => format!("write `{canonical}`"),
                    Err(error) => error.to_string(),
                };
                page.error_with(
                    item.referenced,
                    "this host is not in the form in which requests are judged",
                    help,
                );
            }
        }
        out.push(pattern);
    }
    out
}
