use std::collections::BTreeSet;

use postern_svid::jwt::{JwtError, verify};
use postern_svid::{Bundles, PeerSvid};
use prometheus_client::registry::Registry;
use serde_json::Value;

use super::*;
use crate::keys::{KeyError, KeyFiles};
use crate::ledger::{Field, Kind, Record};
use crate::metrics::Reason;
use crate::store::Store as _;
use crate::testing::{Ca, HOUR, Home, id, start};

const AUDIENCE: &str = "spiffe://demo.postern/ns/shop/sa/reports";
const MINUTE: Duration = Duration::from_secs(60);

fn open(home: &Home, ca: &Ca) -> Result<JwtAuthority, JwtAuthorityError> {
    let keys = Arc::new(KeyFiles::new(&home.path()));
    let clock = Arc::new(home.clock.clone());
    let lives = JwtLives::with_token(TTL, false);
    let metrics = Metrics::new(&mut Registry::default());
    JwtAuthority::open(ca.authority.clone(), ca.store.clone(), keys, clock, lives, None, metrics)
}

fn ask(jwt: &JwtAuthority, peer: &PeerSvid) -> Result<String, JwtIssueError> {
    let audience = [AUDIENCE.to_owned()];
    jwt.issue(JwtRequest { peer, id: "", audience: &audience, ttl_seconds: 0 }).map(|reply| reply.token)
}

fn check(ca: &Ca, token: &str, home: &Home) -> Result<Value, JwtError> {
    let bundles = Bundles::default().with(ca.authority.bundle());
    verify(token, AUDIENCE, &bundles, home.clock.wall()).map(|svid| Value::Object(svid.claims))
}

fn key_id(token: &str) -> String {
    use base64::Engine as _;
    let header = token.split('.').next().unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    assert_eq!((&header["alg"], &header["typ"]), (&"ES256".into(), &"JWT".into()));
    header["kid"].as_str().unwrap().to_owned()
}

fn published(ca: &Ca) -> BTreeSet<String> {
    ca.authority.bundle().jwt_keys().iter().map(|key| key.id().to_owned()).collect()
}

fn files(home: &Home) -> usize {
    KeyFiles::new(&home.path()).names().unwrap().iter().filter(|name| name.starts_with(LABEL)).count()
}

#[test]
fn a_token_of_ones_own_id_for_whom_it_is_meant() {
    let home = Home::new();
    let ca = home.ca();
    assert_eq!(ca.authority.bundle().sequence(), 1);
    let jwt = open(&home, &ca).unwrap();
    assert_eq!((ca.authority.bundle().sequence(), published(&ca).len()), (2, 1));
    let peer = ca.joined(&id("orders"));

    let token = ask(&jwt, &peer).unwrap();
    let now = start().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let expected = serde_json::json!({
        "sub": id("orders").as_str(), "aud": [AUDIENCE], "iat": now, "exp": now + 300,
    });
    assert_eq!(check(&ca, &token, &home).unwrap(), expected);
    assert!(published(&ca).contains(&key_id(&token)));

    let with = |id: &str, audience: &[&str], ttl_seconds| {
        let audience: Vec<String> = audience.iter().map(|one| (*one).to_owned()).collect();
        let reply = jwt.issue(JwtRequest { peer: &peer, id, audience: &audience, ttl_seconds })?;
        assert_eq!(reply.now, start());
        Ok::<_, JwtIssueError>(reply.expires.duration_since(start()).unwrap())
    };
    assert_eq!(with(id("orders").as_str(), &[AUDIENCE, "b", AUDIENCE], 90).unwrap(), MINUTE * 3 / 2);
    assert_eq!(with("", &[AUDIENCE], 86_400).unwrap(), TTL, "at most what the CA gives");
    let refused = |result: Result<Duration, JwtIssueError>| result.unwrap_err().reason();
    assert_eq!(refused(with("", &[AUDIENCE], 59)), "ttl");
    assert_eq!(refused(with(id("store").as_str(), &[AUDIENCE], 0)), "denied");
    assert_eq!(refused(with("orders", &[AUDIENCE], 0)), "denied");
    let long = "a".repeat(2_049);
    for bad in [&[][..], &[""], &["a b"], &["ä"], &["a\n"], &[&long], &["a"; 9]] {
        assert_eq!(refused(with("", bad, 0)), "audience", "{bad:?}");
    }
    assert_eq!(jwt.metrics.jwt_issued.get(), 3);
    let denied = Reason { reason: "denied" };
    assert_eq!(jwt.metrics.jwt_rejected.get_or_create(&denied).get(), 2);
}

#[test]
fn who_would_not_be_renewed_gets_no_token() {
    let home = Home::new();
    let ca = home.ca();
    let jwt = open(&home, &ca).unwrap();
    let peer = ca.joined(&id("orders"));
    ask(&jwt, &peer).unwrap();
    // Of another CA's making.
    let elsewhere = Home::new();
    let stranger = elsewhere.ca().joined(&id("orders"));
    assert_eq!(ask(&jwt, &stranger).unwrap_err().reason(), "unauthenticated");
    // Two parties hold its key.
    let forked = ca.joined(&id("store"));
    let (_, lineage) = ca.store.certificate(forked.serial()).unwrap().unwrap();
    ca.store.mark_forked(lineage.id, start()).unwrap();
    assert_eq!(ask(&jwt, &forked).unwrap_err().reason(), "revoked");
    // On a connection that has outlived its certificate.
    home.clock.advance(HOUR + Duration::from_secs(1));
    assert_eq!(ask(&jwt, &peer).unwrap_err().reason(), "unauthenticated");
}

#[test]
fn each_token_is_in_the_ledger_before_it_leaves() {
    let home = Home::new();
    let store = home.store_with_ledger(1 << 20).unwrap();
    let ca = home.ca_on(store);
    let jwt = open(&home, &ca).unwrap();
    let peer = ca.joined(&id("orders"));
    let token = ask(&jwt, &peer).unwrap();
    let bodies = rusqlite::Connection::open(home.path().join(crate::store::DATABASE))
        .unwrap()
        .prepare("SELECT body FROM outbox ORDER BY sequence DESC")
        .unwrap()
        .query_map([], |row| row.get::<_, Vec<u8>>(0))
        .unwrap()
        .map(|body| Record::decode(&body.unwrap()).unwrap())
        .collect::<Vec<_>>();
    let record = bodies.first().unwrap();
    assert_eq!(record.kind, Kind::Jwt);
    assert_eq!(record.text(Field::Id), Some(id("orders").as_str()));
    assert_eq!(record.text(Field::Audience), Some(AUDIENCE));
    assert_eq!(record.text(Field::Label), Some(key_id(&token).as_str()));
    assert_eq!(record.bytes(Field::Predecessor), Some(peer.serial()));
    // The clock falls back behind it: nothing is signed that would seem older than it is.
    home.clock.jump_wall(-60_000);
    assert_eq!(ask(&jwt, &peer).unwrap_err().reason(), "clock");
}

#[test]
fn keys_replace_themselves_and_no_token_loses_its_key() {
    let home = Home::new();
    let ca = home.ca();
    let jwt = open(&home, &ca).unwrap();
    let lives = jwt.lives;
    let first = published(&ca);
    let mut sequence = ca.authority.bundle().sequence();
    let step = Duration::from_secs(300);
    let mut turns = Vec::new();
    // Every token that lives, with its key.
    let mut tokens: Vec<(String, SystemTime)> = Vec::new();
    let mut known_since = std::collections::BTreeMap::new();
    let mut peer = ca.joined(&id("orders"));
    for _ in 0..(56 * 12) {
        let now = home.clock.wall();
        if peer.not_after() < now + step {
            peer = ca.joined(&id("orders"));
        }
        if let Some(turn) = jwt.maintain().unwrap() {
            turns.push(turn);
            assert_eq!(jwt.maintain().unwrap(), None, "once");
            let bundle = ca.authority.bundle();
            assert_eq!(bundle.sequence() > sequence, turn != JwtTurn::Activated, "{turn:?}");
            sequence = bundle.sequence();
        }
        for key in published(&ca) {
            known_since.entry(key).or_insert(now);
        }
        let token = ask(&jwt, &peer).unwrap();
        let signer = key_id(&token);
        if !first.contains(&signer) {
            assert!(now >= known_since[&signer] + lives.propagation, "everybody has had time to learn it");
        }
        tokens.retain(|(_, end)| *end + Duration::from_secs(30) >= now);
        tokens.push((token, now + TTL));
        for (token, _) in &tokens {
            check(&ca, token, &home).unwrap();
        }
        assert!(files(&home) <= 2 && published(&ca).len() <= 2);
        home.clock.advance(step);
    }
    use JwtTurn::{Activated, Prepared, Removed};
    assert_eq!(turns[..3], [Prepared, Activated, Removed]);
    assert!(turns.chunks_exact(3).all(|three| three == [Prepared, Activated, Removed]), "{turns:?}");
    assert!(turns.len() >= 9, "{turns:?}");
    assert!(first.is_disjoint(&published(&ca)));
}

#[test]
fn a_restart_goes_on_where_it_was_and_a_damaged_one_says_so() {
    let home = Home::new();
    let (token, peer) = {
        let ca = home.ca();
        let jwt = open(&home, &ca).unwrap();
        home.clock.advance(13 * HOUR);
        assert_eq!(jwt.maintain().unwrap(), Some(JwtTurn::Prepared));
        let peer = ca.joined(&id("orders"));
        (ask(&jwt, &peer).unwrap(), peer)
    };
    let ca = home.ca();
    assert_eq!(published(&ca).len(), 2, "even where no JWT authority is switched on any more");
    check(&ca, &token, &home).unwrap();
    let jwt = open(&home, &ca).unwrap();
    assert_eq!(key_id(&ask(&jwt, &peer).unwrap()), key_id(&token));
    // A turn whose outcome was not learned is taken up from the store.
    let other = open(&home, &ca).unwrap();
    home.clock.advance(4 * HOUR);
    assert_eq!(other.maintain().unwrap(), Some(JwtTurn::Activated));
    assert_eq!(jwt.maintain().unwrap(), None);
    let peer = ca.joined(&id("orders"));
    assert_ne!(key_id(&ask(&jwt, &peer).unwrap()), key_id(&token));
    drop((jwt, other));

    let keys = KeyFiles::new(&home.path());
    let name = keys.names().unwrap().into_iter().find(|name| name.starts_with(LABEL)).unwrap();
    keys.remove(&name).unwrap();
    assert!(matches!(open(&home, &ca), Err(JwtAuthorityError::Key(KeyError::Gone(_)))));
    keys.create(&name, ISSUING_KEY).unwrap();
    let error = open(&home, &ca).err().unwrap().to_string();
    assert!(error.contains(&name) && error.contains("backup"), "{error}");
}

#[test]
fn a_key_of_somebody_else_signs_nothing_here() {
    let (home, elsewhere) = (Home::new(), Home::new());
    let (ca, theirs) = (home.ca(), elsewhere.ca());
    let jwt = open(&home, &ca).unwrap();
    let their_jwt = open(&elsewhere, &theirs).unwrap();
    let token = ask(&their_jwt, &theirs.joined(&id("orders"))).unwrap();
    assert_eq!(check(&ca, &token, &home), Err(JwtError::UnknownKey));
    ask(&jwt, &ca.joined(&id("orders"))).unwrap();
}

#[test]
fn switched_off_takes_every_token_back() {
    let home = Home::new();
    let ca = home.ca();
    let jwt = open(&home, &ca).unwrap();
    let token = ask(&jwt, &ca.joined(&id("orders"))).unwrap();
    let sequence = ca.authority.bundle().sequence();
    let keys = KeyFiles::new(&home.path());
    assert_eq!(withdraw(&ca.authority, ca.store.as_ref(), &keys, start()).unwrap(), 1);
    assert_eq!((ca.authority.bundle().sequence(), files(&home)), (sequence + 1, 0));
    assert_eq!(check(&ca, &token, &home), Err(JwtError::UnknownKey));
    assert_eq!(withdraw(&ca.authority, ca.store.as_ref(), &keys, start()).unwrap(), 0);
    // Switched on again, another key signs.
    let again = open(&home, &ca).unwrap();
    let peer = ca.joined(&id("orders"));
    assert_ne!(key_id(&ask(&again, &peer).unwrap()), key_id(&token));

    // A flood costs its own identity its place and nobody else's.
    let full = (0..200).map(|_| again.admit(&peer)).find_map(Result::err).unwrap();
    assert_eq!(full.reason(), "busy");
    assert!(again.admit(&ca.joined(&id("store"))).is_ok());
}

/// A control plane that was away when a successor should have been made still gives everybody the time to learn it.
#[test]
fn a_late_successor_waits_too() {
    let home = Home::new();
    let ca = home.ca();
    let jwt = open(&home, &ca).unwrap();
    home.clock.advance(20 * HOUR);
    assert_eq!(jwt.maintain().unwrap(), Some(JwtTurn::Prepared));
    let old = key_id(&ask(&jwt, &ca.joined(&id("orders"))).unwrap());
    home.clock.advance(jwt.lives.propagation - Duration::from_secs(1));
    assert_eq!(jwt.maintain().unwrap(), None);
    home.clock.advance(Duration::from_secs(1));
    assert_eq!(jwt.maintain().unwrap(), Some(JwtTurn::Activated));
    assert_ne!(key_id(&ask(&jwt, &ca.joined(&id("orders"))).unwrap()), old);
}
