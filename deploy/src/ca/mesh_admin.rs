//! What only the running control plane knows: who holds which bundle, and what a rotation waits for. Asked over loopback.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// For one answer; the control plane reads its store for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than the list of all sidecars of a large mesh.
const MOST: u64 = 256 * 1024 * 1024;

/// The mesh admin endpoint, from `--admin` or the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct MeshAdmin(SocketAddr);

impl MeshAdmin {
    pub(super) fn at(address: SocketAddr) -> Self {
        Self(address)
    }

    /// Reads a page.
    pub(super) fn page(self, path: &str) -> Result<Value, String> {
        let told = |error: std::io::Error| {
            format!(
                "no answer from the mesh admin endpoint at {} ({error}); is postern control running?",
                self.0
            )
        };
        let (status, body) = self.get(path).map_err(told)?;
        let value = serde_json::from_slice(&body)
            .map_err(|_| format!("{} is no mesh admin endpoint; name it with --admin", self.0))?;
        if status == 200 { Ok(value) } else { Err(format!("{}{path}: {value}", self.0)) }
    }

    fn get(self, path: &str) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect_timeout(&self.0, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.0)?;
        let mut answer = Vec::new();
        stream.take(MOST).read_to_end(&mut answer)?;
        let malformed = || std::io::Error::other("its answer is not HTTP");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(malformed)?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
        Ok((status, answer.split_off(end + 4)))
    }
}

/// `http://127.0.0.1:24192`, or without the scheme.
pub(super) fn parse(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    address.parse().map_err(|_| "an address with a port, such as http://127.0.0.1:24192".to_owned())
}
