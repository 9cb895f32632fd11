//! `to`: what.

use crate::yaml::Location;

use super::{Page, Rules, opaque};
use crate::doc::{HeaderDoc, List, NotHeaderDoc, NotToDoc, Sp, ToDoc};
use crate::fields::{self, FieldError};
use crate::norm::{CanonHost, CanonMethod, NormError};
use crate::pattern::{PathPattern, PatternError};
use crate::rule::{
    ExcludedTarget, HeaderMatch, HeaderTest, HostPattern, ListOf, MAX_LABELS, Methods, Target, ValuePattern,
};
use crate::verdict::Action;
use crate::yaml;

/// Longer ones are no value that a person wrote.
const MAX_VALUE: usize = 1_024;
/// Fields that stop at this hop, or that the sidecar makes itself: no rule could mean what the workload sees.
const NOT_FOR_RULES: [(&str, &str); 11] = [
    ("host", "write `hosts`"),
    ("upgrade", "it stops at the sidecar"),
    ("connection", "it stops at the sidecar"),
    ("keep-alive", "it stops at the sidecar"),
    ("proxy-connection", "it stops at the sidecar"),
    ("te", "it stops at the sidecar"),
    ("trailer", "it stops at the sidecar"),
    ("transfer-encoding", "it stops at the sidecar"),
    ("content-length", "a body need not say its length"),
    ("x-forwarded-client-cert", "write `from`: the sidecar has proven who calls"),
    ("http2-settings", "it stops at the sidecar"),
];

/// Checks one alternative of `to`.
pub(super) fn target(page: &mut Page<'_>, entry: &Sp<ToDoc>, action: Action, rules: &Rules<'_>) -> Target {
    let ToDoc { methods, paths, path_prefix, hosts, headers, grpc, upgrade, sni, ports, not } = &entry.value;
    let named = [methods, paths, path_prefix, hosts, grpc, upgrade, sni].iter().any(|list| list.is_some());
    if !named && headers.is_none() && ports.is_none() && not.is_none() {
        page.error_with(
            entry.referenced,
            "this alternative is empty",
            "say what is meant, or leave `to` out to mean any operation",
        );
    }
    let mut target = Target {
        methods: methods.as_ref().map(|list| self::methods(page, list)),
        paths: path_patterns(page, paths.as_ref(), path_prefix.as_ref(), rules),
        grpc: grpc.is_some(),
        hosts: hosts.as_ref().map(|list| self::hosts(page, list, "hosts")),
        upgrade: upgrade.as_ref().map(|list| opaque::upgrades(page, list)),
        sni: sni.as_ref().map(|list| opaque::sni(page, list)),
        headers: match headers {
            Some(list) => {
                page.items(list, "headers").iter().filter_map(|field| header(page, field, action)).collect()
            }
            None => Vec::new(),
        },
        ports: ports.as_ref().map(|list| page.ports(list)),
        not: not.as_ref().map(|not| Box::new(excluded(page, not, rules))),
    };
    if sni.is_some() {
        let http = [methods, paths, path_prefix, hosts, grpc, upgrade].into_iter().flatten();
        let mut http = http.map(|list| list.referenced).chain(headers.iter().map(|list| list.referenced));
        if let (Action::Allow, Some(at)) = (action, http.next()) {
            page.error_with(
                at,
                "a request that can be read is no TLS and has no server name: this alternative matches nothing",
                "write two alternatives under `to`",
            );
        }
    }
    if let Some(list) = grpc {
        if let Some(other) = [methods, paths, path_prefix].into_iter().flatten().next() {
            page.error_with(
                other.referenced,
                "`grpc` says method and path itself",
                "write two alternatives under `to`, or leave one of them out",
            );
        }
        // What is not a gRPC call by its content type reaches the same code in servers that speak both.
        target.methods = CanonMethod::parse("POST").ok().map(|post| Methods::Only(vec![post]));
        target.paths = Some(patterns(page, list, "grpc", PathPattern::parse_grpc));
    }
    target
}

fn excluded(page: &mut Page<'_>, entry: &Sp<NotToDoc>, rules: &Rules<'_>) -> ExcludedTarget {
    let NotToDoc { methods, paths, path_prefix, hosts, upgrade, sni, ports } = &entry.value;
    if [methods, paths, path_prefix, hosts, upgrade, sni].iter().all(|list| list.is_none()) && ports.is_none()
    {
        page.error_with(entry.referenced, "`not` is empty", "say what is excluded, or leave it out");
    }
    ExcludedTarget {
        methods: match methods.as_ref().map(|list| (list, self::methods(page, list))) {
            Some((_, Methods::Only(named))) => named,
            Some((list, Methods::Any)) => {
                page.error_with(
                    list.referenced,
                    "every method is excluded: this alternative matches nothing",
                    "name the methods that are excluded, or leave the alternative out",
                );
                Vec::new()
            }
            None => Vec::new(),
        },
        paths: path_patterns(page, paths.as_ref(), path_prefix.as_ref(), rules).unwrap_or_default(),
        hosts: hosts.as_ref().map(|list| self::hosts(page, list, "hosts")).unwrap_or_default(),
        upgrade: upgrade.as_ref().map(|list| opaque::upgrades(page, list)),
        sni: sni.as_ref().map(|list| opaque::sni(page, list)).unwrap_or_default(),
        ports: ports.as_ref().map(|list| page.ports(list)).unwrap_or_default(),
    }
}

pub(super) fn path_patterns(
    page: &mut Page<'_>,
    paths: Option<&List<String>>,
    prefixes: Option<&List<String>>,
    rules: &Rules<'_>,
) -> Option<Vec<PathPattern>> {
    match (paths, prefixes) {
        (Some(list), None) => {
            Some(patterns(page, list, "paths", |text| PathPattern::parse(text, rules.widest)))
        }
        (None, Some(list)) => {
            Some(patterns(page, list, "pathPrefix", |text| PathPattern::parse_prefix(text, rules.widest)))
        }
        (None, None) => None,
        // Fields are joined by AND, but a reader expects OR here. Refused rather than guessed.
        (Some(_), Some(prefix)) => {
            page.error_with(
                prefix.referenced,
                "`paths` and `pathPrefix` cannot stand in one alternative",
                "write two alternatives under `to`",
            );
            None
        }
    }
}

fn patterns(
    page: &mut Page<'_>,
    list: &List<String>,
    field: &str,
    parse: impl Fn(&str) -> Result<PathPattern, PatternError>,
) -> Vec<PathPattern> {
    let mut out = Vec::with_capacity(list.value.len());
    for item in page.items(list, field) {
        match parse(&item.value) {
            Ok(pattern) => out.push(pattern),
            Err(error) => match error.text() {
                (message, Some(help)) => page.error_with(item.referenced, message, help),
                (message, None) => page.error(item.referenced, message),
            },
        }
    }
    out
}

pub(super) fn hosts(page: &mut Page<'_>, list: &List<String>, field: &str) -> Vec<HostPattern> {
    let mut out = Vec::with_capacity(list.value.len());
    for item in page.items(list, field) {
        let text = item.value.as_str();
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let host = match CanonHost::parse(name) {
            Ok(host) => host,
            Err(error) => {
                let help = if name.contains('*') {
                    "leave `hosts` out to mean any host; `*.example.com` means every name below example.com"
                } else {
                    "write a name such as `orders.shop`, or an address in its plain spelling"
                };
                page.error_with(item.referenced, error.to_string(), help);
                continue;
            }
        };
        let as_judged = if below { format!("*.{}", host.name()) } else { host.name().to_owned() };
        if host.port().is_some() {
            page.error_with(
                item.referenced,
                "a host stands here without its port",
                "write the port under `ports`",
            );
        } else if below && host.address().is_some() {
            page.error_with(item.referenced, "there is no name below an address", "leave `*.` out");
        } else if host.name().split('.').count() > MAX_LABELS {
            page.error_with(
                item.referenced,
                format!("a rule's host has at most {MAX_LABELS} labels"),
                "write `*.` and the last of them",
            );
        } else if as_judged != text && host.address().is_none() {
            page.error_with(
                item.referenced,
                "this host is not in the form in which requests are judged",
                format!("write `{as_judged}`"),
            );
        }
        out.push(if below {
            HostPattern::Below(host.name().into())
        } else {
            HostPattern::Exact(host.name().into())
        });
    }
    out
}

fn header(page: &mut Page<'_>, entry: &Sp<HeaderDoc>, action: Action) -> Option<HeaderMatch> {
    let HeaderDoc { name, present, exact, prefix, list, not } = &entry.value;
    let lower = name.value.to_ascii_lowercase();
    if let Some((message, way)) = field_mistake(&name.value) {
        page.error_with(name.referenced, message, way);
    }
    let of = match list {
        None => ListOf::One,
        Some(word) => {
            if action.is_wide() {
                page.error_with(
                    word.referenced,
                    "`list` has no meaning in a rule that is no Allow: it matches if any value does",
                    "leave it out",
                );
            }
            page.word(word, &[("any", ListOf::Any), ("all", ListOf::All)]).unwrap_or_default()
        }
    };
    if let (Some(word), false) = (list, exact.is_some() || prefix.is_some()) {
        page.error_with(word.referenced, "`list` says how `exact` or `prefix` is meant", "leave it out");
    }
    let mut tests = Vec::new();
    if let Some(present) = present {
        tests
            .push((present.referenced, if present.value { HeaderTest::Present } else { HeaderTest::Absent }));
    }
    let place = exact.as_ref().or(prefix.as_ref()).map(|list| list.referenced);
    if let (Some(place), Some(values)) = (place, values(page, exact.as_ref(), prefix.as_ref())) {
        tests.push((place, HeaderTest::Is(values, of)));
    }
    if let Some(not) = not {
        let NotHeaderDoc { exact, prefix } = &not.value;
        match values(page, exact.as_ref(), prefix.as_ref()) {
            Some(values) => tests.push((not.referenced, HeaderTest::Not(values))),
            None => page.error_with(not.referenced, "`not` is empty", "say which values are excluded"),
        }
    }
    let mut tests = tests.into_iter();
    let first = tests.next();
    if let Some((second, _)) = tests.next() {
        page.error_with(
            second,
            "only one of `present`, `exact` or `prefix`, and `not` stands in an entry",
            "write another entry with the same name",
        );
    }
    match first {
        Some((_, test)) => Some(HeaderMatch { name: lower.into(), test }),
        None => {
            page.error_with(
                entry.referenced,
                "this entry asks for nothing",
                "write `exact`, `prefix`, `not` or `present`",
            );
            None
        }
    }
}

/// Whether rules can ask for a field, by its name in lower case.
pub(crate) fn field_name(page: &mut Page<'_>, at: Location, lower: &str) {
    if let Some((message, way)) = field_mistake(lower) {
        page.error_with(at, message, way);
    }
}

/// Why no rule can ask for a header field, and the way out.
pub(super) fn field_mistake(name: &str) -> Option<(String, String)> {
    let lower = name.to_ascii_lowercase();
    if lower != name {
        let way = format!("write `{}`", yaml::printable(&lower));
        return Some(("names of header fields are written in lower case".to_owned(), way));
    }
    if let Err(error) = fields::check_name(name) {
        let way = match error {
            FieldError::Underscore => format!("write `{}` if that is what is sent", name.replace('_', "-")),
            FieldError::Name | FieldError::Value => "write a name such as `x-tenant`".to_owned(),
        };
        return Some((error.to_string(), way));
    }
    if let Some((_, way)) = NOT_FOR_RULES.iter().find(|(field, _)| *field == lower) {
        return Some((format!("no rule can ask for the field `{lower}`"), (*way).to_owned()));
    }
    lower.starts_with("postern-").then(|| {
        let message = "fields of the mesh itself never come from a caller";
        (message.to_owned(), "they are stripped".to_owned())
    })
}

fn values(
    page: &mut Page<'_>,
    exact: Option<&List<String>>,
    prefix: Option<&List<String>>,
) -> Option<Vec<ValuePattern>> {
    let mut out = None;
    for (list, field) in [(exact, "exact"), (prefix, "prefix")] {
        let Some(list) = list else { continue };
        let is_prefix = field == "prefix";
        for item in page.items(list, field) {
            let text = item.value.as_str();
            let printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            if text.contains(',') {
                page.error_with(
                    item.referenced,
                    "a value holds no comma: fields are compared element by element",
                    "name the elements; `list: all` in an Allow asks for each of them",
                );
            } else if !printable || text.len() > MAX_VALUE || text.trim() != text {
                page.error_with(
                    item.referenced,
                    format!("a value has at most {MAX_VALUE} ASCII characters and no space at its ends"),
                    "write what is sent; a long one can be compared by `prefix`",
                );
            } else if text.is_empty() && is_prefix {
                page.error_with(item.referenced, "every value begins so", "write `present: true`");
            }
            let make = if is_prefix { ValuePattern::Prefix } else { ValuePattern::Exact };
            out.get_or_insert_with(Vec::new).push(make(text.into()));
        }
        // An empty list has been found fault with.
        out.get_or_insert_with(Vec::new);
    }
    out
}

pub(super) fn methods(page: &mut Page<'_>, list: &List<String>) -> Methods {
    if let Some(star) = list.value.iter().find(|item| item.value == "*") {
        if list.value.len() > 1 {
            page.error_with(star.referenced, "`*` stands alone", "leave out the others");
        }
        return Methods::Any;
    }
    let mut named = Vec::with_capacity(list.value.len());
    for item in page.items(list, "methods") {
        match CanonMethod::parse(&item.value) {
            Err(NormError::MethodCase) => page.error_with(
                item.referenced,
                "methods are written in capitals",
                format!("write `{}`", item.value.to_ascii_uppercase()),
            ),
            Ok(method) => {
                if let Some(meant) = CanonMethod::nearly(&item.value) {
                    page.warn(
                        item.referenced,
                        format!("no common method is called `{}`", yaml::printable(&item.value)),
                        format!("did you mean `{meant}`?"),
                    );
                }
                named.push(method);
            }
            Err(error) => page.error_with(
                item.referenced,
                error.to_string(),
                "a method is one word, such as `GET`: write several as items of the list",
            ),
        }
    }
    Methods::Only(named)
}
