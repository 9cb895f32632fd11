use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::testing;

/// Two ends of a connection on loopback.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let near = TcpStream::connect(listener.local_addr().expect("it is bound")).await.expect("it listens");
    let (far, _) = listener.accept().await.expect("somebody connects");
    (near, far)
}

/// Tunnels, WebSockets and other upgrades are carried by the same relay.
#[tokio::test]
async fn a_relayed_stream_that_loses_permission_is_reset_on_both_sides() {
    let sidecar = testing::sidecar("");
    let registered = testing::connection(&sidecar, Direction::Inbound);
    let facts = Facts { port: 9000, operation: Operation::Tcp, destination: None, asked: None };
    let stream = Box::new(Stream::open(&sidecar, registered.connection(), facts));
    let entry = Arc::clone(stream.entry());
    let ((mut peer, a), (mut workload, b)) = (pair().await, pair().await);
    let relayed = tokio::spawn(async move { relay(stream, a, Io::tcp(b), &Limits::default()).await });
    peer.write_all(b"x").await.expect("the relay reads");
    workload.read_exact(&mut [0]).await.expect("it comes through");
    entry.revoke();
    for side in [&mut peer, &mut workload] {
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), side.read(&mut [0])).await;
        let error = ended.expect("it ends at once").expect_err("by a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    relayed.await.expect("the relay ends");
    let page = sidecar.metrics.render();
    assert!(page.contains("postern_failures_total{direction=\"inbound\",reason=\"revoked\"} 1"), "{page}");
}

/// The workload's own addresses are 127.0.0.1, and whichever a peer reached.
#[test]
fn a_tunnel_leads_to_the_own_workload_or_nowhere() {
    let sidecar = testing::sidecar("");
    let own: IpAddr = "127.0.0.1".parse().expect("an address");
    let reached = Some("10.0.0.7".parse().expect("an address"));
    let of = |authority: &str| destination(&sidecar.config, reached, authority);
    for authority in ["127.0.0.1:9000", "[::ffff:127.0.0.1]:9000", "10.0.0.7:9000", "[::ffff:10.0.0.7]:9000"]
    {
        assert_eq!(of(authority).expect(authority), SocketAddr::new(own, 9000), "{authority}");
    }
    for authority in [
        "",
        "127.0.0.1",
        ":9000",
        "localhost:9000",
        "orders.shop:9000",
        "0.0.0.0:9000",
        "[::]:9000",
        "[::ffff:0.0.0.0]:9000",
        "127.0.0.2:9000",
        "10.0.0.8:9000",
        "169.254.169.254:80",
        "[::1]:9000",
        "[fe80::1%lo]:9000",
        "127.1:9000",
        "2130706433:9000",
        "0x7f.0.0.1:9000",
        "0177.0.0.1:9000",
        "evil@127.0.0.1:9000",
        "127.0.0.1:9000:80",
        "127.0.0.1:99999",
        "127.0.0.1:-1",
        "127.0.0.1: 9000",
        "127.0.0.1:9000/",
    ] {
        assert!(of(authority).is_err(), "{authority}: {:?}", of(authority));
    }
}
