use std::time::Instant;

use postern_policy::SourceFile;
use postern_svid::SystemClock;

use super::*;
use crate::config::Config;
use crate::connections::{Direction, Facts, Operation as Live, Stream};
use crate::testing;

fn tunnel(port: u16) -> Facts {
    Facts { port, operation: Live::Tcp, destination: None, asked: None }
}

fn get(path: &str) -> Request<()> {
    Request::get(path).body(()).expect("it is a path")
}

#[test]
fn each_connection_is_shown_with_its_own_streams() {
    let sidecar = testing::sidecar("");
    let [one, two, none] = [(); 3].map(|()| testing::connection(&sidecar, Direction::Inbound));
    let _streams = [(&one, 1), (&two, 2), (&one, 3)]
        .map(|(on, port)| Stream::open(&sidecar, on.connection(), tunnel(port)));
    let page = live::connections(&sidecar);
    for (connection, ports) in [(&one, &[1, 3][..]), (&two, &[2]), (&none, &[])] {
        let shown = page["connections"].as_array().unwrap().iter();
        let shown: Vec<_> = shown.filter(|shown| shown["id"] == connection.connection().id).collect();
        assert_eq!(shown.len(), 1, "{page}");
        let streams = shown[0]["streams"].as_array().unwrap();
        assert_eq!(streams.iter().map(|stream| stream["port"].as_u64().unwrap()).collect::<Vec<_>>(), ports);
    }
}

/// Connections and streams cost what each of them costs, and not one times the other.
#[test]
fn the_page_grows_with_what_is_on_it() {
    const MANY: usize = 10_000;
    // The least of some: others use this machine too.
    let took = |connections: usize, streams: usize| {
        let sidecar = testing::sidecar("");
        let all: Vec<_> =
            (0..connections).map(|_| testing::connection(&sidecar, Direction::Inbound)).collect();
        let on = all.iter().cycle().take(streams);
        let _streams: Vec<_> = on.map(|on| Stream::open(&sidecar, on.connection(), tunnel(9_000))).collect();
        let time = |_| {
            let begun = Instant::now();
            assert_eq!(live::connections(&sidecar)["connections"].as_array().unwrap().len(), connections);
            begun.elapsed()
        };
        (0..3).map(time).min().unwrap()
    };
    let (apart, together) = (took(MANY, 0) + took(1, MANY), took(MANY, MANY));
    assert!(together < apart * 2, "{together:?} together, {apart:?} apart");
}

#[tokio::test]
async fn long_pages_are_made_one_at_a_time_and_hold_nobody_else_up() {
    let sidecar = testing::sidecar("");
    let turn = Arc::clone(&sidecar.heavy_page).acquire_owned().await.unwrap();
    for path in ["/v1/connections", "/v1/decisions", "/v1/policy", "/v1/services"] {
        let request = get(path);
        let mut waiting = Box::pin(show(&sidecar, &request));
        let wait = Duration::from_millis(20);
        assert!(tokio::time::timeout(wait, &mut waiting).await.is_err(), "{path} waits for its turn");
        assert_eq!(show(&sidecar, &get("/live")).await.status(), StatusCode::OK);
    }
    drop(turn);
    assert_eq!(show(&sidecar, &get("/v1/connections")).await.status(), StatusCode::OK);
    assert_eq!(sidecar.heavy_page.available_permits(), 1);
}

#[test]
fn the_configuration_is_shown_whole_and_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "a-secret-token").unwrap();
    let file = file.display().to_string();
    for (token, shown) in
        [("{descriptor: 3}".to_owned(), json!({ "descriptor": 3 })), (file.clone(), json!(file))]
    {
        let text = format!(
            "identity: spiffe://demo.postern/ns/shop/sa/orders
stateDir: /s
controlPlane:
  address: 127.0.0.1:1
  spiffeId: spiffe://demo.postern/postern/control
  trustBundle: /b
  joinToken: {token}
workload: {{address: 127.0.0.1, ports: [{{port: 8080, protocol: http, upgrades: [tcp, spdy/3.1]}}, {{port: 9000, protocol: tcp}}]}}
inbound: {{address: \"127.0.0.1:24143\"}}
outbound: {{address: \"127.0.0.1:24140\"}}
health: {{address: \"127.0.0.1:24191\"}}
admin: {{socket: /a}}
documents: /d
"
        );
        let file = SourceFile { name: "sidecar.yaml".to_owned(), text: text.into_bytes() };
        let config = Config::parse(&file).unwrap_or_else(|wrong| panic!("{wrong}"));
        let page = super::pages::config(&Sidecar::new(config, Arc::new(SystemClock), 1));
        assert_eq!(page["controlPlane"]["joinToken"], shown, "{page}");
        assert_eq!(
            page["workload"]["ports"],
            json!([
                { "port": 8080, "protocol": "http", "upgrades": ["tcp", "spdy/3.1"] },
                { "port": 9000, "protocol": "tcp", "upgrades": [] },
            ])
        );
        assert!(!page.to_string().contains("a-secret-token"), "{page}");
    }
}
