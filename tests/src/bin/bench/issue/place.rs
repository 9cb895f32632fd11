//! A control plane with lineages, made by the CA's own code before the process starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use postern_ca::authority::{Authority, Lives};
use postern_ca::issue::{Issuer, LeafPolicy, Proof, Request};
use postern_ca::keys::KeyFiles;
use postern_ca::ledger::SEGMENT;
use postern_ca::metrics::Metrics;
use postern_ca::store::{Sqlite, Store as _};
use postern_ca::token::{Token, TokenRecord};
use postern_svid::{Clock as _, SpiffeId, Svid, SystemClock, TrustDomain};
use postern_tests::{Mesh, Plan, TRUST_DOMAIN};
use prometheus_client::registry::Registry;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::Failure;

/// The life of a certificate.
const TTL: Duration = Duration::from_secs(3_600);
/// Threads that fill the store: what waits together shares a sync.
const FILLERS: usize = 64;

/// Somebody with a certificate.
pub(crate) struct Holder {
    pub(crate) id: SpiffeId,
    pub(crate) svid: Svid,
}

/// A control plane that runs, with `lineages` of as many ids, and the certificates of the first `kept`.
pub(crate) fn prepare(lineages: usize, kept: usize) -> Result<(Mesh, Vec<Holder>), Failure> {
    // Each connection takes a descriptor here and one there, and the limit is inherited.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| format!("RLIMIT_NOFILE: {error}"))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|error| format!("RLIMIT_NOFILE: {error}"))?;
    let mut plan = Plan::new();
    plan.control("log: {level: warn}");
    let mesh = plan.prepare();
    eprintln!("making {lineages} lineages");
    let holders = fill(&mesh, lineages, kept)?;
    mesh.control.start();
    Ok((mesh, holders))
}

fn fill(mesh: &Mesh, lineages: usize, kept: usize) -> Result<Vec<Holder>, Failure> {
    let failed = |error: &dyn std::fmt::Display| format!("filling the store: {error}");
    let td = TrustDomain::parse(TRUST_DOMAIN).map_err(|error| failed(&error))?;
    let (state, clock) = (mesh.control.state(), Arc::new(SystemClock));
    let keys = Arc::new(KeyFiles::new(state));
    let metrics = Metrics::new(&mut Registry::default());
    let store = Sqlite::open_with_ledger(state, &td, keys.as_ref(), metrics.clone(), SEGMENT, clock.wall());
    let store = Arc::new(store.map_err(|error| failed(&error))?);
    let authority = Authority::open(td.clone(), store.clone(), keys, clock.clone(), Lives::with_leaf(TTL));
    let authority = Arc::new(authority.map_err(|error| failed(&error))?);
    let policy = LeafPolicy { ttl: TTL, test: false };
    let issuer = Issuer::new(authority, store.clone(), clock.clone(), policy, metrics);
    let issuer = issuer.map_err(|error| failed(&error))?;

    let join = |number: usize| -> Result<Holder, Failure> {
        let id = SpiffeId::service_account(&td, "load", &format!("client-{number}"));
        let id = id.map_err(|error| failed(&error))?;
        let token = Token::random().map_err(|error| failed(&error))?;
        let (hash, created) = (token.hash(), clock.wall());
        let record = TokenRecord { hash, id: id.clone(), created, expires: created + TTL, bound: None };
        store.add_token(record).map_err(|error| failed(&error))?;
        let (key, csr) = request()?;
        let reply = issuer.issue(Request {
            csr: &csr,
            id: id.as_str(),
            ttl_seconds: 0,
            predecessor: &[],
            proof: Proof::JoinToken(token.reveal()),
        });
        let reply = reply.map_err(|error| failed(&error))?;
        let svid = Svid::from_pkcs8(reply.chain, key.serialized_der()).map_err(|error| failed(&error))?;
        Ok(Holder { id, svid })
    };
    let next = AtomicUsize::new(0);
    let filler = || {
        let mut own = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= lineages {
                return Ok(own);
            }
            let holder = join(number)?;
            if number < kept {
                own.push(holder);
            }
        }
    };
    std::thread::scope(|scope| {
        let fillers: Vec<_> = (0..FILLERS.min(lineages)).map(|_| scope.spawn(filler)).collect();
        let mut holders = Vec::with_capacity(kept);
        for filler in fillers {
            let own: Result<Vec<Holder>, Failure> =
                filler.join().map_err(|_| failed(&"a thread has panicked"))?;
            holders.extend(own?);
        }
        Ok(holders)
    })
}

/// A new key, and a request for it.
pub(crate) fn request() -> Result<(KeyPair, Vec<u8>), Failure> {
    let failed = |error: rcgen::Error| format!("making a key: {error}");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(failed)?;
    Ok((key, csr.der().to_vec()))
}
