//! Attacks that need no more than a connection and time: whoever says nothing or little, whoever names things by the
//! thousand, and requests that are one thing to a rule and another to the workload. Where a limit stops an attack, it runs a second
//! time with that limit out of reach, and must succeed then; where code stops it, tests/mutants takes that code away.
//!
//! `POSTERN_TEST_LONG=1 cargo test -p postern-tests --test attacks -- --nocapture --test-threads 1` prints the figures of
//! docs/threat-model.md, with Envoy beside.

mod labels;
mod requests;
mod slow;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use postern_tests::wire;

/// web may call orders, but for what each of the guards names.
pub(crate) const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
    to: [{ports: [8080]}]
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: guard, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Deny
  rules:
  - name: admin
    to: [{pathPrefix: [/admin], ports: [8080]}]
  - name: delete
    to: [{methods: [DELETE], ports: [8080]}]
  - name: role
    to: [{headers: [{name: x-role, exact: [admin]}], ports: [8080]}]
"#;

/// One connection of HTTP/1, on which answers are read by the book.
pub(crate) struct Line {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Line {
    pub(crate) fn open(to: SocketAddr) -> Self {
        let writer = wire::connect(to);
        let reader = BufReader::new(writer.try_clone().expect("a descriptor can be duplicated"));
        Self { writer, reader }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // Refused early, the rest of the bytes may find no reader.
        let _ = self.writer.write_all(bytes);
    }

    /// The status of the next answer, whose body is read too; 0 if there is none.
    pub(crate) fn status(&mut self) -> u16 {
        self.read().unwrap_or(0)
    }

    fn read(&mut self) -> std::io::Result<u16> {
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Ok(0);
            }
            let text = line.trim_end().to_ascii_lowercase();
            if status == 0 {
                status = wire::status(line.as_bytes());
            } else if let Some(value) = text.strip_prefix("content-length: ") {
                length = value.parse().unwrap_or(0);
            } else if text.is_empty() {
                self.reader.read_exact(&mut vec![0; length])?;
                return Ok(status);
            }
        }
    }
}
