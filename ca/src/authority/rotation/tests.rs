use std::collections::BTreeMap;

use postern_svid::{PeerSvid, Role, SpiffeId};

use super::*;
use crate::profile::ROOT_KEY;
use crate::store::Kind;
use crate::testing::{Ca, HOUR, Home, csr, id, key, peer};

const MINUTE: Duration = Duration::from_secs(60);

/// Sidecars that renew and report when they are told to.
struct Mesh {
    home: Home,
    ca: Ca,
    sidecars: BTreeMap<&'static str, (PeerSvid, Holder)>,
}

impl Mesh {
    fn new(names: &[&'static str]) -> Self {
        let home = Home::new();
        let ca = home.ca();
        let mut mesh = Self { home, ca, sidecars: BTreeMap::new() };
        for name in names {
            mesh.join(name);
        }
        mesh
    }

    fn join(&mut self, name: &'static str) {
        let svid = self.ca.joined(&id(name));
        let (_, lineage) = self.ca.store.certificate(svid.serial()).unwrap().unwrap();
        let holder = Holder {
            id: svid.id().clone(),
            lineage: lineage.id,
            bundle_sequence: self.ca.authority.bundle().sequence(),
            serial: svid.serial().to_vec(),
            not_after: svid.not_after(),
            issuer: svid.issuer_key_id().to_vec(),
            reported: self.now(),
            streams: 1,
        };
        self.sidecars.insert(name, (svid, holder));
    }

    fn now(&self) -> SystemTime {
        self.home.clock.wall()
    }

    fn holders(&self) -> Vec<Holder> {
        self.sidecars.values().map(|(_, holder)| holder.clone()).collect()
    }

    fn acknowledge(&mut self, name: &str) {
        let sequence = self.ca.authority.bundle().sequence();
        self.sidecars.get_mut(name).unwrap().1.bundle_sequence = sequence;
    }

    fn acknowledge_all(&mut self) {
        let sequence = self.ca.authority.bundle().sequence();
        self.sidecars.values_mut().for_each(|(_, holder)| holder.bundle_sequence = sequence);
    }

    fn renew(&mut self, name: &str) {
        let (svid, holder) = self.sidecars.get_mut(name).unwrap();
        *svid = peer(&self.ca.renew(svid, &key()).unwrap());
        holder.serial = svid.serial().to_vec();
        holder.issuer = svid.issuer_key_id().to_vec();
        holder.not_after = svid.not_after();
    }

    fn step(&self) -> Option<&'static str> {
        self.ca.authority.step(&self.holders(), Mode::Automatic).unwrap().map(|step| step.name())
    }

    fn obey(&self, verb: OrderVerb, force: Option<&str>) -> Result<String, String> {
        let force = force.map(|reason| Reason::parse(reason).unwrap());
        let done = self.ca.authority.obey(verb, force.as_ref(), &self.holders());
        done.map_err(|refused| refused.to_string())
    }

    fn taint(&self, label: &str) {
        let reason = Reason::parse("stolen, INC-7").unwrap();
        assert!(self.ca.store.taint(label.to_owned(), reason, self.now()).unwrap());
        self.ca.authority.follow().unwrap();
    }

    /// As after SIGKILL: what was in memory is gone.
    fn die(&mut self) {
        // Away first: two may not hold the database's thread.
        let other = Home::new();
        drop(std::mem::replace(&mut self.ca, other.ca()));
        self.ca = self.home.ca();
    }

    fn roots(&self) -> Vec<State> {
        let rows = self.ca.store.authorities().unwrap();
        rows.iter().filter(|row| row.kind == Kind::Root).map(|row| row.state).collect()
    }

    fn issuing(&self) -> Vec<State> {
        let rows = self.ca.store.authorities().unwrap();
        rows.iter().filter(|row| row.kind == Kind::Issuing).map(|row| row.state).collect()
    }

    fn root_keys(&self) -> usize {
        let names = self.ca.authority.keys.names().unwrap();
        names.iter().filter(|name| name.starts_with(roots::ROOT)).count()
    }

    fn verifies(&self, svid: &crate::issue::Reply) -> bool {
        let bundles = self.ca.authority.bundles();
        postern_svid::verify(&svid.chain, &bundles, Role::Client, self.now()).is_ok()
    }

    fn pass(&self, by: Duration) {
        // A control plane that runs looks at its clock more often than that.
        let day = Duration::from_secs(86_400);
        let mut left = by;
        while left > day {
            self.home.clock.advance(day);
            self.ca.store.probe(self.home.clock.wall()).unwrap();
            left -= day;
        }
        self.home.clock.advance(left);
    }
}

#[test]
fn a_root_follows_another_step_by_step() {
    let mut mesh = Mesh::new(&["web", "orders"]);
    let old = mesh.ca.authority.root();
    assert_eq!(mesh.step(), None, "a root of ten years is left alone");
    assert!(mesh.obey(OrderVerb::Activate, None).unwrap_err().contains("no root is published"));
    assert!(mesh.obey(OrderVerb::Remove, None).unwrap_err().contains("no root drains"));

    mesh.obey(OrderVerb::Prepare, None).unwrap();
    assert_eq!(mesh.roots(), [State::Active, State::Prepared]);
    assert_eq!(mesh.ca.authority.bundle().roots().len(), 1, "nobody has been told");
    assert!(mesh.obey(OrderVerb::Prepare, None).unwrap_err().contains("prepared already"));
    assert_eq!(mesh.step(), Some("publish"));
    let bundle = mesh.ca.authority.bundle();
    assert_eq!((bundle.sequence(), bundle.roots().len()), (2, 2));
    assert_eq!(mesh.ca.authority.root(), old, "it signs nothing yet");

    // Acknowledged at once, but who polls needs time; then time is over, and one has not acknowledged.
    mesh.acknowledge("web");
    mesh.pass(24 * MINUTE);
    mesh.acknowledge("orders");
    assert_eq!(mesh.step(), None);
    mesh.sidecars.get_mut("orders").unwrap().1.bundle_sequence = 1;
    mesh.pass(2 * MINUTE);
    assert_eq!(mesh.step(), None);
    let why = mesh.obey(OrderVerb::Activate, None).unwrap_err();
    assert!(why.contains("/sa/orders (") && !why.contains("/sa/web"), "{why}");
    mesh.acknowledge("orders");
    assert_eq!(mesh.step(), Some("activate"));
    assert_eq!(mesh.roots(), [State::Draining, State::Active]);
    assert_eq!(mesh.issuing(), [State::Retired, State::Active]);
    assert_eq!(mesh.ca.authority.bundle().sequence(), 2, "the bundle has both since it was published");
    assert_ne!(mesh.ca.authority.root(), old);
    assert_eq!(mesh.root_keys(), 1, "the old key signs no more and is gone");
    let new = mesh.ca.join(&id("new"), &mesh.ca.token(&id("new")), &key()).unwrap();
    assert!(mesh.verifies(&new));

    // Leaves under the old root live to their end.
    mesh.pass(10 * MINUTE);
    mesh.renew("web");
    assert_eq!(mesh.step(), None);
    let why = mesh.obey(OrderVerb::Remove, None).unwrap_err();
    assert!(why.contains("/sa/orders") && why.contains("under the old root and no other"), "{why}");
    assert!(why.contains("/sa/web") && why.contains("has not ended"), "{why}");
    mesh.renew("orders");
    mesh.pass(51 * MINUTE);
    assert_eq!(mesh.step(), None, "connections drain");
    mesh.renew("web");
    mesh.renew("orders");
    mesh.pass(20 * MINUTE);
    assert_eq!(mesh.step(), Some("remove"));
    assert_eq!(mesh.roots(), [State::Retired, State::Active]);
    let bundle = mesh.ca.authority.bundle();
    assert_eq!((bundle.sequence(), bundle.roots().len()), (3, 1));
    assert!(!bundle.roots().contains(&old));
    mesh.renew("web");
    assert_eq!(mesh.step(), None, "it is over");
    // And the issuing CA goes on turning under the new one.
    mesh.pass(5 * 24 * HOUR);
    assert_eq!(mesh.ca.authority.maintain().unwrap(), Some(Turn::Prepared));
    assert_eq!(mesh.ca.authority.maintain().unwrap(), Some(Turn::Activated));
    mesh.ca.issuer.self_test().unwrap();
}

#[test]
fn a_root_that_comes_to_its_end_is_followed_by_itself() {
    let mut mesh = Mesh::new(&[]);
    let old = mesh.ca.authority.root();
    mesh.pass(Duration::from_secs(86_400) * 2_737);
    assert_eq!(mesh.step(), None, "a quarter of its life is left");
    mesh.pass(Duration::from_secs(86_400) * 2);
    let by_operator = mesh.ca.authority.step(&[], Mode::ByOperator).unwrap();
    assert_eq!(by_operator, None, "unless an operator is to say so");
    for step in ["prepare", "publish"] {
        assert_eq!(mesh.step(), Some(step));
        mesh.die();
    }
    mesh.pass(HOUR);
    assert_eq!(mesh.step(), Some("activate"));
    mesh.pass(2 * HOUR);
    assert_eq!(mesh.step(), Some("remove"));
    assert_ne!(mesh.ca.authority.root(), old);
}

#[test]
fn a_gate_is_passed_over_with_a_reason_and_says_who_breaks() {
    let mesh = Mesh::new(&["web", "orders"]);
    mesh.obey(OrderVerb::Prepare, None).unwrap();
    assert_eq!(mesh.step(), Some("publish"));
    let done = mesh.obey(OrderVerb::Activate, Some("rehearsal")).unwrap();
    assert!(done.contains("/sa/web") && done.contains("/sa/orders"), "{done}");
    let done = mesh.obey(OrderVerb::Remove, Some("rehearsal")).unwrap();
    assert!(done.contains("will be refused") && done.contains("/sa/web"), "{done}");
    assert_eq!(mesh.roots(), [State::Retired, State::Active]);
    let journal = mesh.ca.store.journal(0).unwrap();
    assert!(journal.iter().any(|entry| entry.reason == "by operator, forced: rehearsal"), "{journal:?}");
}

/// The state is in the store before anything follows from it: whoever dies between two steps goes on.
#[test]
fn death_between_any_two_steps_loses_nothing() {
    let mut mesh = Mesh::new(&["web"]);
    mesh.obey(OrderVerb::Prepare, None).unwrap();
    // Between a key and its row.
    mesh.ca.authority.keys.create("root-orphan", ROOT_KEY).unwrap();
    for (step, minutes) in [("publish", 1), ("activate", 26), ("remove", 120)] {
        for _ in 0..minutes {
            mesh.pass(MINUTE);
            mesh.acknowledge_all();
            if mesh.sidecars["web"].0.not_after() < mesh.now() + HOUR / 2 {
                mesh.die();
                mesh.renew("web");
            }
        }
        mesh.die();
        let before = mesh.ca.authority.bundle();
        assert_eq!(mesh.step(), Some(step));
        let after = mesh.ca.authority.bundle();
        mesh.die();
        let again = mesh.ca.authority.bundle();
        assert_eq!((again.sequence(), again.digest()), (after.sequence(), after.digest()), "{step}");
        assert!(again.sequence() >= before.sequence());
        mesh.ca.issuer.self_test().unwrap();
        assert!(mesh.root_keys() <= 2, "{step}: keys that nobody wrote down are gone");
    }
    assert_eq!(mesh.roots(), [State::Retired, State::Active]);
}

#[test]
fn a_tainted_issuing_ca_is_replaced_at_once_and_refused_when_all_have_renewed_twice() {
    let mut mesh = Mesh::new(&["web", "orders"]);
    let stolen = mesh.ca.authority.active();
    let old = mesh.ca.join(&id("old"), &mesh.ca.token(&id("old")), &key()).unwrap();
    mesh.join("third");
    mesh.taint(&stolen.ca.label);
    let renew_before = mesh.ca.authority.renew_before();
    assert_eq!(renew_before, Some(mesh.now() + Duration::from_millis(1)), "all are to renew");
    assert_ne!(mesh.ca.authority.active().key_id(), stolen.key_id());
    assert_eq!(mesh.issuing(), [State::Retired, State::Active]);
    assert!(mesh.verifies(&old), "nobody breaks before all have had their chance");
    mesh.die();
    assert_eq!(mesh.ca.authority.renew_before(), renew_before);

    // `old` never reports, so it counts until a minute is over. Take it out of the way.
    let gone = tls_serial(&old);
    let edit = rusqlite::Connection::open(mesh.home.path().join(crate::store::DATABASE)).unwrap();
    edit.execute("DELETE FROM issued WHERE serial = ?1", [gone]).unwrap();

    mesh.pass(Duration::from_secs(1));
    mesh.renew("web");
    assert_eq!(mesh.step(), None);
    mesh.pass(Duration::from_secs(1));
    mesh.renew("orders");
    mesh.renew("third");
    // web's connections to the others rest on what those had when web renewed.
    assert_eq!(mesh.step(), Some("renew"));
    assert_eq!(mesh.ca.authority.renew_before(), Some(mesh.now() + Duration::from_millis(1)));
    assert_eq!(mesh.step(), None);
    mesh.pass(Duration::from_secs(1));
    for name in ["web", "orders", "third"] {
        assert_eq!(mesh.step(), None, "{name}");
        mesh.renew(name);
    }
    mesh.sidecars.get_mut("web").unwrap().1.streams = 0;
    mesh.pass(Duration::from_secs(6));
    assert_eq!(mesh.step(), None, "web does not say that it uses what it got");
    mesh.sidecars.get_mut("web").unwrap().1.streams = 1;
    mesh.renew("web");
    assert_eq!(mesh.step(), None, "requests in flight end");
    mesh.pass(Duration::from_secs(6));
    assert_eq!(mesh.step(), Some("taint"));
    assert!(!mesh.verifies(&old), "refused from here on");
    let bundle = mesh.ca.authority.bundle();
    assert_eq!((bundle.sequence(), bundle.revocations().len()), (2, 1));
    assert_eq!(mesh.step(), None);
    mesh.die();
    assert!(!mesh.verifies(&old), "for ever");
    mesh.ca.issuer.self_test().unwrap();
}

fn tls_serial(reply: &crate::issue::Reply) -> Vec<u8> {
    peer(reply).serial().to_vec()
}

#[test]
fn an_emergency_waits_a_minute_for_nobody() {
    let mesh = Mesh::new(&["web", "dead"]);
    mesh.taint(&mesh.ca.authority.active().ca.label.clone());
    assert_eq!(mesh.step(), None);
    let outlook = mesh.ca.authority.outlook(&mesh.holders(), Mode::ByOperator).unwrap();
    assert_eq!((outlook[0].laggards.len(), outlook[0].by_operator), (2, false));
    mesh.pass(59 * Duration::from_secs(1));
    assert_eq!(mesh.step(), None);
    mesh.pass(Duration::from_secs(1));
    assert_eq!(mesh.step(), Some("taint"));
}

#[test]
fn a_tainted_root_goes_by_the_whole_machine_in_a_hurry() {
    let mut mesh = Mesh::new(&["web", "orders"]);
    let stolen = mesh.ca.authority.view.read().roots.active().ca.label.clone();
    let old = mesh.ca.join(&id("old"), &mesh.ca.token(&id("old")), &key()).unwrap();
    let edit = rusqlite::Connection::open(mesh.home.path().join(crate::store::DATABASE)).unwrap();
    edit.execute("DELETE FROM issued WHERE serial = ?1", [tls_serial(&old)]).unwrap();
    mesh.taint(&stolen);
    assert_eq!(mesh.step(), Some("prepare"));
    mesh.die();
    assert_eq!(mesh.step(), Some("publish"));
    mesh.die();
    mesh.pass(Duration::from_secs(1));
    mesh.acknowledge("web");
    assert_eq!(mesh.step(), None, "orders does not know it");
    mesh.acknowledge("orders");
    assert_eq!(mesh.step(), Some("activate"), "no quarter of an hour");
    assert_eq!(mesh.ca.authority.renew_before(), Some(mesh.now() + Duration::from_millis(1)));
    mesh.die();
    mesh.pass(Duration::from_secs(1));
    mesh.renew("web");
    mesh.pass(Duration::from_secs(1));
    mesh.renew("orders");
    assert_eq!(mesh.step(), Some("renew"));
    mesh.pass(Duration::from_secs(1));
    mesh.renew("web");
    mesh.renew("orders");
    mesh.pass(Duration::from_secs(5));
    assert!(mesh.verifies(&old));
    assert_eq!(mesh.step(), Some("remove"));
    assert!(!mesh.verifies(&old));
    let bundle = mesh.ca.authority.bundle();
    assert_eq!((bundle.sequence(), bundle.roots().len(), bundle.revocations().len()), (3, 1, 1));
    assert_eq!(mesh.step(), None);
}

#[test]
fn a_tainted_successor_never_signs() {
    let mesh = Mesh::new(&["web"]);
    mesh.obey(OrderVerb::Prepare, None).unwrap();
    assert_eq!(mesh.step(), Some("publish"));
    let next = mesh.ca.authority.view.read().roots.next().unwrap().ca.label.clone();
    mesh.taint(&next);
    assert_eq!(mesh.step(), Some("remove"));
    assert_eq!(mesh.roots(), [State::Active, State::Retired]);
    assert_eq!(mesh.ca.authority.bundle().revocations().len(), 1);
    assert_eq!((mesh.step(), mesh.root_keys()), (None, 1));
}

#[test]
fn whoever_is_denied_gets_nothing_new() {
    let mesh = Mesh::new(&["web"]);
    let ca = &mesh.ca;
    let web = mesh.sidecars["web"].0.clone();
    let (issued, _) = ca.store.certificate(web.serial()).unwrap().unwrap();
    let reason = || Reason::parse("laptop stolen").unwrap();
    let deny = |entry: Revoked| {
        let entry = Revocation { entry, reason: reason(), at: mesh.now(), ends: Some(mesh.now() + HOUR) };
        let sequence = ca.store.revoke(entry).unwrap();
        ca.authority.follow().unwrap();
        assert_eq!(ca.authority.bundle().sequence(), sequence);
    };
    let allow = |entry: &Revoked| {
        let before = ca.authority.bundle().sequence();
        assert_eq!(ca.store.allow_again(entry.clone(), reason(), mesh.now()).unwrap(), Some(before + 1));
        assert_eq!(ca.store.allow_again(entry.clone(), reason(), mesh.now()).unwrap(), None);
        ca.authority.follow().unwrap();
    };
    let refused = |result: Result<crate::issue::Reply, crate::issue::IssueError>| {
        assert_eq!(result.unwrap_err().reason(), "revoked");
    };
    let by_id = Revoked::Id(SpiffeId::parse(web.id().as_str()).unwrap());
    deny(by_id.clone());
    refused(ca.renew(&web, &key()));
    refused(ca.join(&id("web"), &ca.token(&id("web")), &key()));
    ca.joined(&id("orders"));
    allow(&by_id);

    deny(Revoked::Serial(web.serial().to_vec()));
    refused(ca.renew(&web, &key()));
    ca.joined(&id("web"));
    allow(&Revoked::Serial(web.serial().to_vec()));

    let new = key();
    let digest = crate::csr::verify(&csr(&new), &id("web")).unwrap().fingerprint();
    for key_of in [issued.key, digest] {
        deny(Revoked::Key(key_of));
        refused(ca.renew(&web, &new));
        allow(&Revoked::Key(key_of));
    }
    // It falls away by itself at its end, and a taint cannot be taken back.
    deny(by_id);
    assert_eq!(ca.store.end_revocations(mesh.now() + HOUR / 2).unwrap(), None);
    assert!(ca.store.end_revocations(mesh.now() + HOUR).unwrap().is_some());
    ca.authority.follow().unwrap();
    assert!(ca.authority.bundle().revocations().is_empty());
    let root = ca.store.authorities().unwrap()[0].clone();
    let taint = Revoked::Authority(root.key_id);
    ca.store
        .revoke(Revocation { entry: taint.clone(), reason: reason(), at: mesh.now(), ends: None })
        .unwrap();
    assert_eq!(ca.store.allow_again(taint, reason(), mesh.now()).unwrap(), None);
    ca.renew(&web, &new).unwrap_err();
}

#[test]
fn whoever_is_denied_is_not_waited_for() {
    let mut mesh = Mesh::new(&["web", "orders", "cron", "store"]);
    let of = |mesh: &Mesh, name| mesh.sidecars[name].0.serial().to_vec();
    let key_of = |mesh: &Mesh, name| mesh.ca.store.certificate(&of(mesh, name)).unwrap().unwrap().0.key;
    mesh.obey(OrderVerb::Prepare, None).unwrap();
    assert_eq!(mesh.step(), Some("publish"));
    mesh.acknowledge("store");
    mesh.home.clock.advance(30 * MINUTE);
    let shut = mesh.obey(OrderVerb::Activate, None).unwrap_err();
    assert!(["web", "orders", "cron"].iter().all(|name| shut.contains(name)), "{shut}");
    let entries =
        [Revoked::Id(id("web")), Revoked::Serial(of(&mesh, "orders")), Revoked::Key(key_of(&mesh, "cron"))];
    for entry in entries {
        let (reason, ends) = (Reason::parse("stolen").unwrap(), Some(mesh.now() + 9 * HOUR));
        mesh.ca.store.revoke(Revocation { entry, reason, at: mesh.now(), ends }).unwrap();
    }
    mesh.ca.authority.follow().unwrap();
    for name in ["web", "orders", "cron", "store"] {
        assert_eq!(mesh.ca.authority.denies_holder(&mesh.sidecars[name].1), name != "store", "{name}");
    }
    mesh.obey(OrderVerb::Activate, None).unwrap();
}

#[test]
fn lists_have_an_end() {
    let mesh = Mesh::new(&[]);
    let store = &mesh.ca.store;
    let at = mesh.now();
    let long = "a".repeat(1_900);
    let deny = |n: usize| {
        let entry = Revoked::Id(SpiffeId::parse(&format!("spiffe://demo.postern/{long}/{n}")).unwrap());
        store.revoke(Revocation { entry, reason: Reason::parse("test").unwrap(), at, ends: Some(at + HOUR) })
    };
    let most = (0..200).take_while(|n| deny(*n).is_ok()).count();
    assert!((60..70).contains(&most), "{most}");
    let error = deny(300).unwrap_err().to_string();
    assert!(error.contains("postern ca taint"), "{error}");
    let sequence = mesh.ca.store.bundle_sequence().unwrap();
    deny(0).unwrap();
    assert_eq!(mesh.ca.store.bundle_sequence().unwrap(), sequence, "the same entry again changes nothing");
    mesh.ca.authority.follow().unwrap();
    assert_eq!(mesh.ca.authority.bundle().revocations().len(), most);
}
