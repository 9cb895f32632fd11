//! What the CA counts, all under `postern_ca_`.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::authority::Alarm;
use crate::issue::IssueError;
use crate::jwt::JwtIssueError;

/// Why a request was refused.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Reason {
    /// A constant word.
    pub reason: &'static str,
}

/// Which limit a request has met.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Shed {
    /// `in_flight`, or whose pace it was: `source`, `certificate`, `lineage`, `id`.
    pub limit: &'static str,
}

/// A step of issuing.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Stage {
    /// One of [`Metrics::STAGES`].
    pub stage: &'static str,
}

/// How an identity was proven.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Proven {
    /// `join_token`, `svid`, `own`, or the attestor.
    pub proof: &'static str,
}

/// Which CA.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct AuthorityKind {
    /// `root`, `tier` or `issuing`.
    pub kind: &'static str,
    /// Where it stands in its life.
    pub state: &'static str,
    /// Its name.
    pub label: String,
}

/// What an operator has to bring about.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Needed {
    /// A constant word.
    pub what: &'static str,
}

/// The counters; cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    /// Certificates handed out.
    pub issued: Family<Proven, Counter>,
    /// Requests refused.
    pub rejected: Family<Reason, Counter>,
    /// Requests refused for a limit before anything was computed for them.
    pub shed: Family<Shed, Counter>,
    /// Seconds that each step of a request took.
    pub stages: Family<Stage, Histogram, fn() -> Histogram>,
    /// Seconds from a request's arrival to its answer.
    pub seconds: Histogram,
    /// Forks of lineages found: copied keys.
    pub forks: Counter,
    /// Leaves cut short by the end of their issuing CA.
    pub truncated: Counter,
    /// Unix time at which each CA ends.
    pub authority_not_after: Family<AuthorityKind, Gauge<f64, AtomicU64>>,
    /// Whether something is needed that only an operator can bring, a tier or a root that is signed elsewhere.
    pub operator_needed: Family<Needed, Gauge>,
    /// Changes of the issuing CA.
    pub rotations: Counter,
    /// Roots that began to sign in the place of another.
    pub root_rotations: Counter,
    /// Valid leaves of a tainted CA.
    pub tainted_leaves: Gauge,
    /// Entries of the taint and deny lists.
    pub revocations: Gauge,
    /// Version of the trust bundle.
    pub bundle_sequence: Gauge,
    /// Live sidecars that have not acknowledged it.
    pub bundle_behind: Gauge,
    /// Whether roots and revocations cannot be brought up to what the store has.
    pub trust_stuck: Gauge,
    /// Watch streams open.
    pub watchers: Gauge,
    /// Records in the ledger's files.
    pub ledger_entries: Gauge,
    /// Seconds that a write to the ledger took, its sync included.
    pub ledger_sync: Histogram,
    /// JWT-SVIDs handed out.
    pub jwt_issued: Counter,
    /// Requests for them refused.
    pub jwt_rejected: Family<Reason, Counter>,
    /// 1 while this replica leads; always 0 without others.
    pub leads: Gauge,
    /// Writes to the shared store that were refused because the lease had ended.
    pub fenced: Counter,
    /// 1 while the shared store answers; 0 without one.
    pub shared_store: Gauge,
    /// For how long no signed head has covered the newest record.
    pub ledger_head_age: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Steps of a request: what its proof attests, the request's own signature, whether the key may be certified, the new certificate's
    /// signature, its verification, its record on the disk.
    pub const STAGES: [&str; 6] = ["proof", "csr", "policy", "sign", "verify", "record"];
    /// Limits that a request may meet.
    const LIMITS: [&str; 5] = ["certificate", "id", "in_flight", "lineage", "source"];

    /// Registers everything.
    pub fn new(registry: &mut Registry) -> Self {
        // A certificate takes about a millisecond of computing and an fsync; the last step is the caller's deadline.
        let seconds = Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0]);
        let metrics = Self {
            issued: Family::default(),
            rejected: Family::default(),
            shed: Family::default(),
            stages: Family::new_with_constructor(stage_seconds),
            seconds,
            forks: Counter::default(),
            truncated: Counter::default(),
            authority_not_after: Family::default(),
            operator_needed: Family::default(),
            rotations: Counter::default(),
            root_rotations: Counter::default(),
            tainted_leaves: Gauge::default(),
            revocations: Gauge::default(),
            bundle_sequence: Gauge::default(),
            bundle_behind: Gauge::default(),
            trust_stuck: Gauge::default(),
            watchers: Gauge::default(),
            ledger_entries: Gauge::default(),
            ledger_sync: Histogram::new([
                0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0,
            ]),
            jwt_issued: Counter::default(),
            jwt_rejected: Family::default(),
            leads: Gauge::default(),
            fenced: Counter::default(),
            shared_store: Gauge::default(),
            ledger_head_age: Gauge::default(),
        };
        // From the start, at zero: a rate over a series that appears with its first event misses that event.
        for reason in IssueError::REASONS {
            drop(metrics.rejected.get_or_create(&Reason { reason }));
        }
        for limit in Self::LIMITS {
            drop(metrics.shed.get_or_create(&Shed { limit }));
        }
        for stage in Self::STAGES {
            drop(metrics.stages.get_or_create(&Stage { stage }));
        }
        for reason in JwtIssueError::REASONS {
            drop(metrics.jwt_rejected.get_or_create(&Reason { reason }));
        }
        for what in Alarm::CODES {
            drop(metrics.operator_needed.get_or_create(&Needed { what }));
        }
        for proof in ["join_token", "kubernetes", "oidc", "own", "svid", "unix", "x509pop"] {
            drop(metrics.issued.get_or_create(&Proven { proof }));
        }
        let ca = registry.sub_registry_with_prefix("postern_ca");
        ca.register("issued", "Certificates handed out", metrics.issued.clone());
        ca.register("rejected", "Requests for certificates refused", metrics.rejected.clone());
        ca.register(
            "shed",
            "Requests refused for a limit before anything was computed for them",
            metrics.shed.clone(),
        );
        ca.register_with_unit("issue_stage", "Each step of a request", Unit::Seconds, metrics.stages.clone());
        ca.register_with_unit(
            "issue",
            "From a request's arrival to its answer",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        ca.register(
            "lineage_forks",
            "Forks found: two parties hold keys of one lineage",
            metrics.forks.clone(),
        );
        ca.register(
            "leaf_ttl_truncated",
            "Leaves cut short by their issuing CA's end",
            metrics.truncated.clone(),
        );
        ca.register_with_unit(
            "authority_not_after",
            "Unix time at which a CA ends",
            Unit::Seconds,
            metrics.authority_not_after.clone(),
        );
        ca.register(
            "operator_needed",
            "Whether something is needed that only an operator can bring",
            metrics.operator_needed.clone(),
        );
        ca.register("issuing_rotations", "Changes of the issuing CA", metrics.rotations.clone());
        ca.register(
            "root_rotations",
            "Roots that began to sign in the place of another",
            metrics.root_rotations.clone(),
        );
        ca.register(
            "tainted_leaves_live",
            "Valid leaves of a CA that is tainted, or whose root is",
            metrics.tainted_leaves.clone(),
        );
        ca.register("revocations", "Entries of the taint and deny lists", metrics.revocations.clone());
        ca.register("bundle_sequence", "Version of the trust bundle", metrics.bundle_sequence.clone());
        ca.register(
            "bundle_behind",
            "Live sidecars that have not acknowledged the trust bundle",
            metrics.bundle_behind.clone(),
        );
        ca.register(
            "trust_stuck",
            "1 while roots and revocations cannot be brought up to what the store has",
            metrics.trust_stuck.clone(),
        );
        ca.register("watch_streams", "Open streams of sidecars", metrics.watchers.clone());
        ca.register("jwt_issued", "JWT-SVIDs handed out", metrics.jwt_issued.clone());
        ca.register("jwt_rejected", "Requests for JWT-SVIDs refused", metrics.jwt_rejected.clone());
        ca.register("ledger_entries", "Records in the ledger's files", metrics.ledger_entries.clone());
        ca.register_with_unit(
            "ledger_sync",
            "A write to the ledger, until it is durable",
            Unit::Seconds,
            metrics.ledger_sync.clone(),
        );
        ca.register_with_unit(
            "ledger_head_age",
            "For how long no signed head has covered the newest record",
            Unit::Seconds,
            metrics.ledger_head_age.clone(),
        );
        ca.register("replica_leads", "Whether this replica leads", metrics.leads.clone());
        ca.register(
            "fenced_writes",
            "Writes to the shared store refused, for the lease had ended",
            metrics.fenced.clone(),
        );
        ca.register("shared_store_answers", "Whether the shared store answers", metrics.shared_store.clone());
        metrics
    }
}

/// Most steps take some tens of microseconds; the record waits for the disk.
fn stage_seconds() -> Histogram {
    Histogram::new([
        0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0,
    ])
}
