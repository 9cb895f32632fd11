//! What replicas share, in a real etcd: swaps, leases and watches, and what is said when it is away, hangs, is put back or is the wrong
//! one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postern_ca::store::shared::{
    Change, Fence, MAX_ALL, MAX_CHANGES, MAX_VALUE, Shared as _, SharedError, Swap,
};
use postern_ca_etcd::{Config, Endpoint, Etcd as Store, Prefix};
use postern_svid::TrustDomain;
use postern_tests::{Block, Etcd, foreign, wait};
use prometheus_client::registry::Registry;

const TTL: Duration = Duration::from_secs(30);

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect("it is a name")
}

fn open(config: Config) -> Store {
    Store::new(config, &td("demo.postern"), &mut Registry::default()).expect("a thread can be started")
}

/// An etcd and a store in it; the directory last, for it is dropped last.
struct Place {
    etcd: Etcd,
    store: Arc<Store>,
    _directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Option<Self> {
        if !foreign::need(&["etcd", "etcdctl"]) {
            return None;
        }
        let directory = tempfile::Builder::new().prefix("postern-test-").tempdir().expect("there is room");
        let etcd = Etcd::start(directory.path());
        let store = Arc::new(open(etcd.config(&td("demo.postern"))));
        Some(Self { etcd, store, _directory: directory })
    }

    fn config(&self) -> Config {
        self.etcd.config(&td("demo.postern"))
    }
}

fn done(swap: Result<Swap, SharedError>) -> u64 {
    match swap {
        Ok(Swap::Done(revision)) => revision,
        other => panic!("{other:?}"),
    }
}

fn put(store: &Store, key: &str, value: &[u8]) -> u64 {
    let version = store.read(key).expect("etcd answers").version(key);
    done(store.swap(&[Change::put(key, version, value.to_vec())], None))
}

/// What is said, and how long it took.
fn timed<T: std::fmt::Debug>(call: impl FnOnce() -> Result<T, SharedError>) -> (SharedError, Duration) {
    let begun = Instant::now();
    let error = call().expect_err("it must fail");
    (error, begun.elapsed())
}

fn is_away(error: &SharedError) -> bool {
    matches!(error, SharedError::Unavailable(_))
}

#[test]
fn swaps_are_whole_and_fences_hold() {
    let Some(place) = Place::new() else { return };
    let store = &place.store;
    let first =
        done(store.swap(&[Change::put("a/x", 0, b"1".to_vec()), Change::put("a/y", 0, Vec::new())], None));
    let listing = store.read("a/").expect("etcd answers");
    assert_eq!((listing.revision, listing.version("a/x"), listing.version("a/y")), (first, first, first));
    let both = [Change::put("a/x", first, b"2".to_vec()), Change::put("a/y", 0, b"2".to_vec())];
    assert_eq!(store.swap(&both, None).expect("etcd answers"), Swap::Conflict);
    assert_eq!(store.read("a/").expect("etcd answers"), listing, "neither was written");
    let both = [Change::put("a/x", first, b"2".to_vec()), Change::keep("a/y", first)];
    let second = done(store.swap(&both, None));
    let late = store.swap(&[Change::delete("a/x", first)], None).expect("etcd answers");
    assert_eq!(late, Swap::Conflict);
    let stale = [Change::put("a/z", 0, Vec::new()), Change::keep("a/x", first)];
    assert_eq!(store.swap(&stale, None).expect("etcd answers"), Swap::Conflict);
    done(store.swap(&[Change::delete("a/x", second)], None));
    let names = |prefix| -> Vec<_> {
        let listing = store.read(prefix).expect("etcd answers");
        listing.entries.into_iter().map(|entry| entry.key).collect()
    };
    assert_eq!(
        (names("a/"), names(""), names("b")),
        (vec!["a/y".to_owned()], vec!["a/y".to_owned()], vec![])
    );

    // Sixteen at once: one of them makes each version.
    let versions: Vec<u64> = std::thread::scope(|scope| {
        let racing: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let version = store.read("race").expect("etcd answers").version("race");
                        if let Swap::Done(at) =
                            store.swap(&[Change::put("race", version, vec![1])], None).expect("etcd answers")
                        {
                            return at;
                        }
                    }
                })
            })
            .collect();
        racing.into_iter().map(|one| one.join().expect("it ends")).collect()
    });
    let mut distinct = versions.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 16, "{versions:?}");

    let write = |fence: &Fence| {
        let version = store.read("fenced").expect("etcd answers").version("fenced");
        store.swap(&[Change::put("fenced", version, Vec::new())], Some(fence)).expect("etcd answers")
    };
    let short = Duration::from_secs(1);
    let lease = store.acquire("leader", "a", short).expect("etcd answers").expect("it is free");
    assert_eq!(store.acquire("leader", "b", TTL).expect("etcd answers"), None);
    assert_eq!(store.acquire("leader", "a", TTL).expect("etcd answers"), None);
    assert_eq!(store.holder("leader").expect("etcd answers").as_deref(), Some("a"));
    assert!(matches!(write(&lease), Swap::Done(_)));
    assert!(store.renew(&lease).expect("etcd answers"));
    wait::until("the lease ends by itself", wait::PATIENCE, || {
        store.holder("leader").expect("etcd answers").is_none()
    });
    assert_eq!(write(&lease), Swap::Fenced, "nobody has followed, and still");
    let second = store.acquire("leader", "b", TTL).expect("etcd answers").expect("it is free");
    assert!(second.token > lease.token);
    assert_eq!(write(&lease), Swap::Fenced);
    assert!(!store.renew(&lease).expect("etcd answers"));
    store.release(&lease).expect("it is nobody's");
    assert!(matches!(write(&second), Swap::Done(_)));
    let conflict = store.swap(&[Change::put("fenced", 1, Vec::new())], Some(&second)).expect("etcd answers");
    assert_eq!(conflict, Swap::Conflict, "the fence holds, the version does not");
    store.release(&second).expect("etcd answers");
    assert_eq!((write(&second), store.holder("leader").expect("etcd answers")), (Swap::Fenced, None));
}

#[test]
fn the_largest_values_fit_and_larger_ones_are_told_of() {
    let Some(place) = Place::new() else { return };
    let store = &place.store;
    let large = |key: &str, length| Change::put(key, 0, vec![7; length]);
    done(store.swap(&[large("a", MAX_VALUE), large("b", MAX_ALL - MAX_VALUE)], None));
    let read = store.read("").expect("etcd answers");
    assert_eq!(read.entries.iter().map(|entry| entry.value.len()).sum::<usize>(), MAX_ALL);
    let error = store.swap(&[large("c", MAX_VALUE + 1)], None).expect_err("it is too large");
    assert!(matches!(error, SharedError::TooLarge { .. }), "{error}");
    let many: Vec<_> = (0..MAX_CHANGES).map(|n| large(&format!("n/{n:03}"), 10)).collect();
    let lease = store.acquire("leader", "a", TTL).expect("etcd answers").expect("it is free");
    assert!(matches!(store.swap(&many, Some(&lease)), Ok(Swap::Done(_))), "as many operations as etcd takes");
    // Keys that no control plane has written.
    place.etcd.ctl(&["put", "/postern/demo.postern/data/Über", "x"]);
    let error = store.read("").expect_err("that is no entry");
    assert!(matches!(error, SharedError::Damaged { .. }), "{error}");
}

#[test]
fn a_wait_hears_of_changes_through_restarts_compaction_and_an_older_state() {
    let Some(place) = Place::new() else { return };
    let (etcd, store) = (&place.etcd, &place.store);
    let long = Duration::from_secs(20);
    let at = put(store, "trust/a", b"1");
    assert_eq!(store.wait("trust/", at - 1, long).expect("etcd answers"), at, "it happened before the wait");
    put(store, "replica/a", b"1");
    assert_eq!(
        store.wait("trust/", at, Duration::from_millis(50)).expect("etcd answers"),
        at,
        "nothing in time"
    );
    let hears = |change: &dyn Fn() -> u64| {
        let now = store.read("trust/").expect("etcd answers").revision;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || store.wait("trust/", now, long).expect("etcd answers"));
            wait::pause(Duration::from_millis(100));
            let begun = Instant::now();
            let changed = change();
            assert_eq!(waiting.join().expect("it ends"), changed);
            begun.elapsed()
        })
    };
    let heard = hears(&|| put(store, "trust/a", &[1; MAX_VALUE]));
    let gone = hears(&|| {
        done(store.swap(
            &[Change::delete("trust/a", store.read("trust/").expect("etcd answers").version("trust/a"))],
            None,
        ))
    });
    println!("a change is heard of after {heard:?}, a deletion after {gone:?}");
    assert!(heard < Duration::from_secs(2) && gone < Duration::from_secs(2));

    // What happened meanwhile is forgotten: whoever waits is told to read.
    let before = put(store, "trust/b", b"1");
    let newest = put(store, "trust/b", b"2");
    etcd.save("snapshot");
    etcd.ctl(&["compact", &newest.to_string()]);
    let begun = Instant::now();
    assert!(store.wait("trust/", before - 1, long).expect("etcd answers") >= newest);
    assert!(begun.elapsed() < Duration::from_secs(5));

    // It is killed while somebody waits, and comes back.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.wait("trust/", newest, long));
        wait::pause(Duration::from_millis(200));
        let begun = Instant::now();
        etcd.kill();
        let error = waiting.join().expect("it ends").expect_err("the connection broke");
        assert!(
            is_away(&error) && begun.elapsed() < Duration::from_secs(5),
            "{error} after {:?}",
            begun.elapsed()
        );
    });
    let (error, took) = timed(|| store.read(""));
    assert!(is_away(&error) && error.to_string().contains("refused"), "{error}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    etcd.start_again();
    let after = put(store, "trust/c", b"1");
    assert_eq!(store.wait("trust/", newest, long).expect("etcd answers"), after, "what was missed");
    for n in 0..5 {
        put(store, "trust/c", &[n]);
    }
    let newest = store.read("").expect("etcd answers").revision;
    etcd.put_back("snapshot");
    let begun = Instant::now();
    let found = store.wait("trust/", newest, long).expect("etcd answers");
    assert!(found < newest, "{found} is what an older state gives, after {newest}");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "at once, not at the end of the wait: {:?}",
        begun.elapsed()
    );
    let listing = store.read("trust/").expect("etcd answers");
    assert!(listing.find("trust/c").is_none() && listing.find("trust/b").is_some());
}

#[test]
fn an_etcd_that_hangs_costs_two_seconds() {
    let Some(place) = Place::new() else { return };
    let (etcd, store) = (&place.etcd, &place.store);
    put(store, "k", b"1");
    let version = store.read("k").expect("etcd answers").version("k");
    let lease = store.acquire("leader", "a", TTL).expect("etcd answers").expect("it is free");
    etcd.signal(Signal::SIGSTOP);
    let most = Duration::from_millis(2_900);
    // The first on a connection that is there, the others without one.
    for (call, (error, took)) in [
        ("read", timed(|| store.read("k"))),
        ("swap", timed(|| store.swap(&[Change::put("k", version, Vec::new())], Some(&lease)))),
        ("renew", timed(|| store.renew(&lease))),
    ] {
        println!("{call}: {took:?}: {error}");
        assert!(is_away(&error) && took < most, "{call}: {took:?}: {error}");
        assert!(error.to_string().contains(&etcd.url()), "{error}");
    }
    let (error, took) = timed(|| store.wait("", version, Duration::from_millis(500)));
    assert!(is_away(&error) && took < 3 * most, "{took:?}: {error}");
    // Many at once wait together, not one after the other.
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| store.read("k").expect_err("it hangs"));
        }
    });
    assert!(begun.elapsed() < most, "{:?}", begun.elapsed());
    etcd.signal(Signal::SIGCONT);
    wait::until("it answers again", wait::PATIENCE, || store.read("k").is_ok());

    // With a second member to ask, a hanging one costs a call less than its time.
    etcd.signal(Signal::SIGSTOP);
    let directory = tempfile::tempdir().expect("there is room");
    let other = Etcd::start(directory.path());
    let mut config = other.config(&td("demo.postern"));
    let both = std::fs::read_to_string(etcd.file("ca.pem")).expect("it is there")
        + &std::fs::read_to_string(other.file("ca.pem")).expect("it is there");
    let authorities = other.secret("both.pem", &both);
    if let Some(tls) = config.tls.as_mut() {
        tls.ca = authorities;
    }
    config.endpoints.insert(0, Endpoint::parse(&etcd.url()).expect("it is one"));
    let store = open(config);
    let begun = Instant::now();
    store.read("").expect("the other one answers");
    let (first, begun) = (begun.elapsed(), Instant::now());
    store.read("").expect("the other one answers");
    println!("past a member that hangs: {first:?}, then {:?}", begun.elapsed());
    assert!(first < most && begun.elapsed() < Duration::from_secs(1));
    etcd.signal(Signal::SIGCONT);
}

#[test]
fn a_wrong_etcd_is_told_with_the_way_out() {
    let Some(place) = Place::new() else { return };
    let etcd = &place.etcd;
    put(&place.store, "k", b"1");
    let refused = |config: Config, says: &[&str]| {
        let store = open(config);
        let (mut error, mut took) = timed(|| store.read(""));
        // Whoever is refused may see the connection break before it hears why.
        for _ in 0..20 {
            if !(is_away(&error)
                && ["reset", "Broken pipe", "closed"].iter().any(|word| error.to_string().contains(word)))
            {
                break;
            }
            (error, took) = timed(|| store.read(""));
        }
        println!("{error}");
        let text = error.to_string();
        assert!(says.iter().all(|word| text.contains(word)), "{says:?}: {text}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        error
    };
    let changed = |change: &dyn Fn(&mut Config)| {
        let mut config = place.config();
        change(&mut config);
        config
    };
    let tls = |change: &dyn Fn(&mut postern_ca_etcd::Tls)| {
        changed(&|config| change(config.tls.as_mut().expect("it has one")))
    };
    let nobody = Block::take();
    let url = format!("https://{}:2379", nobody.address(3));
    let away = refused(
        changed(&|config| config.endpoints = vec![Endpoint::parse(&url).expect("it is one")]),
        &[&url, "refused"],
    );
    assert!(is_away(&away));
    refused(tls(&|tls| tls.ca = etcd.file("other-ca.pem")), &["not signed by tls.ca", "other-ca.pem"]);
    refused(tls(&|tls| tls.ca = etcd.file("missing.pem")), &["tls.ca", "missing.pem", "No such file"]);
    refused(tls(&|tls| tls.own = None), &["wants a client certificate", "tls.cert"]);
    let stranger = Some((etcd.file("stranger.pem"), etcd.file("stranger.key")));
    refused(tls(&|tls| tls.own.clone_from(&stranger)), &["refuses us", "stranger.pem", "--trusted-ca-file"]);
    let mixed = Some((etcd.file("client.pem"), etcd.file("stranger.key")));
    refused(tls(&|tls| tls.own.clone_from(&mixed)), &["client.pem does not go with", "stranger.key"]);
    let open_key = Some((etcd.file("client.pem"), etcd.file("ca.pem")));
    refused(tls(&|tls| tls.own.clone_from(&open_key)), &["tls.key", "chmod 600"]);
    // What is at that port is no etcd: its own, for other members, speaks no TLS here.
    let peer = etcd.url().replace("2379", "2380");
    refused(
        changed(&|config| config.endpoints = vec![Endpoint::parse(&peer).expect("it is one")]),
        &[&peer, "TLS"],
    );
    let other = Store::new(place.config(), &td("other.example"), &mut Registry::default())
        .expect("a thread can be started");
    let error = other.read("").expect_err("the prefix is another's");
    let text = error.to_string();
    println!("{text}");
    assert!(
        text.contains("\"demo.postern\"")
            && text.contains("prefix")
            && text.contains("/postern/other.example"),
        "{text}"
    );

    let user = etcd.ask_for_users("ca", "correct horse", &Prefix::of(&td("demo.postern")));
    let with = |name: &str, password: &Path| {
        changed(&|config| {
            config.user =
                Some(postern_ca_etcd::User { name: name.to_owned(), password: password.to_owned() });
        })
    };
    let store = open(with("ca", &user.password));
    let k = store.read("k").expect("this user may").version("k");
    done(store.swap(&[Change::put("k", k, b"2".to_vec())], None));
    assert!(store.acquire("leader", "a", TTL).expect("this user may").is_some());
    let at = store.read("k").expect("this user may").revision;
    assert_eq!(store.wait("", at, Duration::from_millis(50)).expect("this user may"), at);
    let wrong = etcd.secret("wrong.password", "incorrect\n");
    refused(with("ca", &wrong), &["no user \"ca\" with the password in", "wrong.password"]);
    refused(with("nobody", &user.password), &["no user \"nobody\""]);
    let lines = etcd.secret("lines.password", "a\nb\n");
    refused(with("ca", &lines), &["lines.password", "one line"]);
    let mut elsewhere = with("ca", &user.password);
    elsewhere.prefix = Prefix::parse("/elsewhere").expect("it is one");
    refused(elsewhere, &["the user ca may not", "--prefix /elsewhere/"]);
    // A password that is changed is taken up without a restart; the token of before ends with it.
    etcd.ctl(&["--user", "root:root", "user", "delete", "ca"]);
    etcd.ctl(&["--user", "root:root", "user", "add", "ca:battery staple"]);
    etcd.ctl(&["--user", "root:root", "user", "grant-role", "ca", "postern"]);
    etcd.secret("ca.password", "battery staple");
    wait::until("the new password is taken up", wait::PATIENCE, || store.read("k").is_ok());
}
