//! The server name that a TLS handshake asks for, read and passed on: nothing here ends TLS.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postern_policy::norm::CanonHost;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, timeout_at};

/// Longer handshake messages are not read to their end. With a post-quantum key share a usual one has 1,800 bytes.
const MAX_HELLO: usize = 16 << 10;

/// What is known of a server name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerName {
    /// Nothing.
    Unread,
    /// The handshake asks for this one, or for none.
    Read(Option<CanonHost>),
}

/// The beginning of a TLS stream.
#[derive(Debug)]
pub struct Hello {
    /// The name.
    pub name: ServerName,
    /// The bytes that were read.
    pub bytes: Bytes,
    /// Time was up before the handshake's first message was whole.
    pub expired: bool,
}

/// Reads the first message of a TLS handshake that begins with `begun`. What is no such message, is not whole in time or
/// is too long has no name that is known. What was read is not lost.
pub async fn read_server_name<I>(io: &mut I, begun: Bytes, within: Duration) -> io::Result<Hello>
where
    I: AsyncRead + Unpin,
{
    let deadline = Instant::now() + within;
    let mut acceptor = Acceptor::default();
    let mut bytes = BytesMut::from(begun);
    let (mut fed, mut expired) = (0, false);
    let name = loop {
        if let Some(name) = feed(&mut acceptor, &bytes[fed..]) {
            break name;
        }
        fed = bytes.len();
        if fed >= MAX_HELLO {
            break ServerName::Unread;
        }
        match timeout_at(deadline, io.read_buf(&mut bytes)).await {
            Ok(Ok(0)) => break ServerName::Unread,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                expired = true;
                break ServerName::Unread;
            }
        }
    };
    Ok(Hello { name, bytes: bytes.freeze(), expired })
}

/// `None`: more bytes are needed.
fn feed(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Option<ServerName> {
    while !bytes.is_empty() {
        if !matches!(acceptor.read_tls(&mut bytes), Ok(1..)) {
            return Some(ServerName::Unread);
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let Some(name) = hello.server_name() else { return Some(ServerName::Read(None)) };
                // What is no name for rules is no name that they can know.
                return Some(
                    CanonHost::parse(name).map_or(ServerName::Unread, |name| ServerName::Read(Some(name))),
                );
            }
            Err(_) => return Some(ServerName::Unread),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName as Wanted;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// What a TLS client says first.
    fn hello(name: &str, sni: bool) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = rustls::ClientConfig::builder_with_provider(provider);
        let builder = versions.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        config.enable_sni = sni;
        let name = Wanted::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    async fn read(bytes: &[u8], piece: usize) -> Hello {
        let (mut client, mut server) = tokio::io::duplex(piece);
        let (begun, rest) = bytes.split_at(2.min(bytes.len()));
        let rest = rest.to_vec();
        crate::runtime::spawn(async move {
            let _ = client.write_all(&rest).await;
            std::future::pending::<()>().await;
        });
        read_server_name(&mut server, Bytes::copy_from_slice(begun), Duration::from_secs(10)).await.unwrap()
    }

    fn named(name: &str) -> ServerName {
        ServerName::Read(Some(CanonHost::parse(name).unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn names_however_the_bytes_are_cut() {
        let bytes = hello("DB.Example.com", true);
        for piece in [1, 7, 100, 1 << 16] {
            let read = read(&bytes, piece).await;
            assert_eq!(read.name, named("db.example.com"), "{piece}");
            assert_eq!(read.bytes[..], bytes[..], "{piece}: every byte is passed on");
            assert!(!read.expired);
        }
        // One message in several records (RFC 8446, 5.1), as clients cut it that hide the name from the way.
        let message = &bytes[5..];
        let mut cut = Vec::new();
        for part in message.chunks(40) {
            cut.extend_from_slice(&[0x16, 3, 1, 0, u8::try_from(part.len()).unwrap()]);
            cut.extend_from_slice(part);
        }
        assert_eq!(read(&cut, 64).await.name, named("db.example.com"));
        assert_eq!(read(&hello("db.example.com", false), 64).await.name, ServerName::Read(None));
        assert_eq!(read(&hello("10.0.0.1", true), 64).await.name, ServerName::Read(None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_none_is_not_known() {
        let whole = hello("a.example", true);
        let half = read(&whole[..whole.len() / 2], 64).await;
        assert_eq!((half.name, half.expired), (ServerName::Unread, true));
        let mut broken = whole.clone();
        broken[5] = 2;
        for bytes in [&broken[..], b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", b"\x16\x03\x01\x00\x00"] {
            assert_eq!(read(bytes, 64).await.name, ServerName::Unread, "{bytes:?}");
        }
        // A message that says it is long, in records that are full.
        let mut endless = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0];
        endless.resize(64 << 10, 0);
        let read = read(&endless, 4096).await;
        assert_eq!(read.name, ServerName::Unread);
        assert!(!read.expired && read.bytes.len() < 2 * MAX_HELLO, "{}", read.bytes.len());
    }
}
