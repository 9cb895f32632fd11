//! Asks the rate limits about a stream that is allowed, before anything of it goes on.

use postern_svid::SpiffeId;

use crate::connections::Stream;
use crate::decisions::DecisionId;
use crate::error::{Error, Reason, Side};
use crate::observe::log;
use crate::sidecar::Sidecar;
use crate::snapshot::Snapshot;

/// Takes the stream in, or says that it may come again later. `id` is the decision that allowed it, by the same snapshot:
/// it names the limit then.
pub fn admit(sidecar: &Sidecar, stream: &Stream, snapshot: &Snapshot, id: DecisionId) -> Result<(), Error> {
    let entry = stream.entry();
    let Some(generation) = &snapshot.policy else { return Ok(()) };
    let Some(refused) = entry.connection.admit(generation, &entry.facts, sidecar.clock.wall(), sidecar.age())
    else {
        return Ok(());
    };
    let limit = generation.limit(refused.limit).to_string();
    if log::DENIALS.admits(Reason::RateLimited.label()) {
        let (method, path) = entry.facts.method_and_path();
        tracing::info!(
            target: "postern::decision",
            decision = %id,
            %limit,
            wait_ms = u64::try_from(refused.wait.as_millis()).unwrap_or(u64::MAX),
            peer = entry.connection.peer.identity.as_ref().map_or("-", SpiffeId::as_str),
            port = entry.facts.port,
            method,
            path = &*log::path(path),
            "rate limited"
        );
    }
    let detail = format!("the limit {limit} refuses for {:?}", refused.wait);
    sidecar.decisions.limited(id, limit);
    Err(Error::new(Side::Peer, Reason::RateLimited, detail).until(refused.tells.then_some(refused.wait)))
}
