//! Requests that are one thing to a rule and another to the workload. Three things are denied: `/admin`, DELETE, and the field
//! `x-role: admin`; and nobody says who calls but the sidecar. Each attack asks for one of them in another way. What arrives is
//! read as the most careless server would read it.

use std::net::SocketAddr;
use std::time::Duration;

use postern_tests::{Envoy, Origin, Plan, Seen, foreign, is_long, wait};
use serde_json::json;

use super::{Line, POLICY};

/// Percent-decoding and dot segments as a careless server would resolve them: the most that a path can mean.
fn most_it_can_mean(target: &str) -> String {
    let mut path = target.split(['?', '#']).next().unwrap_or_default().to_owned();
    for _ in 0..3 {
        let mut decoded = String::new();
        let mut rest = path.as_str();
        while let Some(at) = rest.find('%') {
            decoded.push_str(&rest[..at]);
            match rest.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => {
                    decoded.push(char::from(byte));
                    rest = &rest[at + 3..];
                }
                None => {
                    decoded.push('%');
                    rest = &rest[at + 1..];
                }
            }
        }
        decoded.push_str(rest);
        path = decoded;
    }
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split(['/', '\\']) {
        match segment.split([';', '\0', '\t']).next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            plain => segments.push(plain),
        }
    }
    format!("/{}", segments.join("/")).to_ascii_lowercase()
}

/// One sort of attack: how often it is tried, each with what makes it, and whether what arrived is what was denied.
struct Attack {
    name: &'static str,
    requests: Vec<String>,
    got_past: fn(&Seen) -> bool,
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n")
}

fn with(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: orders.shop\r\n{fields}\r\n\r\n")
}

fn paths() -> Vec<String> {
    let spelled = [
        "/admin",
        "/admin/",
        "/admin/users",
        "//admin",
        "///admin//users",
        "/./admin",
        "/public/../admin",
        "/public/./../admin",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "/admin%2fusers",
        "/admin%2Fusers",
        "/%2fadmin",
        "/public/%2e%2e/admin",
        "/public/%2E%2e/admin",
        "/public/..%2fadmin",
        "/public/.%2e/admin",
        "/%252e%252e/admin",
        "/public\\..\\admin",
        "/public/%5c..%5cadmin",
        "/public/..;/admin",
        "/public/..;a=b/admin",
        "/admin;v=1/users",
        "/admin;v=1",
        "/admin%00",
        "/admin%09",
        "/admin?x=1",
        "/admin#x",
        "/public/../../admin",
        "/..//admin",
        "http://orders.shop/admin",
        "http://orders.shop//admin",
        "http://orders.shop/public/..%2fadmin",
    ];
    spelled.into_iter().map(get).collect()
}

fn attacks() -> Vec<Attack> {
    let fields = |all: &[&str]| all.iter().map(|fields| with(fields)).collect::<Vec<_>>();
    let is_admin = |seen: &Seen| {
        let means = most_it_can_mean(&seen.target);
        means == "/admin" || means.starts_with("/admin/")
    };
    vec![
        Attack { name: "paths: /admin, spelled otherwise", requests: paths(), got_past: is_admin },
        Attack {
            name: "hosts: two at once, or another in the target",
            requests: [
                "GET / HTTP/1.1\r\nHost: orders.shop\r\nHost: evil.shop\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: evil.shop\r\nHost: orders.shop\r\n\r\n",
                "GET http://orders.shop/ HTTP/1.1\r\nHost: evil.shop\r\n\r\n",
                "GET http://evil.shop/ HTTP/1.1\r\nHost: orders.shop\r\n\r\n",
                "GET http://orders.shop@evil.shop/ HTTP/1.1\r\nHost: orders.shop@evil.shop\r\n\r\n",
                "GET http://evil@orders.shop/ HTTP/1.1\r\nHost: orders.shop\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: orders.shop, evil.shop\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: orders.shop\r\nX_Host: evil.shop\r\nX-Original-Host: orders.shop\r\n\r\n",
            ]
            .map(str::to_owned)
            .to_vec(),
            // Two hosts arrive, or one that nobody serves, or one with a user.
            got_past: |seen| {
                seen.headers.iter().any(|(_, value)| value.contains("evil"))
                    || seen.target.contains("evil")
                    || seen.header("host").len() != 1
            },
        },
        Attack {
            name: "a field of several values, one of them denied",
            requests: fields(&[
                "X-Role: admin",
                "X-Role: guest\r\nX-Role: admin",
                "X-Role: admin\r\nX-Role: guest",
                "X-Role: guest, admin",
                "X-Role: guest,admin,guest",
                "X-Role:\r\nX-Role: admin",
                "x_role: admin",
            ]),
            got_past: |seen| {
                seen.headers
                    .iter()
                    .filter(|(name, _)| name.replace('_', "-").eq_ignore_ascii_case("x-role"))
                    .any(|(_, value)| value.split(',').any(|one| one.trim() == "admin"))
            },
        },
        Attack {
            name: "methods: DELETE, said otherwise",
            requests: [
                fields(&[
                    "X-HTTP-Method-Override: DELETE",
                    "X-Method-Override: DELETE",
                    "X-HTTP-Method: DELETE",
                    "x_http_method_override: DELETE",
                    "Connection: x-role\r\nX-HTTP-Method-Override: DELETE",
                ]),
                ["DELETE", "delete", "Delete", "\r\nDELETE"]
                    .map(|method| format!("{method} / HTTP/1.1\r\nHost: orders.shop\r\n\r\n"))
                    .to_vec(),
                vec!["POST / HTTP/1.1\r\nHost: orders.shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx-http-method-override: DELETE\r\n\r\n".to_owned()],
            ]
            .concat(),
            got_past: |seen| {
                seen.method.eq_ignore_ascii_case("DELETE")
                    || seen.headers.iter().any(|(_, value)| value == "DELETE")
            },
        },
        Attack {
            name: "fields of the mesh, forged",
            requests: fields(&[
                "X-Forwarded-Client-Cert: URI=forged",
                "x-forwarded-client-cert: URI=a\r\nX-Forwarded-Client-Cert: URI=forged",
                "X_Forwarded_Client_Cert: URI=forged",
                "X-Forwarded_Client-Cert: URI=forged",
                "Connection: close\r\nConnection: X-Forwarded-Client-Cert\r\nX-Forwarded-Client-Cert: URI=forged",
                "Postern-Port: 9000\r\nPostern-Decision: forged",
                "postern_port: forged",
                "X-Original-URL: /forged",
                "X-Rewrite-URL: /forged",
                "Connection: x-role\r\nX-Role: forged",
            ]),
            got_past: |seen| seen.headers.iter().any(|(_, value)| value.contains("forged")),
        },
    ]
}

/// How many of an attack's requests reach the origin as what was denied, and which.
fn past(attack: &Attack, to: SocketAddr, origin: &Origin) -> Vec<String> {
    let mut past = Vec::new();
    for request in &attack.requests {
        origin.forget();
        let mut line = Line::open(to);
        line.send(request.as_bytes());
        let status = line.status();
        if status >= 400 {
            wait::pause(Duration::from_millis(2));
        }
        for seen in origin.requests().iter().filter(|seen| (attack.got_past)(seen)) {
            past.push(format!("{request:?}: {} {}", seen.target, status));
        }
    }
    println!("| {} | {} of {} |", attack.name, past.len(), attack.requests.len());
    past
}

#[test]
fn what_was_judged_is_what_arrives() {
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    let outbound = mesh.sidecar("web").outbound();
    for target in
        ["/public", "/public/", "/public/a%20b", "/public?next=/admin", "/administrator", "/x/admin", "/"]
    {
        let mut line = Line::open(outbound);
        line.send(get(target).as_bytes());
        assert_eq!(line.status(), 200, "{target}");
        let seen = origin.last().target;
        assert_eq!(most_it_can_mean(&seen), most_it_can_mean(target), "{target} became {seen}");
    }
    for attack in &attacks() {
        let past = past(attack, outbound, &origin);
        assert!(past.is_empty(), "{}:\n{}", attack.name, past.join("\n"));
    }
}

#[test]
fn beside_envoy() {
    if !is_long() || !foreign::need(&["envoy"]) {
        return;
    }
    let block = postern_tests::Block::take();
    let directory = tempfile::tempdir().expect("a directory can be made");
    let origin = Origin::http((block.address(1), 8080));
    let at = SocketAddr::from((block.address(2), 8000));
    let field = |name: &str, value: &str| json!({"prefix": "/", "headers": [{"name": name, "string_match": {"exact": value}}]});
    let _envoy = Envoy::new(at, origin.address())
        .domain("orders.shop")
        .refuses(json!({"prefix": "/admin"}))
        .refuses(field(":method", "DELETE"))
        .refuses(field("x-role", "admin"))
        .start(directory.path());
    for attack in &attacks() {
        for past in past(attack, at, &origin) {
            println!("    {past}");
        }
    }
}
