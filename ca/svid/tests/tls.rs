//! Handshakes between our own configurations, and what refusals are called. Both ends live in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod pki;

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use pki::*;
use postern_svid::{Bundles, Clock, SpiffeId, Svid, TestClock, VerifyError, tls};
use rustls::{CipherSuite, ClientConnection, HandshakeKind, NamedGroup, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn svid(pki: &Pki) -> Svid {
    Svid::from_pkcs8(pki.chain(), pki.leaf_key.serialized_der()).unwrap()
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(TestClock::at(now()))
}

fn server(pki: &Pki) -> Arc<ServerConfig> {
    tls::server_config(&svid(pki), &pki.bundles(), clock(), &[b"postern/1", b"h2"]).unwrap()
}

fn client(config: Arc<rustls::ClientConfig>) -> ClientConnection {
    ClientConnection::new(config, ServerName::try_from("ignored.invalid").unwrap()).unwrap()
}

/// Carries bytes until both are done; the first error of either side as `(who, label)`.
fn shake(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> Result<(), (&'static str, &'static str)> {
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut reader = &wire[..];
        while !reader.is_empty() {
            server.read_tls(&mut reader).unwrap();
        }
        server.process_new_packets().map_err(|error| ("server", label(error)))?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut reader = &wire[..];
        while !reader.is_empty() {
            client.read_tls(&mut reader).unwrap();
        }
        client.process_new_packets().map_err(|error| ("client", label(error)))?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

/// As tokio-rustls hands it out.
fn label(error: rustls::Error) -> &'static str {
    tls::refusal(&io::Error::new(io::ErrorKind::InvalidData, error))
}

#[test]
fn both_prove_who_they_are_and_nothing_is_resumed() {
    let pki = Pki::new();
    let server_config = server(&pki);
    let client_config =
        tls::client_config(Some(&svid(&pki)), &pki.bundles(), &[id(ID)], clock(), &[b"postern/1", b"h2"])
            .unwrap();
    for _ in 0..2 {
        let (mut client, mut server) =
            (client(client_config.clone()), ServerConnection::new(server_config.clone()).unwrap());
        shake(&mut client, &mut server).unwrap();
        assert_eq!(client.alpn_protocol(), Some(&b"postern/1"[..]));
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.negotiated_cipher_suite().unwrap().suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!(tls::peer(server.peer_certificates()).unwrap().id().as_str(), ID);
        assert_eq!(tls::peer(client.peer_certificates()).unwrap().id().as_str(), ID);
        assert_eq!(server.server_name(), None);
        client.writer().write_all(b"hello").unwrap();
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut &wire[..]).unwrap();
        server.process_new_packets().unwrap();
        let mut text = [0; 5];
        server.reader().read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        assert_eq!(client.tls13_tickets_received(), 0);
    }
}

/// Each side alone must see to it: a foreign peer would resume if it could.
#[test]
fn neither_side_resumes_with_a_peer_that_would() {
    let pki = Pki::new();
    let own = svid(&pki);
    let ours = tls::client_config(Some(&own), &pki.bundles(), &[id(ID)], clock(), &[]).unwrap();
    let mut willing_client = (*ours).clone();
    willing_client.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let willing_client = Arc::new(willing_client);
    let server_of_ours = tls::server_config(&own, &pki.bundles(), clock(), &[]).unwrap();
    let mut willing_server = (*server_of_ours).clone();
    willing_server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    willing_server.send_tls13_tickets = 2;
    let willing_server = Arc::new(willing_server);
    let second = |client_config: &Arc<rustls::ClientConfig>, server_config: &Arc<ServerConfig>| {
        let mut last = None;
        for _ in 0..2 {
            let mut client = client(client_config.clone());
            shake(&mut client, &mut ServerConnection::new(server_config.clone()).unwrap()).unwrap();
            last = Some((client.handshake_kind().unwrap(), client.tls13_tickets_received()));
        }
        last.unwrap()
    };
    assert_eq!(second(&willing_client, &willing_server).0, HandshakeKind::Resumed, "the test can see it");
    assert_eq!(second(&willing_client, &server_of_ours), (HandshakeKind::Full, 0));
    assert_eq!(second(&ours, &willing_server).0, HandshakeKind::Full);
}

#[test]
fn clients_that_are_refused() {
    let pki = Pki::new();
    let nobody = tls::client_config(None, &pki.bundles(), &[id(ID)], clock(), &[]).unwrap();
    let outcome = |config, server_config: Arc<ServerConfig>| {
        shake(&mut client(config), &mut ServerConnection::new(server_config).unwrap())
    };
    assert_eq!(outcome(nobody.clone(), server(&pki)), Err(("server", "no_certificate")));

    let stranger = Pki::new();
    let stranger =
        tls::client_config(Some(&svid(&stranger)), &pki.bundles(), &[id(ID)], clock(), &[]).unwrap();
    assert_eq!(outcome(stranger.clone(), server(&pki)), Err(("server", "untrusted")));

    let optional = || tls::server_config_optional_client(&svid(&pki), &pki.bundles(), clock(), &[]).unwrap();
    assert_eq!(outcome(nobody, optional()), Ok(()));
    assert_eq!(outcome(stranger, optional()), Err(("server", "untrusted")));

    let late: Arc<dyn Clock> = Arc::new(TestClock::at(now() + Duration::from_secs(3_601)));
    let own = tls::client_config(Some(&svid(&pki)), &pki.bundles(), &[id(ID)], clock(), &[]).unwrap();
    let late = tls::server_config(&svid(&pki), &pki.bundles(), late, &[]).unwrap();
    assert_eq!(outcome(own.clone(), late), Err(("server", "expired")));

    let evil = postern_svid::TrustDomain::parse("evil.example").unwrap();
    let mut foreign = Pki::new();
    foreign.root = root_params(&evil);
    foreign.issuing = issuing_params(&evil);
    foreign.leaf = leaf_params("spiffe://evil.example/a");
    let foreign = tls::client_config(Some(&svid(&foreign)), &pki.bundles(), &[id(ID)], clock(), &[]).unwrap();
    assert_eq!(outcome(foreign, server(&pki)), Err(("server", "unknown_trust_domain")));

    let http1 =
        tls::client_config(Some(&svid(&pki)), &pki.bundles(), &[id(ID)], clock(), &[b"http/1.1"]).unwrap();
    assert_eq!(outcome(http1, server(&pki)), Err(("server", "alpn")));
    assert_eq!(outcome(own, server(&pki)), Ok(()));
}

#[test]
fn servers_that_are_refused() {
    let pki = Pki::new();
    let dial = |expected: &[SpiffeId], bundles: &Bundles, clock: Arc<dyn Clock>| {
        let config = tls::client_config(Some(&svid(&pki)), bundles, expected, clock, &[]).unwrap();
        shake(&mut client(config), &mut ServerConnection::new(server(&pki)).unwrap())
    };
    let payments = id("spiffe://demo.postern/ns/shop/sa/payments");
    assert_eq!(dial(std::slice::from_ref(&payments), &pki.bundles(), clock()), Err(("client", "wrong_peer")));
    assert_eq!(dial(&[payments, id(ID)], &pki.bundles(), clock()), Ok(()));
    assert_eq!(dial(&[id(ID)], &Pki::new().bundles(), clock()), Err(("client", "untrusted")));
    let early: Arc<dyn Clock> = Arc::new(TestClock::at(now() - Duration::from_secs(200)));
    assert_eq!(dial(&[id(ID)], &pki.bundles(), early), Err(("client", "not_yet_valid")));
    assert!(matches!(
        tls::client_config(None, &pki.bundles(), &[], clock(), &[]),
        Err(tls::ConfigError::NobodyExpected)
    ));
}

#[test]
fn a_pinned_root_must_be_sent_and_must_lead_to_the_leaf() {
    let mut pki = Pki::new();
    let other = Pki::new();
    let sha256 = |der: &[u8]| {
        let mut hash = [0; 32];
        hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref());
        hash
    };
    pki.send = |chain| chain;
    // Signatures differ from run to run of the test CA, so the chain is made once.
    let chain = pki.chain();
    let pin = sha256(&chain[2]);
    let fixed = Svid::from_pkcs8(chain.clone(), pki.leaf_key.serialized_der()).unwrap();
    let shake_with = |svid: &Svid, pin, expected: &str| {
        let config = tls::client_config_pinned(pin, &[id(expected)], clock(), &[]).unwrap();
        let server = tls::server_config_optional_client(svid, &pki.bundles(), clock(), &[]).unwrap();
        shake(&mut client(config), &mut ServerConnection::new(server).unwrap())
    };
    assert_eq!(shake_with(&fixed, pin, ID), Ok(()));
    let short = Svid::from_pkcs8(chain[..2].to_vec(), pki.leaf_key.serialized_der()).unwrap();
    assert_eq!(shake_with(&short, pin, ID), Err(("client", "untrusted")), "not sent");
    assert_eq!(shake_with(&fixed, pin, "spiffe://demo.postern/other"), Err(("client", "wrong_peer")));
    assert_eq!(shake_with(&fixed, sha256(&chain[1]), ID), Err(("client", "untrusted")), "not a root");
    assert_eq!(shake_with(&fixed, [0; 32], ID), Err(("client", "untrusted")));
    // An attacker sends the right root beside a chain of his own.
    let mut forged = other.chain();
    forged.push(chain[2].clone());
    let forged = Svid::from_pkcs8(forged, other.leaf_key.serialized_der()).unwrap();
    assert_eq!(shake_with(&forged, pin, ID), Err(("client", "untrusted")));
}

#[test]
fn what_is_no_tls_13() {
    let pki = Pki::new();
    let feed = |bytes: &[u8]| {
        let mut server = ServerConnection::new(server(&pki)).unwrap();
        server.read_tls(&mut &bytes[..]).unwrap();
        server.process_new_packets().map(drop).map_err(label)
    };
    assert_eq!(feed(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n"), Err("not_tls"));
    assert_eq!(feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Err("not_tls"));
    // A ClientHello of TLS 1.2: one suite, groups, point formats, signature algorithms, no supported_versions.
    let extensions = [
        &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17][..],
        &[0x00, 0x0b, 0x00, 0x02, 0x01, 0x00],
        &[0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03],
    ]
    .concat();
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, u8::try_from(extensions.len()).unwrap()]);
    body.extend(&extensions);
    let mut hello = vec![0x16, 0x03, 0x01, 0, u8::try_from(body.len() + 4).unwrap(), 1, 0, 0];
    hello.push(u8::try_from(body.len()).unwrap());
    hello.extend(&body);
    assert_eq!(feed(&hello), Err("tls_version"));
    let inner = rustls::Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(
        Arc::new(VerifyError::NoSpiffeId),
    )));
    let error = io::Error::new(io::ErrorKind::InvalidData, inner);
    assert_eq!(
        (tls::refusal(&error), tls::explain(&error)),
        ("no_spiffe_id", VerifyError::NoSpiffeId.to_string())
    );
    assert_eq!(tls::refusal(&io::ErrorKind::UnexpectedEof.into()), "closed");
    assert_eq!(tls::refusal(&io::ErrorKind::TimedOut.into()), "timeout");
}
