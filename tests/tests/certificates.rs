//! Every certificate that the CA makes, before OpenSSL's strictest eyes.

use postern_tests::{Plan, foreign, openssl, pem, wait};

/// The parts of `openssl x509 -text` that matter, one line each, whitespace gone.
fn text(pem: &str) -> Vec<String> {
    let run = openssl(&["x509", "-noout", "-text", "-certopt", "no_sigdump,no_pubkey"], pem.as_bytes());
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.text().lines().map(|line| line.trim().to_owned()).collect()
}

/// What stands under `heading`, up to `count` lines, joined.
fn under(text: &[String], heading: &str, count: usize) -> String {
    let at = text.iter().position(|line| line == heading);
    let at = at.unwrap_or_else(|| panic!("no {heading:?} in {text:#?}"));
    text[at + 1..].iter().take(count).cloned().collect::<Vec<_>>().join(" ")
}

fn extensions(text: &[String]) -> Vec<&str> {
    let mut found: Vec<&str> = text
        .iter()
        .filter_map(|line| line.strip_prefix("X509v3 ")?.split(':').next())
        .filter(|line| *line != "extensions")
        .collect();
    found.sort_unstable();
    found
}

/// Seconds since 1970 of a `notBefore=` or `notAfter=` line.
fn seconds(pem: &str, which: &str) -> i64 {
    let run = openssl(&["x509", "-noout", which, "-dateopt", "iso_8601"], pem.as_bytes());
    let text = run.text();
    let date =
        text.trim().split('=').nth(1).unwrap_or_else(|| panic!("{text} {}", run.stderr)).replace(' ', "T");
    time::OffsetDateTime::parse(&date, &time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|error| panic!("{date}: {error}"))
        .unix_timestamp()
}

#[test]
fn every_certificate_is_strictly_right() {
    if !foreign::need(&["openssl"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.ttl("10s");
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    let mesh = plan.start();
    // Renewals are certificates too.
    wait::until("each id has been renewed", std::time::Duration::from_secs(60), || {
        let all = mesh.control.certificates();
        ["web", "orders"]
            .iter()
            .all(|name| all.iter().filter(|(id, _)| *id == mesh.sidecar(name).id()).count() >= 2)
    });
    let all = mesh.control.certificates();
    let write = |name: &str, content: &str| {
        let path = mesh.directory().join(name);
        std::fs::write(&path, content).expect("the mesh's directory can be written to");
        path.display().to_string()
    };
    let of_kind =
        |kind: &str| all.iter().filter(|(own, _)| own == kind).map(|(_, der)| pem(der)).collect::<String>();
    let (roots, issuing) = (write("roots.pem", &of_kind("root")), write("issuing.pem", &of_kind("issuing")));
    let mut leaves = 0;
    for (kind, der) in &all {
        let certificate = pem(der);
        let file = write("one.pem", &certificate);
        let text = text(&certificate);
        let mut verify = vec!["verify", "-x509_strict", "-check_ss_sig", "-trusted", &roots];
        match kind.as_str() {
            "root" => assert_root(&text),
            "issuing" => assert_issuing(&text),
            id => {
                leaves += 1;
                assert_leaf(&text, id);
                // Some have ended since: they are verified as of their own time.
                let at = (seconds(&certificate, "-startdate") + 1).to_string();
                for purpose in ["sslclient", "sslserver"] {
                    let run = openssl(
                        &[&verify[..], &["-untrusted", &issuing, "-purpose", purpose, "-attime", &at, &file]]
                            .concat(),
                        b"",
                    );
                    assert_eq!(run.code, 0, "{id} as {purpose}: {}{}", run.text(), run.stderr);
                }
                continue;
            }
        }
        verify.push(&file);
        let run = openssl(&verify, b"");
        assert_eq!(run.code, 0, "{kind}: {}{}", run.text(), run.stderr);
    }
    assert!(leaves >= 5, "two of each workload and the control plane's own: {leaves}");
    assert!(all.iter().any(|(id, _)| id == "spiffe://demo.postern/postern/control"));
    let serials: std::collections::BTreeSet<String> = all
        .iter()
        .map(|(_, der)| openssl(&["x509", "-noout", "-serial"], pem(der).as_bytes()).text())
        .collect();
    assert_eq!(serials.len(), all.len(), "no serial number twice");
}

fn assert_root(text: &[String]) {
    assert_eq!(under(text, "X509v3 Basic Constraints: critical", 1), "CA:TRUE, pathlen:1");
    assert_eq!(under(text, "X509v3 Key Usage: critical", 1), "Certificate Sign, CRL Sign");
    assert_eq!(under(text, "X509v3 Subject Alternative Name:", 1), "URI:spiffe://demo.postern");
    assert!(text.iter().any(|line| line == "Signature Algorithm: ecdsa-with-SHA384"), "{text:#?}");
}

fn assert_issuing(text: &[String]) {
    assert_eq!(under(text, "X509v3 Basic Constraints: critical", 1), "CA:TRUE, pathlen:0");
    assert_eq!(under(text, "X509v3 Key Usage: critical", 1), "Certificate Sign, CRL Sign");
    assert_eq!(under(text, "X509v3 Subject Alternative Name:", 1), "URI:spiffe://demo.postern");
    let constraints = under(text, "X509v3 Name Constraints: critical", 4);
    assert_eq!(constraints, "Excluded: DNS: IP:0.0.0.0/0.0.0.0 IP:0:0:0:0:0:0:0:0/0:0:0:0:0:0:0:0");
}

fn assert_leaf(text: &[String], id: &str) {
    assert!(text.iter().any(|line| line == "Subject:"), "an empty subject: {text:#?}");
    assert_eq!(under(text, "X509v3 Subject Alternative Name: critical", 1), format!("URI:{id}"));
    assert_eq!(under(text, "X509v3 Key Usage: critical", 1), "Digital Signature");
    let both = "TLS Web Server Authentication, TLS Web Client Authentication";
    assert_eq!(under(text, "X509v3 Extended Key Usage:", 1), both);
    assert_eq!(under(text, "X509v3 Basic Constraints: critical", 1), "CA:FALSE");
    assert_eq!(
        extensions(text),
        [
            "Authority Key Identifier",
            "Basic Constraints",
            "Extended Key Usage",
            "Key Usage",
            "Subject Alternative Name",
            "Subject Key Identifier"
        ],
        "nothing else is in it"
    );
    let life = |which: &str| text.iter().any(|line| line.starts_with(which));
    assert!(life("Not Before:") && life("Not After :"), "{text:#?}");
}

#[test]
fn what_is_served_is_what_was_issued() {
    if !foreign::need(&["openssl"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("orders").serves(80, 8080, "http");
    let mesh = plan.start();
    let roots = mesh.control.state().join("bundle.pem").display().to_string();
    let control = format!("{}:24150", mesh.control.address());
    let sidecar = mesh.sidecar("orders").inbound().to_string();
    for (address, alpn, id, length) in [
        // The control plane sends its root too, for sidecars that know nothing but the root's SHA-256.
        (control, "h2", "spiffe://demo.postern/postern/control".to_owned(), 3),
        (sidecar, "postern/1", mesh.sidecar("orders").id(), 2),
    ] {
        let run = openssl(
            &[
                "s_client",
                "-connect",
                &address,
                "-showcerts",
                "-CAfile",
                &roots,
                "-x509_strict",
                "-alpn",
                alpn,
            ],
            b"",
        );
        let shown = run.text();
        assert!(shown.contains("Verify return code: 0 (ok)"), "{id}: {shown} {}", run.stderr);
        assert!(shown.contains("TLSv1.3"), "{id}: {shown}");
        let served: Vec<&str> = shown.split_inclusive("-----END CERTIFICATE-----\n").collect();
        assert_eq!(served.len() - 1, length, "{id}: {shown}");
        let leaf = served[0].find("-----BEGIN").map(|at| &served[0][at..]).unwrap_or_default();
        assert_leaf(&text(leaf), &id);
        assert!(mesh.control.certificates().iter().any(|(own, der)| *own == id && pem(der) == leaf), "{id}");
    }
}
