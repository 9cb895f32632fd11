//! Calls that come redirected.

use postern_tests::pods;
use serde_json::Value;

use super::{POLICY, Pods};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn field<'a>(seen: &'a Value, name: &str) -> Vec<&'a str> {
    let fields = seen["fields"].as_array().expect("the workload lists them");
    fields.iter().filter(|field| field[0] == name).filter_map(|field| field[1].as_str()).collect()
}

#[test]
fn the_address_says_which_service_is_called_and_the_policy_whether_it_may() {
    if !pods::inside("calls::the_address_says_which_service_is_called_and_the_policy_whether_it_may") {
        return;
    }
    let pods = Pods::start();
    for (at, local) in [
        ("10.77.0.3:8080", Some("10.77.0.3")),
        ("[fd77::3]:8080", Some("fd77::3")),
        ("10.96.0.3", None),
        ("[fd96::3]", None),
    ] {
        let (status, body) = pods.web.curl(&[&format!("http://{at}/orders")]);
        assert_eq!(status, 200, "{at}: {body}");
        let seen = json(&body);
        assert_eq!(
            field(&seen, "x-forwarded-client-cert"),
            ["URI=spiffe://demo.postern/ns/shop/sa/web"],
            "{at}"
        );
        // It comes to the address that was called, not to loopback, where a workload keeps what is for itself alone.
        if let Some(local) = local {
            assert_eq!(
                seen["local"].as_str().map(|text| text.trim_start_matches("::ffff:")),
                Some(local),
                "{at}"
            );
        }
    }
    // A name in the request is the workload's own affair.
    let (status, body) = pods.web.curl(&["-H", "Host: elsewhere.example", "http://10.77.0.3:8080/orders"]);
    assert_eq!((status, field(&json(&body), "host")), (200, vec!["elsewhere.example"]), "{body}");
    let request = "GET http://elsewhere.example/orders HTTP/1.1\\r\\nHost: elsewhere.example\\r\\nConnection: close\\r\\n\\r\\n";
    let got = pods.web.call(&["tcp", "10.96.0.3", "80", request, "slowly", "open"]);
    assert!(got.contains("200 OK") && got.contains("\"host\", \"elsewhere.example\""), "{got}");

    pods.nothing_reaches("calls that are denied or lead nowhere", || {
        for words in
            [&["-X", "POST", "-d", "x", "http://10.77.0.3:8080/orders"][..], &["http://[fd96::3]/admin"]]
        {
            let (status, body) = pods.web.curl(words);
            assert!(status == 403 && body.contains("Decision"), "{words:?}: {status} {body}");
        }
        for (at, name) in [
            // The service's address has the service's ports, the pod's those of the workload.
            ("10.96.0.3:8080", None),
            ("10.77.0.3:80", None),
            ("10.77.0.1:8080", None),
            ("[fd77::9]:80", None),
            ("10.77.0.1", Some("Host: orders.shop")),
            // The far sidecar's own doors.
            ("10.77.0.3:24143", None),
            ("10.77.0.3:24191/ready", Some("Host: orders.shop")),
        ] {
            let words = name.map_or_else(Vec::new, |name| vec!["-H", name]);
            let (status, body) = pods.web.curl(&[&words[..], &[&format!("http://{at}")]].concat());
            assert!(status == 403 && body.contains("No service of the mesh"), "{at}: {status} {body}");
        }
        let got = pods.web.call(&[
            "tcp",
            "10.77.0.3",
            "8080",
            "CONNECT orders.shop:5432 HTTP/1.1\\r\\nHost: orders.shop:5432\\r\\nConnection: close\\r\\n\\r\\n",
            "open",
        ]);
        assert!(got.contains("403"), "{got}");
        let got = pods.web.call(&["tcp", "10.77.0.9", "5432"]);
        assert!(got.starts_with("failed ConnectionReset"), "{got}");
        let got = pods.web.call(&["tcp", "10.77.0.3", "7000", "hello"]);
        assert!(got.starts_with("failed ConnectionReset"), "{got}");
    });
}

#[test]
fn bytes_that_nobody_reads_go_through_the_mesh_whoever_speaks_first() {
    if !pods::inside("calls::bytes_that_nobody_reads_go_through_the_mesh_whoever_speaks_first") {
        return;
    }
    let policy = POLICY.replace("[5432]", "[5432, 7000]");
    let services = "apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  identity: spiffe://demo.postern/ns/shop/sa/orders
  addresses: [10.96.0.3, \"fd96::3\"]
  ports:
  - {port: 80, targetPort: 8080, protocol: http}
  - {port: 5432, protocol: tcp}
  - {port: 7000, protocol: tcp}
  endpoints: [{address: 10.77.0.3}, {address: \"fd77::3\"}]
";
    let pods = Pods::planned(
        &policy,
        |plan| {
            plan.document("services.yaml", services);
        },
        &[],
    );
    // To a port that the workload declares, and to one that it does not, where the far sidecar finds out what is spoken.
    for (address, port) in
        [("10.77.0.3", "5432"), ("fd96::3", "5432"), ("10.96.0.3", "7000"), ("fd77::3", "7000")]
    {
        assert_eq!(
            pods.web.call(&["tcp", address, port]),
            "got '220 ready\\nhellobye 5\\n'",
            "{address} {port}"
        );
        // The caller ends first: its half of the stream closes, and the answer comes all the same.
        let got = pods.web.call(&["tcp", address, port, "one\\ntwo\\n", "slowly"]);
        assert_eq!(got, "got '220 ready\\none\\ntwo\\nbye 8\\n'", "{address} {port}");
    }
    let ended = pods.reached().iter().filter(|line| line.starts_with("ended")).count();
    assert_eq!(ended, 8, "{:?}", pods.reached());
}

#[test]
fn a_call_to_oneself_goes_through_the_own_mesh_listener() {
    if !pods::inside("calls::a_call_to_oneself_goes_through_the_own_mesh_listener") {
        return;
    }
    let pods = Pods::start();
    let (status, body) = pods.orders.curl(&["http://10.96.0.3/self"]);
    assert_eq!(status, 200, "{body}");
    let seen = json(&body);
    assert_eq!(field(&seen, "x-forwarded-client-cert"), ["URI=spiffe://demo.postern/ns/shop/sa/orders"]);
    pods.nothing_reaches("calls to oneself that no rule allows, or that lead back", || {
        assert_eq!(pods.orders.curl(&["http://10.96.0.3/orders"]).0, 403);
        // As a proxy, the outbound listener does not call itself, nor the other doors.
        for door in
            ["127.0.0.1:24140", "10.77.0.3:24140", "10.77.0.3:24143", "[fd77::3]:24191", "[::1]:24140"]
        {
            let (status, body) = pods.orders.curl(&[
                "--proxy",
                "http://127.0.0.1:24140",
                "--noproxy",
                "",
                &format!("http://{door}/"),
            ]);
            assert!(status == 508 || status == 403, "{door}: {status} {body}");
        }
    });
}
