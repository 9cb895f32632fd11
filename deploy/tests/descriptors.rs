//! A control plane with few descriptors and strangers who want them all: it stays ready, and others still get in.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use postern_svid::{Bundle, Bundles, SystemClock, TrustDomain, tls};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Far fewer than the strangers below would take.
const DESCRIPTORS: usize = 256;
const STRANGERS: usize = 300;

struct Control {
    child: Child,
    identity: SocketAddr,
    health: SocketAddr,
    tls: Arc<ClientConfig>,
    _directory: tempfile::TempDir,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Control {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let state = directory.path().join("state");
        let config = directory.path().join("control.yaml");
        let any = "{address: \"127.0.0.1:0\"}";
        let text = format!(
            "trustDomain: demo.postern\nstateDir: {}\nlisten: {any}\nhealth: {any}\nmeshAdmin: {any}\n",
            state.display()
        );
        std::fs::write(&config, text).expect("the directory can be written to");
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$0\" control --config \"$1\"")])
            .arg(env!("CARGO_BIN_EXE_postern"))
            .arg(&config)
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut line = String::new();
        while !line.contains("control plane ready") {
            line.clear();
            assert!(log.read_line(&mut line).expect("the log is text") > 0, "it ended before it was ready");
        }
        // Nobody reads it, but a full pipe would stop the process.
        std::thread::spawn(move || std::io::copy(&mut log.by_ref(), &mut std::io::sink()));
        let address = |name: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            found.expect("the line names it").parse().expect("an address")
        };
        let td = TrustDomain::parse("demo.postern").expect("a trust domain");
        let pem = std::fs::read(state.join("bundle.pem")).expect("it was written before the line");
        let bundles = Bundles::of(Bundle::from_pem(td.clone(), 0, &pem).expect("a bundle"));
        let expected = [td.control_plane()];
        let tls = tls::client_config(None, &bundles, &expected, Arc::new(SystemClock), &[b"h2"])
            .expect("a configuration");
        let (identity, health) = (address("identity="), address("health="));
        Self { child, identity, health, tls, _directory: directory }
    }

    async fn connect(&self, from: &str) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(format!("{from}:0").parse().expect("an address"))?;
        let connecting = socket.connect(self.identity);
        tokio::time::timeout(Duration::from_secs(5), connecting).await?
    }

    /// A connection that has finished its handshake without a certificate.
    async fn stranger(&self, from: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("control.invalid").expect("a name");
        TlsConnector::from(self.tls.clone()).connect(name, self.connect(from).await?).await
    }

    async fn page(&self, path: &str) -> String {
        let page = async {
            let mut stream = TcpStream::connect(self.health).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), page).await;
        answer.expect("it answers in time").expect("it answers")
    }

    async fn refused(&self, reason: &str) -> u64 {
        let series = format!("postern_control_connections_refused_total{{reason=\"{reason}\"}} ");
        let metrics = self.page("/metrics").await;
        let count = metrics.lines().find_map(|line| line.strip_prefix(&series));
        count.expect("the series exists from the start").parse().expect("a number")
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, |files| files.count())
    }
}

/// Whether the far end keeps it: an HTTP/2 server says its settings first, and then waits.
async fn is_kept(mut stream: TlsStream<TcpStream>) -> bool {
    let mut buf = [0; 1024];
    let settings = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buf)).await;
    matches!(settings, Ok(Ok(1..)))
}

#[test]
fn strangers_cannot_have_them_all() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let control = Control::start();
        assert_eq!(control.refused("strangers_per_source").await, 0);
        let mut held = Vec::new();
        for _ in 0..STRANGERS {
            held.extend(control.stranger("127.0.0.2").await);
        }
        assert!(control.refused("strangers_per_source").await > 0);
        let mut silent = Vec::new();
        for _ in 0..STRANGERS {
            silent.extend(control.connect("127.0.0.3").await);
        }
        assert!(control.refused("handshakes_per_source").await > 0);

        assert!(control.open_files() < DESCRIPTORS / 2, "{} are open", control.open_files());
        let ready = control.page("/ready").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        // Both floods still hold what they got; a workload elsewhere joins as ever.
        let late = control.stranger("127.0.0.4").await.expect("a place was left");
        assert!(is_kept(late).await);
        drop((held, silent));
    });
}
