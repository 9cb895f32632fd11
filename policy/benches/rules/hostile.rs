//! Sets of rules that are as bad for the engine as they can be written: all of them meet one question, and none fires.

use std::fmt::Write as _;

use postern_policy::SourceFile;

/// Rules of a document, documents of a file.
const IN_DOCUMENT: usize = 100;
const IN_FILE: usize = 10;

/// A set, and the question that it is worst for.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) files: Vec<SourceFile>,
    pub(crate) ask: Ask,
}

/// A request.
#[derive(Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) identity: &'static str,
    pub(crate) address: &'static str,
    pub(crate) path: &'static str,
    pub(crate) host: &'static str,
    pub(crate) headers: &'static [(&'static str, &'static str)],
}

const ASK: Ask = Ask {
    identity: "spiffe://td/ns/web/sa/front",
    address: "10.1.2.3",
    path: "/x",
    host: "orders.shop",
    headers: &[("x-tenant", "none"), ("accept", "*/*")],
};
/// Another server may read it in four other ways.
const MANY_READINGS: &str = "/x%2525252561";
/// One literal or wildcard for each of 14 segments: 16,384 templates, each of a kind of its own.
const TEMPLATE_SEGMENTS: usize = 14;
const FOURTEEN: &str = "/s/s/s/s/s/s/s/s/s/s/s/s/s/s";
const LONG_NAMESPACE: &str = "spiffe://td/ns/abcdefghijklmn/sa/front";

/// What all rules of a set are in.
#[derive(Clone, Copy)]
enum Kind {
    Allow,
    Deny,
    Audit,
    Shadow,
    Istio,
}

/// One set of each shape, of `count` rules each.
pub(crate) fn shapes(count: usize) -> Vec<Shape> {
    use Kind::{Allow, Audit, Deny, Istio, Shadow};
    let own = |name, kind, rule: &dyn Fn(usize) -> String| {
        let files = documents(kind, 0..count, rule);
        Shape { name, files, ask: ASK }
    };
    let field = |n: usize| format!("headers: [{{name: x-tenant, exact: [t{n}]}}]");
    let asked = |path, shape: Shape| Shape { ask: Ask { path, ..shape.ask }, ..shape };
    let to = |what: String| format!("to: [{{{what}}}]");
    let one_path = |n| to(format!("paths: [/x], {}", field(n)));
    let cel = |n: usize| format!("when: {{cel: 'request.headers[\"x-tenant\"] == \"t{n}\"'}}");
    let mut shadows = documents(Shadow, 0..count / 2, &one_path);
    shadows.extend(documents(Allow, count / 2..count, &one_path));
    let fifth = count / 5;
    let everything = [Deny, Allow, Audit, Shadow, Istio].into_iter().zip(0..).flat_map(|(kind, at)| {
        let rule = |n| match kind {
            Istio => format!("when: [{{key: 'request.headers[x-tenant]', values: [t{n}]}}]"),
            // A Deny whose condition cannot be known would fire.
            _ => format!("{}, {}", to(field(n)), cel(n)),
        };
        documents(kind, at * fifth..(at + 1) * fifth, &rule)
    });
    vec![
        own("one path, methods differ", Allow, &|n| to(format!("methods: [M{n}], paths: [/x]"))),
        own("one path, header values differ", Allow, &one_path),
        asked(
            MANY_READINGS,
            own("one prefix, header values differ, a path of many readings", Deny, &|n| {
                to(format!("pathPrefix: [/], {}", field(n)))
            }),
        ),
        own("methods alone", Allow, &|n| to(format!("methods: [M{n}]"))),
        own("header fields alone", Allow, &|n| to(field(n))),
        own("header fields alone, Deny", Deny, &|n| to(field(n))),
        own("three header fields alone", Deny, &|n| {
            to(format!(
                "headers: [{{name: accept, present: true}}, {{name: x-b, present: false}}, {{name: x-tenant, exact: [t{n}]}}]"
            ))
        }),
        own("conditions alone", Allow, &cel),
        own("hours alone", Allow, &|n| {
            format!(
                "when: {{time: {{weekly: [\"Mon-Fri {:02}:{:02}-23:59\"], zone: UTC}}}}",
                n / 60 % 23,
                n % 60
            )
        }),
        own("`not` alone, callers", Deny, &|n| format!("from: [{{not: {{namespaces: [web, ns{n}]}}}}]")),
        own("`not` alone, paths", Allow, &|n| to(format!("not: {{paths: [/x, /y{n}]}}"))),
        own("Istio: claims alone", Istio, &|n| {
            format!("when: [{{key: 'request.auth.claims[tenant]', values: [t{n}]}}]")
        }),
        own("one wide network", Allow, &|n| {
            format!("from: [{{cidrs: [0.0.0.0/0]}}], {}", to(format!("methods: [M{n}]")))
        }),
        own("networks in networks", Allow, &|n| {
            let length = 8 + n % 25;
            let address = u32::from_be_bytes([10, 1, 2, 3]) >> (32 - length) << (32 - length);
            let address = std::net::Ipv4Addr::from(address);
            format!("from: [{{cidrs: [{address}/{length}]}}], {}", to(format!("methods: [M{n}]")))
        }),
        own("one caller", Allow, &|n| {
            format!("from: [{{serviceAccounts: [web/front]}}], {}", to(format!("methods: [M{n}]")))
        }),
        Shape {
            ask: Ask { identity: "spiffe://else/ns/web/sa/front", ..ASK },
            ..own("another trust domain", Allow, &|n| {
                format!("from: [{{trustDomain: else}}], {}", to(format!("methods: [M{n}]")))
            })
        },
        own("one port", Allow, &|n| to(format!("ports: [8080], methods: [M{n}]"))),
        own("more than 64 of each", Allow, &|n| {
            let many = |word: &str| {
                (0..64).fold(format!("{word}own{n}"), |mut list, at| {
                    let _ = write!(list, ", {word}{at}");
                    list
                })
            };
            format!(
                "from: [{{serviceAccounts: [web/front, {}]}}], {}",
                many("web/"),
                to(format!("methods: [M{n}], paths: [/x, {}]", many("/")))
            )
        }),
        asked(
            FOURTEEN,
            own("templates of many kinds", Allow, &|n| {
                let segment = |bit: usize| if n >> bit & 1 == 1 { "/{*}" } else { "/s" };
                let path: String = (0..TEMPLATE_SEGMENTS).map(segment).collect();
                to(format!("methods: [M{n}], paths: ['{path}']"))
            }),
        ),
        asked(
            "/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a",
            own("prefixes in prefixes", Allow, &|n| {
                to(format!("methods: [M{n}], pathPrefix: [{}]", "/a".repeat(1 + n % 40)))
            }),
        ),
        own("hosts in a Deny", Deny, &|n| to(format!("hosts: [h{n}.shop]"))),
        own("server names alone", Allow, &|n| to(format!("sni: [h{n}.shop]"))),
        asked(
            "/a.B/Get",
            own("gRPC methods by their beginnings", Allow, &|n| to(format!("grpc: ['a.B/Get{n}*']"))),
        ),
        Shape { name: "half of them shadows", files: shadows, ask: ASK },
        own("header fields alone, Audit", Audit, &|n| to(field(n))),
        Shape {
            ask: Ask { identity: LONG_NAMESPACE, ..ASK },
            ..own("Istio: namespaces with many stars", Istio, &|n| {
                let letter = |(bit, letter)| if n >> bit & 1 == 1 { '*' } else { letter };
                let name: String = "abcdefghijklmn".chars().enumerate().map(letter).collect();
                format!(
                    "from: [{{source: {{namespaces: ['{name}']}}}}], to: [{{operation: {{methods: [M{n}]}}}}]"
                )
            })
        },
        own("Istio: beginnings of paths", Istio, &|n| format!("to: [{{operation: {{paths: [/y{n}*]}}}}]")),
        own("Istio: endings of paths", Istio, &|n| format!("to: [{{operation: {{paths: ['*.y{n}']}}}}]")),
        own("Istio: header fields alone", Istio, &|n| {
            format!("when: [{{key: 'request.headers[x-tenant]', values: [t{n}]}}]")
        }),
        Shape {
            name: "everything at once, by header field and condition",
            files: everything.collect(),
            ask: ASK,
        },
        asked(
            MANY_READINGS,
            own("conditions on the path, a path of many readings", Deny, &|n| {
                format!("when: {{cel: 'request.path.contains(\"t{n}\") || request.path.endsWith(\"u{n}\")'}}")
            }),
        ),
    ]
}

fn documents(kind: Kind, rules: std::ops::Range<usize>, rule: &dyn Fn(usize) -> String) -> Vec<SourceFile> {
    let numbers: Vec<usize> = rules.collect();
    let document = |numbers: &[usize]| {
        let name = format!("p{}", numbers.first().copied().unwrap_or_default());
        let metadata = format!("metadata: {{name: {name}, namespace: shop}}\nspec:\n");
        let mut text = match kind {
            Kind::Istio => {
                format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n{metadata}")
            }
            Kind::Allow | Kind::Deny | Kind::Audit | Kind::Shadow => {
                format!("apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\n{metadata}")
            }
        };
        text.push_str(match kind {
            Kind::Allow => "  action: Allow\n",
            Kind::Deny => "  action: Deny\n",
            Kind::Audit => "  action: Audit\n",
            Kind::Shadow => "  action: Allow\n  enforcement: Shadow\n",
            Kind::Istio => "  action: ALLOW\n",
        });
        text.push_str("  rules:\n");
        for n in numbers {
            let name = if matches!(kind, Kind::Istio) { String::new() } else { format!("name: r{n}, ") };
            let _ = writeln!(text, "  - {{{name}{}}}", rule(*n));
        }
        text
    };
    let file = |numbers: &[usize]| SourceFile {
        name: format!("{}.yaml", numbers.first().copied().unwrap_or_default()),
        text: numbers.chunks(IN_DOCUMENT).map(document).collect::<Vec<_>>().join("---\n").into_bytes(),
    };
    numbers.chunks(IN_DOCUMENT * IN_FILE).map(file).collect()
}
