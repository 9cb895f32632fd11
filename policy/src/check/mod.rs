//! From documents as written to canonical rules, services and defaults; every mistake with its place.

mod access;
mod break_glass;
mod condition;
mod defaults;
mod egress;
mod egress_case;
mod expect;
mod invariant;
pub(crate) mod issuers;
mod jwt;
mod known;
mod limit;
mod opaque;
mod peer;
mod policy_test;
mod ports;
mod scalar;
mod service;
mod target;
mod when;

use crate::yaml::Location;

pub(crate) use access::{Policy, policy};
pub(crate) use defaults::{Settled, defaults};
pub(crate) use egress::{EgressPolicy, egress_policy};
pub(crate) use egress_case::CallOut;
pub(crate) use expect::{Beside, Expected, names_of_limits, names_of_rules};
pub(crate) use known::Known;
pub(crate) use limit::{LimitPolicy, limit_policy};
pub(crate) use peer::networks;
pub(crate) use policy_test::{Case, Request, Test, policy_test};
pub(crate) use ports::{Leads, NamedPorts};
pub(crate) use service::service;
pub(crate) use target::field_name;

use crate::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::doc::{List, Metadata, Sp};
use crate::issuers::Issuer;
use crate::norm::EscapedSlashes;
use crate::rule::OwnDomains;
use crate::text::Text;
use crate::yaml;

/// What holds for all documents of a set.
pub(crate) struct Rules<'a> {
    pub(crate) root_namespace: &'a str,
    pub(crate) domains: &'a OwnDomains,
    /// The mesh's default.
    pub(crate) slashes: EscapedSlashes,
    /// The mode that lets rules name most paths, of the default and those that Services' ports name.
    pub(crate) widest: EscapedSlashes,
    /// Who issues tokens.
    pub(crate) issuers: &'a [Issuer],
    /// Names of those that RequestAuthentications add, for some workloads.
    pub(crate) request_issuers: &'a [Box<str>],
}

/// What is wrong with a value, and the way out if there is one to tell.
pub(crate) struct Mistake(String, Option<String>);

impl From<String> for Mistake {
    fn from(what: String) -> Self {
        Self(what, None)
    }
}

impl<A: Into<String>, B: Into<String>> From<(A, B)> for Mistake {
    fn from((what, help): (A, B)) -> Self {
        Self(what.into(), Some(help.into()))
    }
}

/// The way out of port 0.
const NO_PORT: &str = "ports are numbers from 1 to 65535";

/// An id that is none.
fn no_spiffe_id(text: &str, error: impl std::fmt::Display) -> Mistake {
    let help = if text.contains('*') {
        "patterns are not known here: name each id, or write `namespaces` or `serviceAccounts`"
    } else {
        "write it like `spiffe://prod.example/ns/shop/sa/web`"
    };
    (format!("not a SPIFFE id: {error}"), help).into()
}

/// A trust domain that is none.
fn no_trust_domain(error: impl std::fmt::Display) -> Mistake {
    (format!("not a trust domain: {error}"), "write the name alone, like `prod.example`").into()
}

/// One document's place in the set, and the findings about it.
pub(crate) struct Page<'a> {
    pub(crate) text: &'a Text<'a>,
    pub(crate) first_line: usize,
    pub(crate) errors: Diagnostics,
    pub(crate) warnings: Diagnostics,
}

impl Page<'_> {
    pub(crate) fn error(&mut self, at: Location, message: impl Into<String>) {
        let found = finding(self.text, self.first_line, at, message);
        self.errors.add(found);
    }

    pub(crate) fn error_with(&mut self, at: Location, message: impl Into<String>, help: impl Into<String>) {
        let found = finding(self.text, self.first_line, at, message);
        self.errors.add(|| found().with_help(help));
    }

    pub(crate) fn warn(&mut self, at: Location, message: impl Into<String>, help: impl Into<String>) {
        let found = finding(self.text, self.first_line, at, message);
        self.warnings.add(|| found().with_help(help).warning());
    }

    /// An error at a place within a value, `len` characters long.
    fn error_at(&mut self, place: &Place, len: usize, message: String, help: String) {
        let text = self.text;
        self.errors.add(|| Diagnostic::at(place, text, len, message).with_help(help));
    }

    pub(crate) fn place(&self, at: Location) -> Place {
        yaml::place(&self.text.file, self.first_line, at)
    }

    /// A list that is written must hold something: `[]` has meant "nothing" to its writer and "anything" to engines
    /// (CVE-2025-64715).
    pub(crate) fn items<'d, T>(&mut self, list: &'d List<T>, field: &str) -> &'d [Sp<T>] {
        if list.value.is_empty() {
            self.error_with(
                list.referenced,
                format!("`{field}` is empty"),
                format!(
                    "an empty list could mean nothing or anything; name what you mean, or leave `{field}` out"
                ),
            );
        }
        &list.value
    }

    /// Parses each item of a list.
    pub(crate) fn each<T, U, E: Into<Mistake>>(
        &mut self,
        list: &List<T>,
        field: &str,
        parse: impl Fn(&T) -> Result<U, E>,
    ) -> Vec<U> {
        let mut out = Vec::with_capacity(list.value.len());
        for item in self.items(list, field) {
            match parse(&item.value) {
                Ok(value) => out.push(value),
                Err(mistake) => self.mistake(item.referenced, mistake),
            }
        }
        out
    }

    fn mistake(&mut self, at: Location, mistake: impl Into<Mistake>) {
        match mistake.into() {
            Mistake(what, Some(help)) => self.error_with(at, what, help),
            Mistake(what, None) => self.error(at, what),
        }
    }

    fn ports(&mut self, list: &List<u16>) -> Vec<u16> {
        self.each(list, "ports", |port| match port {
            0 => Err(("0 is no port", NO_PORT)),
            port => Ok(*port),
        })
    }

    /// One of several words.
    pub(crate) fn word<T: Copy>(&mut self, word: &Sp<String>, known: &[(&str, T)]) -> Option<T> {
        let found = known.iter().find(|(name, _)| *name == word.value).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.error_with(
                word.referenced,
                format!("unknown value `{}`", yaml::printable(&word.value)),
                yaml::suggest(&word.value, &names),
            );
        }
        found
    }

    /// Name and namespace, which become parts of ids, host names and logs.
    pub(crate) fn names(&mut self, metadata: &Metadata) {
        let Metadata { name, namespace, labels, annotations } = metadata;
        // For people and their tools: nothing here reads them.
        let _ = (labels, annotations);
        self.name(name);
        self.name(namespace);
    }

    /// The name of `what`, one line for people.
    fn title<'d>(&mut self, name: &'d Sp<String>, what: &str) -> &'d str {
        let line = name.value.trim();
        if line.is_empty() || line.chars().count() > 120 || line.chars().any(yaml::is_unseen) {
            self.error_with(
                name.referenced,
                format!("{what}'s name is one line of 1 to 120 characters"),
                "say in a few words what is shown",
            );
        }
        line
    }

    pub(crate) fn name(&mut self, name: &Sp<String>) {
        if !is_name(&name.value) {
            self.error_with(
                name.referenced,
                format!("`{}` is not a name", yaml::printable(&name.value)),
                "a name has 1 to 63 characters: a-z, 0-9 and '-', the first and last of them no '-'",
            );
        }
    }
}

/// A finding to be made if there is room for it.
fn finding<'t>(
    text: &'t Text<'_>,
    first_line: usize,
    at: Location,
    message: impl Into<String> + 't,
) -> impl FnOnce() -> Diagnostic + 't {
    move || yaml::located(text, first_line, at, message.into())
}

/// A DNS label (RFC 1123): services' names become host names, and the rest is easier to remember if it is alike.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}
