use std::collections::BTreeSet;

use postern_svid::{Clock as _, PeerSvid, Role, verify};

use super::*;
use crate::authority::{Authority, Mode, Turn};
use crate::bundle::Holder;
use crate::issue::Reply;
use crate::profile::TIER_KEY;
use crate::store::{OrderVerb, Reason, Store as _};
use crate::testing::{Ca as Whole, Home, Vault, id, key, peer};

const DAY_LONG: Duration = Duration::from_secs(86_400);

fn states(home: &Home, kind: Kind) -> Vec<State> {
    let rows = home.store().authorities().unwrap();
    rows.iter().filter(|row| row.kind == kind).map(|row| row.state).collect()
}

fn tier_keys(home: &Home) -> usize {
    let keys = crate::keys::KeyFiles::new(&home.path());
    keys.names().unwrap().iter().filter(|name| name.starts_with(TIER)).count()
}

fn codes(home: &Home) -> Vec<&'static str> {
    let rows = home.store().authorities().unwrap();
    Alarm::of(&rows, home.clock.wall()).iter().map(|alarm| alarm.code).collect()
}

fn join(ca: &Whole, name: &str) -> Reply {
    ca.join(&id(name), &ca.token(&id(name)), &key()).unwrap()
}

fn verifies(ca: &Whole, reply: &Reply) -> bool {
    verify(&reply.chain, &ca.authority.bundles(), Role::Client, ca.clock.wall()).is_ok()
}

fn taint(ca: &Whole, label: &str) {
    let reason = Reason::parse("backup tape lost").unwrap();
    assert!(ca.store.taint(label.to_owned(), reason, ca.clock.wall()).unwrap());
    ca.authority.follow().unwrap();
}

fn step(authority: &Authority, holders: &[Holder]) -> Option<&'static str> {
    authority.step(holders, Mode::Automatic).unwrap().map(|step| step.name())
}

/// A sidecar that has said everything it can.
fn holder(ca: &Whole, svid: &PeerSvid) -> Holder {
    let (_, lineage) = ca.store.certificate(svid.serial()).unwrap().unwrap();
    Holder {
        id: svid.id().clone(),
        lineage: lineage.id,
        bundle_sequence: ca.authority.bundle().sequence(),
        serial: svid.serial().to_vec(),
        not_after: svid.not_after(),
        issuer: svid.issuer_key_id().to_vec(),
        reported: ca.clock.wall(),
        streams: 1,
    }
}

#[test]
fn nothing_is_made_before_the_root_has_signed() {
    let home = Home::new();
    let vault = Vault::new(home.clock.wall());
    let row = home.import_root(&vault).unwrap();
    assert_eq!((row.state, row.is_offline), (State::Active, true));
    assert_eq!(home.import_root(&vault).unwrap().label, row.label, "it may be brought twice");
    let open = || home.authority(home.store()).err().unwrap();
    let why = open().to_string();
    assert!(matches!(open(), AuthorityError::NoTier) && why.contains("postern ca tier csr"), "{why}");
    assert_eq!(codes(&home), ["tier_missing"]);

    let request = home.request_tier(false);
    assert!(request.is_new);
    let again = home.request_tier(false);
    assert_eq!((again.is_new, again.csr == request.csr, tier_keys(&home)), (false, true, 1));
    let why = open().to_string();
    assert!(why.contains("no tier"), "{why}");
    assert_eq!(tier_keys(&home), 1, "a start leaves the key of a request alone");
    let file = vault.sign(&request, 365, home.clock.wall());
    let tier = home.import_tier(&file, false).unwrap();
    assert!(tier.is_active);
    let ca = home.ca();
    let reply = join(&ca, "orders");
    assert_eq!(reply.chain.len(), 3, "leaf, issuing CA, tier");
    assert!(verifies(&ca, &reply));
    assert_eq!(codes(&home), [""; 0]);
    // The same answer has the same chain.
    let token = ca.token(&id("web"));
    let key = key();
    let first = ca.join(&id("web"), &token, &key).unwrap();
    assert_eq!(ca.join(&id("web"), &token, &key).unwrap().chain, first.chain);
    let twice = home.import_tier(&file, false).unwrap_err().to_string();
    assert!(twice.contains("taken already"), "{twice}");
    let online = Home::new();
    drop(online.ca());
    let keys = crate::keys::KeyFiles::new(&online.path());
    let refused = crate::authority::request_tier(
        &crate::testing::td(),
        online.store().as_ref(),
        &keys,
        false,
        online.clock.wall(),
    );
    assert!(refused.unwrap_err().to_string().contains("no root here is offline"));
}

#[test]
fn three_years_of_tiers_never_stop_issuing() {
    let (home, vault) = Home::offline();
    let ca = home.ca();
    let (mut tiers, mut alarmed, mut issuers) = (BTreeSet::new(), 0, BTreeSet::new());
    for day in 0..365 {
        // An issuing CA lives a week; a successor is made at a half of it and signs from two thirds on.
        home.clock.advance(DAY_LONG);
        ca.authority.maintain().unwrap();
        home.clock.advance(DAY_LONG * 2);
        ca.authority.maintain().unwrap();
        if day % 10 == 0 {
            let reply = join(&ca, "orders");
            assert!(peer(&reply).not_after() <= ca.authority.active().not_after());
            assert!(ca.authority.active().not_after() <= ca.authority.tier_not_after().unwrap());
            issuers.insert(peer(&reply).issuer_key_id().to_vec());
            tiers.insert(reply.chain[2].to_vec());
        }
        let alarms = ca.authority.alarms().unwrap();
        if let [alarm] = alarms.as_slice() {
            assert_eq!(alarm.code, "tier_renewal_due");
            alarmed += 1;
            // The operator comes a month later.
            if alarmed % 10 == 0 {
                home.tier(&vault, true);
                assert_eq!(ca.authority.alarms().unwrap(), [], "day {day}");
            }
        }
        assert!(tier_keys(&home) <= 2);
    }
    // A successor signs 240 days after the one before, and is 30 days old by then.
    assert!((5..=6).contains(&tiers.len()), "{}", tiers.len());
    assert!(issuers.len() > 30, "{}", issuers.len());
    assert!(states(&home, Kind::Tier).iter().filter(|state| **state == State::Active).count() == 1);
}

#[test]
fn a_tier_that_follows_at_once_brings_its_issuing_ca_and_no_new_bundle() {
    let (home, vault) = Home::offline();
    let ca = home.ca();
    let old = join(&ca, "old");
    let sequence = ca.authority.bundle().sequence();
    home.clock.advance(DAY_LONG);
    let old_active = ca.authority.active().key_id().to_vec();
    let next = home.tier(&vault, false);
    assert!(next.is_active);
    // Issued on while nobody has looked yet.
    assert!(verifies(&ca, &join(&ca, "between")));
    ca.authority.follow().unwrap();
    assert_ne!(ca.authority.active().key_id(), old_active);
    assert_eq!(states(&home, Kind::Tier), [State::Retired, State::Active]);
    assert_eq!(states(&home, Kind::Issuing), [State::Retired, State::Active]);
    assert_eq!((ca.authority.bundle().sequence(), ca.authority.renew_before()), (sequence, None));
    let new = join(&ca, "new");
    assert_ne!(new.chain[2], old.chain[2]);
    assert!(verifies(&ca, &new));
    verify(&old.chain, &ca.authority.bundles(), Role::Client, crate::testing::start()).unwrap();
    ca.authority.follow().unwrap();
    assert_eq!(tier_keys(&home), 1, "the old key signs no more and is gone");
    let journal = ca.store.journal(0).unwrap();
    assert!(journal.iter().any(|entry| entry.reason.starts_with("another tier signs")), "{journal:?}");
}

/// As after SIGKILL between any two steps of a ceremony and of what follows from it.
#[test]
fn death_between_any_two_steps_loses_nothing() {
    let home = Home::new();
    let vault = Vault::new(home.clock.wall());
    home.import_root(&vault).unwrap();
    // A key without a row.
    let keys = crate::keys::KeyFiles::new(&home.path());
    keys.create("tier-orphan", TIER_KEY).unwrap();
    let request = home.request_tier(false);
    home.import_tier(&vault.sign(&request, 365, home.clock.wall()), false).unwrap();
    {
        // The first start dies before anything of its own is written: no issuing CA yet.
        assert_eq!(states(&home, Kind::Issuing), []);
    }
    drop(home.ca());
    assert_eq!(tier_keys(&home), 1, "what was never written down is gone");
    home.clock.advance(DAY_LONG * 250);
    home.confirm_clock(&home.store());
    let spare = home.tier(&vault, true);
    drop(home.ca());
    assert_eq!(states(&home, Kind::Tier), [State::Active, State::Prepared]);
    // Two thirds are over: the step is written, and what follows from it is not.
    let change = crate::store::AuthorityChange::new(home.clock.wall(), "two thirds");
    let first = home.store().authorities().unwrap()[1].label.clone();
    let set = vec![(first, State::Retired), (spare.label.clone(), State::Active)];
    home.store().change_authorities(crate::store::AuthorityChange { set, ..change }).unwrap();
    let ca = home.ca();
    assert!(verifies(&ca, &join(&ca, "between")));
    ca.authority.follow().unwrap();
    assert_eq!(states(&home, Kind::Issuing).last(), Some(&State::Active));
    let reply = join(&ca, "orders");
    assert!(verifies(&ca, &reply));
    assert_eq!(reply.chain[2], home.certificate_of(&spare.label));
    assert_eq!(tier_keys(&home), 1);
}

#[test]
fn a_tainted_tier_is_replaced_by_its_spare_without_the_vault() {
    let (home, vault) = Home::offline();
    home.tier(&vault, true);
    let ca = home.ca();
    let stolen = home.store().authorities().unwrap()[1].label.clone();
    let old = join(&ca, "old");
    let svid = ca.joined(&id("web"));
    home.clock.advance(Duration::from_secs(10));
    taint(&ca, &stolen);
    assert_eq!(states(&home, Kind::Tier), [State::Retired, State::Active]);
    assert_eq!(states(&home, Kind::Issuing), [State::Retired, State::Active]);
    assert!(ca.authority.renew_before().is_some(), "everybody is told to renew");
    assert!(!ca.authority.stands_by(peer(&old).issuer_key_id()), "nothing of it is handed out once more");
    assert!(verifies(&ca, &old), "nobody breaks before all have had their chance");
    assert_eq!(step(&ca.authority, &[holder(&ca, &svid)]), None);
    home.clock.advance(Duration::from_secs(60));
    assert_eq!(
        step(&ca.authority, &[holder(&ca, &svid)]),
        Some("taint"),
        "after a minute nobody is waited for"
    );
    assert!(!verifies(&ca, &old));
    assert!(verifies(&ca, &join(&ca, "new")));
    assert_eq!(step(&ca.authority, &[]), None);
    drop(ca);
    let ca = home.ca();
    assert!(!verifies(&ca, &old), "for ever");
    assert_eq!(codes(&home), [""; 0]);
}

#[test]
fn a_tainted_tier_without_a_spare_goes_on_until_the_vault_was_opened() {
    let (home, vault) = Home::offline();
    let ca = home.ca();
    let stolen = home.store().authorities().unwrap()[1].label.clone();
    taint(&ca, &stolen);
    assert_eq!(codes(&home), ["tier_tainted"]);
    let outlook = ca.authority.outlook(&[], Mode::Automatic).unwrap();
    assert!(outlook[0].waits[0].contains("postern ca tier csr"), "{outlook:?}");
    // Refused now, nothing at all would be believed.
    home.clock.advance(DAY_LONG);
    assert_eq!(step(&ca.authority, &[]), None);
    assert_eq!(ca.authority.maintain().unwrap(), None);
    let between = join(&ca, "between");
    assert!(verifies(&ca, &between));
    drop(ca);
    let ca = home.ca();
    ca.issuer.self_test().unwrap();
    let new = home.tier(&vault, false);
    assert!(new.is_active);
    ca.authority.follow().unwrap();
    assert!(ca.authority.renew_before().is_some());
    assert_eq!(step(&ca.authority, &[]), None, "everybody renews first");
    home.clock.advance(Duration::from_secs(61));
    assert_eq!(step(&ca.authority, &[]), Some("taint"));
    assert!(!verifies(&ca, &between));
    assert!(verifies(&ca, &join(&ca, "new")));
}

#[test]
fn a_tainted_spare_never_signs() {
    let (home, vault) = Home::offline();
    let spare = home.tier(&vault, true);
    let ca = home.ca();
    taint(&ca, &spare.label);
    assert_eq!(states(&home, Kind::Tier), [State::Active, State::Retired]);
    assert_eq!(step(&ca.authority, &[]), Some("taint"));
    ca.authority.follow().unwrap();
    assert_eq!(tier_keys(&home), 1);
    ca.issuer.self_test().unwrap();
}

/// From an online root to an offline one, and from that one to the next.
#[test]
fn an_offline_root_follows_any_root_and_waits_for_its_tier() {
    let home = Home::new();
    let ca = home.ca();
    let online = ca.authority.root();
    for turn in 0..2 {
        let vault = Vault::new(home.clock.wall());
        let before = ca.authority.root();
        let row = home.import_root(&vault).unwrap();
        assert_eq!(row.state, State::Prepared);
        let other = Vault::new(home.clock.wall());
        let why = home.import_root(&other).unwrap_err().to_string();
        assert!(why.contains("prepared already"), "{why}");
        ca.authority.follow().unwrap();
        assert_eq!(step(&ca.authority, &[]), Some("publish"));
        home.clock.advance(Duration::from_secs(3_600));
        assert_eq!(step(&ca.authority, &[]), None, "no tier yet");
        let why = ca.authority.obey(OrderVerb::Activate, None, &[]).unwrap_err().to_string();
        assert!(why.contains("a tier that it has signed"), "{why}");
        let forced = ca.authority.obey(OrderVerb::Activate, Some(&Reason::parse("now").unwrap()), &[]);
        assert!(forced.unwrap_err().to_string().contains("postern ca tier csr"));
        let tier = home.tier(&vault, false);
        assert!(!tier.is_active, "its root does not sign yet");
        ca.authority.follow().unwrap();
        assert_eq!(ca.authority.root(), before);
        let old = join(&ca, "old");
        assert_eq!(old.chain.len(), if turn == 0 { 2 } else { 3 });
        assert_eq!(step(&ca.authority, &[holder(&ca, &peer(&old))]), Some("activate"));
        assert_ne!(ca.authority.root(), before);
        let new = join(&ca, "new");
        assert_eq!(new.chain.len(), 3);
        assert!(verifies(&ca, &new) && verifies(&ca, &old));
        home.clock.advance(Duration::from_secs(2 * 3_600));
        assert_eq!(step(&ca.authority, &[]), Some("remove"));
        assert!(!verifies(&ca, &old));
        ca.issuer.self_test().unwrap();
        ca.authority.follow().unwrap();
        assert_eq!(tier_keys(&home), 1);
    }
    let keys = crate::keys::KeyFiles::new(&home.path()).names().unwrap();
    assert!(!keys.iter().any(|name| name.starts_with(ROOT)), "no root's key is here any more: {keys:?}");
    assert_ne!(ca.authority.root(), online);
    let why = ca.authority.obey(OrderVerb::Prepare, None, &[]).unwrap_err().to_string();
    assert!(why.contains("postern ca root import"), "{why}");
}

#[test]
fn a_tainted_offline_root_waits_for_another_root_and_its_tier() {
    let (home, _) = Home::offline();
    let ca = home.ca();
    let stolen = home.store().authorities().unwrap()[0].label.clone();
    taint(&ca, &stolen);
    assert_eq!(codes(&home), ["root_renewal_due"]);
    home.clock.advance(DAY_LONG);
    assert_eq!(step(&ca.authority, &[]), None);
    let vault = Vault::new(home.clock.wall());
    home.import_root(&vault).unwrap();
    ca.authority.follow().unwrap();
    assert_eq!(step(&ca.authority, &[]), Some("publish"));
    home.clock.advance(DAY_LONG);
    assert_eq!(step(&ca.authority, &[]), None, "patience does not make a tier");
    home.tier(&vault, false);
    ca.authority.follow().unwrap();
    assert_eq!(step(&ca.authority, &[]), Some("activate"));
    assert!(ca.authority.renew_before().is_some());
    home.clock.advance(Duration::from_secs(61));
    assert_eq!(step(&ca.authority, &[]), Some("remove"));
    ca.issuer.self_test().unwrap();
}

#[test]
fn the_end_of_the_tier_is_told_and_mended() {
    let (home, vault) = Home::offline();
    let ca = home.ca();
    home.clock.jump_wall(366 * 86_400_000);
    home.confirm_clock(&home.store());
    assert!(matches!(ca.authority.maintain(), Err(AuthorityError::NoTier)));
    assert_eq!(codes(&home), ["tier_missing"]);
    home.tier(&vault, false);
    ca.authority.follow().unwrap();
    ca.issuer.self_test().unwrap();
    assert_eq!(states(&home, Kind::Tier), [State::Retired, State::Active]);
    // A root near its end is told of, too.
    home.clock.jump_wall(6 * 365 * 86_400_000);
    home.confirm_clock(&home.store());
    assert_eq!(codes(&home), ["tier_missing"]);
    home.clock.jump_wall(365 * 86_400_000);
    home.confirm_clock(&home.store());
    assert_eq!(codes(&home), ["tier_missing", "root_renewal_due"]);
}

#[test]
fn a_spare_of_the_same_day_is_no_successor() {
    let (home, vault) = Home::offline();
    home.tier(&vault, true);
    let ca = home.ca();
    home.clock.advance(DAY_LONG * 183);
    home.confirm_clock(&home.store());
    assert_eq!(codes(&home), ["tier_renewal_due"]);
    home.clock.advance(DAY_LONG * 100);
    home.confirm_clock(&home.store());
    for _ in 0..3 {
        assert_ne!(ca.authority.maintain().unwrap(), Some(Turn::TierActivated));
    }
    home.tier(&vault, true);
    assert_eq!(codes(&home), [""; 0]);
    assert_eq!(ca.authority.maintain().unwrap(), None, "not read yet");
    ca.authority.follow().unwrap();
    assert_eq!(ca.authority.maintain().unwrap(), Some(Turn::TierActivated));
    assert_eq!(states(&home, Kind::Tier), [State::Retired, State::Prepared, State::Active]);
    ca.issuer.self_test().unwrap();
}
