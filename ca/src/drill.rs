//! A rehearsal of a root's rotation: the CA's own state, copied, with a clock that is moved by hand. Every step is the one
//! that the control plane would take; sidecars are played, and renew, acknowledge and hold each other's certificates against
//! the bundle that each of them has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_svid::{Bundles, Clock, PeerSvid, Role, SpiffeId, TestClock, TrustDomain, tls, verify};
use prometheus_client::registry::Registry;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;

use crate::authority::{
    Authority, AuthorityError, ImportError, Lives, Mode, import_root, import_tier, request_tier,
};
use crate::bundle::Holder;
use crate::csr;
use crate::issue::{IssueError, Issuer, LeafPolicy, Proof, Reply, Request};
use crate::keys::{self, KeyError, KeyStore};
use crate::lineage::{Attestor, LineageId};
use crate::metrics::Metrics;
use crate::offline::pem;
use crate::profile::{self, ISSUING_KEY, ProfileError, ROOT_KEY, Signer, Validity};
use crate::store::{OrderVerb, Sqlite, Store, StoreError};
use crate::token::{Token, TokenRecord};

/// Sidecars that are played at most: every one of them is verified by all bundles at every moment.
const PLAYED: usize = 40;
/// And at least, in a mesh that has none yet.
const FEWEST: usize = 3;
/// Moments within the life of a leaf.
const MOMENTS: u32 = 60;
/// Lives after which something waits for ever.
const PATIENCE: u32 = 6;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// Each step, when it was taken, counted from the begin, and what it was about.
    pub steps: Vec<(Duration, &'static str, String)>,
    /// Sidecars that were played.
    pub sidecars: usize,
    /// Of these, those that attest with each renewal. There is nobody to attest in a rehearsal: that they would succeed is assumed.
    pub attesting: usize,
    /// Certificates that they renewed.
    pub renewals: u64,
    /// How often one's certificate was held against another one's bundle.
    pub verified: u64,
    /// What was refused on the way; empty if all went well.
    pub refused: Vec<String>,
    /// What it still waited for at its end, should it have come to none.
    pub stuck: Vec<String>,
}

/// Why it could not be rehearsed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrillError {
    /// The CA of the copy.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The CA of the copy issues nothing.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A request could not be made.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A root or tier that was made for it.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A file of the copy.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The copy.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A sidecar that is played.
struct Played {
    svid: PeerSvid,
    chain: Vec<CertificateDer<'static>>,
    lineage: LineageId,
    attests: bool,
    renew_after: SystemTime,
    sequence: u64,
}

struct Stage {
    store: Arc<Sqlite>,
    authority: Arc<Authority>,
    issuer: Issuer,
    clock: TestClock,
    sidecars: Vec<Played>,
    bundles: BTreeMap<u64, Bundles>,
    rehearsal: Rehearsal,
    keys: Arc<dyn KeyStore>,
    /// The copy's directory, gone at the end.
    scratch: PathBuf,
}

/// Rehearses on `copy`, a directory with a copy of the CA's state, which is changed. `now` is when it begins.
pub fn root_rotation(
    copy: &Path,
    td: &TrustDomain,
    keys: Arc<dyn KeyStore>,
    policy: LeafPolicy,
    now: SystemTime,
) -> Result<Rehearsal, DrillError> {
    let clock = TestClock::at(now);
    let store = Arc::new(Sqlite::open(copy, td)?);
    let lives = Lives::with_leaf(policy.ttl);
    let authority = Authority::open(td.clone(), store.clone(), keys.clone(), Arc::new(clock.clone()), lives)?;
    let authority = Arc::new(authority);
    let metrics = Metrics::new(&mut Registry::default());
    let issuer = Issuer::new(authority.clone(), store.clone(), Arc::new(clock.clone()), policy, metrics)?;
    let rehearsal = Rehearsal {
        steps: Vec::new(),
        sidecars: 0,
        attesting: 0,
        renewals: 0,
        verified: 0,
        refused: Vec::new(),
        stuck: Vec::new(),
    };
    let (sidecars, bundles) = (Vec::new(), BTreeMap::new());
    let scratch = copy.to_owned();
    let mut stage = Stage { store, authority, issuer, clock, sidecars, bundles, rehearsal, keys, scratch };
    stage.cast()?;
    stage.play(policy.ttl, now)?;
    Ok(stage.rehearsal)
}

impl Stage {
    /// Sidecars of the mesh, and some more if there are few.
    fn cast(&mut self) -> Result<(), DrillError> {
        let now = self.clock.wall();
        let live = self.store.live(now)?;
        for leaf in live.iter().filter(|leaf| leaf.is_newest && !leaf.is_own).take(PLAYED) {
            let Some((issued, lineage)) = self.store.certificate(&leaf.serial)? else { continue };
            let chain = vec![CertificateDer::from(issued.certificate)];
            let Ok(svid) = tls::peer(Some(&chain)) else { continue };
            let attests = lineage.attestor != Attestor::JoinToken;
            // Its issuing CA is not stored beside it; it renews before it is looked at.
            self.sidecars.push(Played {
                svid,
                chain,
                lineage: lineage.id,
                attests,
                renew_after: now,
                sequence: 0,
            });
        }
        for number in self.sidecars.len()..FEWEST {
            let td = self.authority.trust_domain();
            let Ok(id) = SpiffeId::service_account(td, "drill", &format!("drill-{number}")) else { break };
            let played = self.join(&id)?;
            self.sidecars.push(played);
        }
        self.rehearsal.sidecars = self.sidecars.len();
        self.rehearsal.attesting = self.sidecars.iter().filter(|one| one.attests).count();
        Ok(())
    }

    fn join(&self, id: &SpiffeId) -> Result<Played, DrillError> {
        let token = Token::random().map_err(|_| ProfileError::Random)?;
        let created = self.clock.wall();
        let expires = created + Duration::from_secs(600);
        self.store.add_token(TokenRecord {
            hash: token.hash(),
            id: id.clone(),
            created,
            expires,
            bound: None,
        })?;
        let reply = self.ask(id.as_str(), &[], Proof::JoinToken(token.reveal()), false)?;
        self.played(reply)
    }

    fn ask(
        &self,
        id: &str,
        predecessor: &[u8],
        proof: Proof<'_>,
        attests: bool,
    ) -> Result<Reply, DrillError> {
        let key = rcgen::KeyPair::generate_for(ISSUING_KEY).map_err(ProfileError::Build)?;
        let csr = csr::own(&key)?;
        let request = Request { csr: &csr, id, ttl_seconds: 0, predecessor, proof };
        Ok(match proof {
            Proof::Svid(svid) if attests => self.issuer.rehearse(request, svid)?,
            _ => self.issuer.issue(request)?,
        })
    }

    fn played(&self, reply: Reply) -> Result<Played, DrillError> {
        let unusable = |_| IssueError::Unauthenticated("what was issued cannot be read");
        let svid = tls::peer(Some(&reply.chain)).map_err(unusable)?;
        let of = self.store.certificate(svid.serial())?;
        let lineage = of.map(|(_, lineage)| (lineage.id, lineage.attestor != Attestor::JoinToken));
        let (lineage, attests) =
            lineage.ok_or(IssueError::Unauthenticated("what was issued is not stored"))?;
        let sequence = reply.bundle.sequence();
        Ok(Played { svid, chain: reply.chain, lineage, attests, renew_after: reply.renew_after, sequence })
    }

    fn play(&mut self, ttl: Duration, began: SystemTime) -> Result<(), DrillError> {
        self.renew();
        if self.authority.is_root_offline() {
            self.import()?;
            self.note("import", String::new(), began);
        } else if self.authority.obey(OrderVerb::Prepare, None, &self.holders()).is_ok() {
            self.note("prepare", String::new(), began);
        }
        let moment = ttl / MOMENTS;
        for _ in 0..PATIENCE * MOMENTS {
            self.renew();
            if let Err(error) = self.authority.maintain() {
                self.refuse(format!("the issuing CA: {error}"));
            }
            while let Some(step) = self.authority.step(&self.holders(), Mode::Automatic)? {
                self.note(step.name(), step.label().unwrap_or_default().to_owned(), began);
                self.verify_all();
                if step.name() == "remove" {
                    return Ok(());
                }
            }
            self.verify_all();
            // Who has seen a bundle acknowledges it by the next moment.
            let newest = self.authority.bundle().sequence();
            self.sidecars.iter_mut().for_each(|one| one.sequence = newest);
            self.clock.advance(moment);
        }
        for step in self.authority.outlook(&self.holders(), Mode::Automatic)? {
            let waits = step.waits.into_iter();
            let laggards = step.laggards.into_iter().map(|one| format!("{}: {}", one.id, one.why));
            self.rehearsal.stuck.extend(waits.chain(laggards));
        }
        Ok(())
    }

    /// Plays the offline root as well: another one, and a tier that it signs for a request of this copy's.
    fn import(&mut self) -> Result<(), DrillError> {
        let (now, td) = (self.clock.wall(), self.authority.trust_domain().clone());
        let root = KeyPair::generate_for(ROOT_KEY).map_err(ProfileError::Build)?;
        let life = Validity::from_now(now, Duration::from_secs(3_650 * 86_400));
        let label = format!("root-{}", profile::ca_label()?);
        let certificate = profile::offline_root(&td, &label, &root, life)?;
        let write = |name: &str, der: &[u8]| {
            let path = self.scratch.join(name);
            keys::write_private(&path, pem("CERTIFICATE", der).as_bytes()).map(|()| path)
        };
        let file = write("drill-root.pem", &certificate)?;
        let store = self.store.as_ref();
        import_root(&td, store, &file, now)?;
        let request = request_tier(&td, store, self.keys.as_ref(), false, now)?;
        let (key, label) = csr::tier(&request.csr, &td).map_err(IssueError::from)?;
        let signer = Signer::new(&certificate, root)?;
        let life = Validity::from_now(now, Duration::from_secs(365 * 86_400));
        let file = write("drill-tier.pem", &profile::tier(&td, &label, &key, &signer, life)?)?;
        import_tier(&td, store, self.keys.as_ref(), &file, false, now)?;
        self.authority.follow()?;
        Ok(())
    }

    fn note(&mut self, step: &'static str, label: String, began: SystemTime) {
        let after = self.clock.wall().duration_since(began).unwrap_or_default();
        self.rehearsal.steps.push((after, step, label));
    }

    fn refuse(&mut self, what: String) {
        // One is enough to know; a thousand would be the same thousand times.
        if self.rehearsal.refused.len() < 20 {
            self.rehearsal.refused.push(what);
        }
    }

    /// Whoever is due renews.
    fn renew(&mut self) {
        let now = self.clock.wall();
        for at in 0..self.sidecars.len() {
            let one = &self.sidecars[at];
            if now < one.renew_after {
                continue;
            }
            let asked =
                self.ask(one.svid.id().as_str(), one.svid.serial(), Proof::Svid(&one.svid), one.attests);
            match asked.and_then(|reply| self.played(reply)) {
                Ok(new) => {
                    // A reply brings the bundle along; it is acknowledged a moment later.
                    self.sidecars[at] = Played { sequence: self.sidecars[at].sequence, ..new };
                    self.rehearsal.renewals += 1;
                }
                Err(error) => {
                    let id = self.sidecars[at].svid.id().clone();
                    self.refuse(format!("{id} could not renew: {error}"));
                    // Not again in this rehearsal.
                    self.sidecars[at].renew_after = now + Duration::from_secs(86_400 * 365);
                }
            }
        }
    }

    /// Everybody's certificate against every bundle that somebody has.
    fn verify_all(&mut self) {
        let now = self.clock.wall();
        self.bundles.insert(self.authority.bundle().sequence(), self.authority.bundles());
        let oldest = self.sidecars.iter().map(|one| one.sequence).min().unwrap_or(0);
        // Before the first acknowledgement everybody has at least what was in force at the begin.
        let oldest = oldest.max(self.bundles.keys().next().copied().unwrap_or(0));
        self.bundles.retain(|sequence, _| *sequence >= oldest);
        let mut refused = Vec::new();
        for one in self.sidecars.iter().filter(|one| one.chain.len() > 1) {
            for (sequence, bundles) in &self.bundles {
                self.rehearsal.verified += 1;
                if let Err(error) = verify(&one.chain, bundles, Role::Client, now) {
                    refused.push(format!("{} by bundle {sequence}: {error}", one.svid.id()));
                }
            }
        }
        refused.into_iter().for_each(|what| self.refuse(what));
    }

    fn holders(&self) -> Vec<Holder> {
        let now = self.clock.wall();
        let holder = |one: &Played| Holder {
            id: one.svid.id().clone(),
            lineage: one.lineage,
            bundle_sequence: one.sequence,
            serial: one.svid.serial().to_vec(),
            not_after: one.svid.not_after(),
            issuer: one.svid.issuer_key_id().to_vec(),
            reported: now,
            streams: 1,
        };
        self.sidecars.iter().map(holder).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyFiles;
    use crate::testing::{Ca, HOUR, Home, id, td};

    #[test]
    fn a_rehearsal_ends_well_and_leaves_the_ca_alone() {
        let home = Home::new();
        let root = {
            let ca = home.ca();
            ca.joined(&id("orders"));
            ca.joined(&id("web"));
            ca.authority.root()
        };
        let copy = home.dir.path().join("copy");
        Sqlite::copy(&home.path(), &td(), &copy).unwrap();
        let keys = Arc::new(KeyFiles::new(&copy));
        let policy = LeafPolicy { ttl: HOUR, test: false };
        let done = root_rotation(&copy, &td(), keys, policy, home.clock.wall()).unwrap();
        let names: Vec<_> = done.steps.iter().map(|(_, step, _)| *step).collect();
        assert_eq!(names, ["prepare", "publish", "activate", "remove"]);
        let minutes: Vec<_> = done.steps.iter().map(|(after, ..)| after.as_secs() / 60).collect();
        assert_eq!(minutes[..3], [0, 0, 25]);
        assert!((100..=110).contains(&minutes[3]), "{minutes:?}");
        assert_eq!((done.refused.len(), done.stuck.len(), done.sidecars), (0, 0, 3), "{done:?}");
        assert!(done.renewals >= 9 && done.verified > 300, "{done:?}");
        let ca = home.ca();
        assert_eq!((ca.authority.root(), ca.authority.bundle().sequence()), (root, 1));
    }

    #[test]
    fn a_root_that_is_offline_is_played_too() {
        let (home, _vault) = Home::offline();
        home.ca().joined(&id("orders"));
        let copy = home.dir.path().join("copy");
        Sqlite::copy(&home.path(), &td(), &copy).unwrap();
        let keys = Arc::new(KeyFiles::new(&copy));
        let policy = LeafPolicy { ttl: HOUR, test: false };
        let done = root_rotation(&copy, &td(), keys, policy, home.clock.wall()).unwrap();
        let names: Vec<_> = done.steps.iter().map(|(_, step, _)| *step).collect();
        assert_eq!(names, ["import", "publish", "activate", "remove"], "{done:?}");
        assert_eq!((done.refused.len(), done.stuck.len()), (0, 0), "{done:?}");
        assert_eq!(home.store().authorities().unwrap().len(), 3, "nothing of the CA was touched");
    }

    #[test]
    fn a_sidecar_that_cannot_renew_shows() {
        let home = Home::new();
        {
            let ca = home.ca();
            let svid = ca.joined(&id("orders"));
            let lineage = ca.store.certificate(svid.serial()).unwrap().unwrap().1;
            ca.store.mark_forked(lineage.id, home.clock.wall()).unwrap();
        }
        let copy = home.dir.path().join("copy");
        Sqlite::copy(&home.path(), &td(), &copy).unwrap();
        let keys = Arc::new(KeyFiles::new(&copy));
        let policy = LeafPolicy { ttl: HOUR, test: false };
        let done = root_rotation(&copy, &td(), keys, policy, home.clock.wall()).unwrap();
        assert!(done.refused[0].contains("/sa/orders could not renew"), "{done:?}");
    }

    /// The rehearsal holds certificates against bundles as a peer would, and tells of each that is refused.
    #[test]
    fn a_certificate_that_somebody_would_refuse_shows() {
        let (home, other) = (Home::new(), Home::new());
        let ca = home.ca();
        let reply = ca.join(&id("orders"), &ca.token(&id("orders")), &crate::testing::key()).unwrap();
        let rehearsal = Rehearsal {
            steps: Vec::new(),
            sidecars: 1,
            attesting: 0,
            renewals: 0,
            verified: 0,
            refused: Vec::new(),
            stuck: Vec::new(),
        };
        // Somebody still has version 0, which knows another root.
        let bundles = BTreeMap::from([(0, other.ca().authority.bundles())]);
        let Ca { store, authority, issuer, clock, .. } = ca;
        let keys = Arc::new(KeyFiles::new(&home.path()));
        let scratch = home.dir.path().join("scratch");
        let sidecars = Vec::new();
        let mut stage =
            Stage { store, authority, issuer, keys, scratch, clock, sidecars, bundles, rehearsal };
        let mut played = stage.played(reply).unwrap();
        played.sequence = 0;
        stage.sidecars.push(played);
        stage.verify_all();
        let Rehearsal { verified, refused, .. } = &stage.rehearsal;
        assert_eq!(*verified, 2);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].contains("/sa/orders by bundle 0"), "{refused:?}");
        // Once it is acknowledged that version is not looked at any more.
        stage.sidecars[0].sequence = 1;
        stage.verify_all();
        assert_eq!((stage.rehearsal.refused.len(), stage.rehearsal.verified), (1, 3));
    }

    #[test]
    fn who_attests_with_each_renewal_is_played_too() {
        let home = Home::new();
        home.ca().joined(&id("orders"));
        let database = rusqlite::Connection::open(home.path().join(crate::store::DATABASE)).unwrap();
        database.execute("UPDATE lineage SET attestor = ?1", [Attestor::Kubernetes.as_str()]).unwrap();
        let copy = home.dir.path().join("copy");
        Sqlite::copy(&home.path(), &td(), &copy).unwrap();
        let keys = Arc::new(KeyFiles::new(&copy));
        let policy = LeafPolicy { ttl: HOUR, test: false };
        let done = root_rotation(&copy, &td(), keys, policy, home.clock.wall()).unwrap();
        assert_eq!((done.sidecars, done.attesting), (3, 1));
        assert_eq!((done.refused, done.stuck, done.steps.len()), (vec![], vec![], 4));
    }
}
