//! The stream on which bundles come down and reports go up.
//!
//! One stream at a time, opened with the SVID in use and opened again with each new one, so that it never rests on an
//! SVID that has expired. An attempt that hangs or waits for its turn gives way to a new SVID as well: it came from the
//! control plane, which can be reached, then, and only the stream tells of denials at once. A report is the whole truth:
//! the sequence of the bundle in force and the SVID in use, sent when the stream opens and after every change. A bundle is
//! acknowledged only by such a report, so only once it is stored and published.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info, warn};

use crate::connect;
use crate::error::AttemptError;
use crate::identity::{Identity, Live};
use crate::pace::{Backoff, Pace};
use crate::proto::{self, directive::Directive as Kind};
use crate::renew;

/// Reports wait here while the peer does not read; more than that and the stream is given up.
const UNSENT_REPORTS: usize = 4;

/// Keeps one stream open, for ever.
pub(crate) async fn run(live: &Live) {
    let mut backoff = Backoff::new();
    // Told once when it goes and once when it is back, however often is tried between.
    let mut lost = false;
    // Why the control plane refused the stream, as told last.
    let mut refused: Option<String> = None;
    // Whether somebody said, since a stream was open, that it does not know the SVID.
    let mut is_unknown = false;
    // Replicas that were tried since a stream was open.
    let mut tried = 0;
    loop {
        let identity = usable(live).await;
        let (pace, mut place) = (live.pace(), live.place());
        let ended = follow(live, &identity, pace, &mut backoff, &mut lost, &mut place).await;
        let was_open = live.stream_closed();
        if was_open {
            (refused, is_unknown) = (None, false);
        }
        if let Err(error) = ended {
            is_unknown |= error.is_unauthenticated();
            tried = if was_open { 1 } else { tried + 1 };
            live.go_elsewhere(place);
            if tried < live.config.places() {
                info!("another replica of the control plane is followed: {error}");
                live.stream_error(&error);
                continue;
            }
            tried = 0;
            live.stream_error(&error);
            if !lost {
                lost = true;
                warn!(
                    control_plane = live.config.control_plane,
                    "the control plane is lost: {error}; the certificate in force is good to its end, and it is tried again and again"
                );
            } else if let AttemptError::Refused { .. } = &error
                && refused.as_ref() != Some(&error.to_string())
            {
                // What it was lost by is old news by then: it is there, and says no.
                warn!(control_plane = live.config.control_plane, "the stream is refused: {error}");
            }
            if let AttemptError::Refused { .. } = &error {
                refused = Some(error.to_string());
            }
            if std::mem::take(&mut is_unknown) {
                // As after a restore from a backup: what it does not know gets neither bundles nor revocations until it renews.
                info!("the control plane does not know the certificate in force, so that it is renewed now");
                live.hurry.tell(Duration::ZERO, 0.0, pace, live.clock.monotonic());
            }
            let wait = backoff.wait(pace);
            debug!(retry_in_ms = wait.as_millis(), "no stream to the control plane: {error}");
            crate::runtime::select! {
                () = sleep(wait) => {}
                () = superseded(live, &identity) => backoff.reset(),
            }
        }
    }
}

/// Waits for an SVID that can open a stream.
async fn usable(live: &Live) -> Arc<Identity> {
    let mut published = live.subscribe();
    loop {
        let identity = published.borrow_and_update().clone();
        match identity {
            Some(identity) if is_valid(live, &identity) => return identity,
            // Expired, or our clock is off: both end without an event that could be waited for alone.
            Some(_) => drop(timeout(live.pace().tick(), published.changed()).await),
            None => drop(published.changed().await),
        }
    }
}

/// Resolves when another SVID is in force than `identity`'s.
async fn superseded(live: &Live, identity: &Identity) {
    let is_another = |now: &Option<Arc<Identity>>| {
        now.as_ref().is_some_and(|now| now.svid.serial() != identity.svid.serial())
    };
    // `live` has the sender.
    let _ = live.subscribe().wait_for(is_another).await;
}

/// A stream on which the control plane has said something.
struct Stream {
    _connection: connect::Connection,
    reports: mpsc::Sender<proto::Report>,
    /// What was reported last.
    reported: Option<Arc<Identity>>,
    directives: Streaming<proto::Directive>,
    first: proto::Directive,
}

async fn open(
    live: &Live,
    opened_with: &Identity,
    pace: Pace,
    place: &mut usize,
) -> Result<Stream, AttemptError> {
    let mut connection = connect::open(live, Some(&opened_with.svid), pace).await?;
    *place = connection.place;
    let (reports, queue) = mpsc::channel(UNSENT_REPORTS);
    let reported = live.current();
    if let Some(identity) = &reported {
        send(live, &reports, identity)?;
    }
    let opening = connection.client.watch(ReceiverStream::new(queue));
    let mut directives = timeout(pace.step(), opening)
        .await
        .map_err(|_| AttemptError::Timeout("opening the stream"))?
        .map_err(|status| AttemptError::from_status(&status))?
        .into_inner();
    // The bundle comes at once; a stream that stays silent is not one.
    let first = timeout(pace.step(), next(&mut directives))
        .await
        .map_err(|_| AttemptError::Timeout("the first directive"))??;
    Ok(Stream { _connection: connection, reports, reported, directives, first })
}

/// One stream from its opening to its end; `Ok` if a new SVID is to open the next one.
async fn follow(
    live: &Live,
    opened_with: &Identity,
    pace: Pace,
    backoff: &mut Backoff,
    lost: &mut bool,
    place: &mut usize,
) -> Result<(), AttemptError> {
    let opened = crate::runtime::select! {
        opened = open(live, opened_with, pace, place) => opened?,
        () = superseded(live, opened_with) => return Ok(()),
    };
    let Stream { _connection, reports, mut reported, mut directives, first } = opened;
    let mut published = live.subscribe();
    live.stream_opened();
    if std::mem::take(lost) {
        info!(control_plane = live.config.control_plane, "the control plane is back");
    }
    backoff.reset();
    apply(live, first).await;
    loop {
        let identity = published.borrow_and_update().clone();
        if let Some(identity) = identity
            && reported.as_ref().is_none_or(|reported| reported.generation != identity.generation)
        {
            if identity.svid.serial() != opened_with.svid.serial() {
                return Ok(());
            }
            send(live, &reports, &identity)?;
            reported = Some(identity);
        }
        crate::runtime::select! {
            changed = published.changed() => {
                changed.map_err(|_| AttemptError::Local("the agent ends".to_owned()))?;
            }
            directive = next(&mut directives) => apply(live, directive?).await,
            // No deadline on the peer's silence here: PING tells a dead peer from one that has nothing to say.
            () = sleep(pace.tick()) => {
                if !is_valid(live, opened_with) {
                    return Err(AttemptError::Local("the SVID of the stream is no longer valid".to_owned()));
                }
            }
        }
    }
}

async fn next(directives: &mut Streaming<proto::Directive>) -> Result<proto::Directive, AttemptError> {
    match directives.message().await {
        Ok(Some(directive)) => Ok(directive),
        Ok(None) => Err(AttemptError::Connection("the control plane ended the stream".to_owned())),
        Err(status) => Err(AttemptError::from_status(&status)),
    }
}

/// A bundle that is refused leaves the stream open: the report, unchanged, tells the control plane that it did not land.
async fn apply(live: &Live, directive: proto::Directive) {
    let sent = match directive.directive {
        Some(Kind::Bundle(sent)) => sent,
        Some(Kind::RenewNow(wish)) => {
            let spread = Duration::from_millis(wish.spread_ms.into());
            info!(spread_ms = wish.spread_ms, "the control plane wants a renewal now");
            live.hurry.tell(spread, Backoff::new().fraction(), live.pace(), live.clock.monotonic());
            return;
        }
        Some(Kind::Federation(sent)) => return live.federate(sent).await,
        None => {
            debug!("a directive of a kind that this version does not know");
            return;
        }
    };
    let sequence = sent.sequence;
    let installed = match renew::bundle(live, sent) {
        Ok(bundle) => live.install(None, Some(bundle)).await,
        Err(error) => Err(error),
    };
    match installed {
        Ok(true) => info!(sequence, "new trust bundle in force"),
        Ok(false) => {}
        Err(error) => {
            warn!(sequence, "trust bundle refused: {error}");
            live.stream_error(&error);
        }
    }
}

fn send(live: &Live, reports: &mpsc::Sender<proto::Report>, identity: &Identity) -> Result<(), AttemptError> {
    let millis = identity.svid.not_after().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let held = proto::Held {
        spiffe_id: identity.svid.id().as_str().to_owned(),
        serial: identity.svid.serial().to_vec(),
        not_after_unix_ms: i64::try_from(millis).unwrap_or(i64::MAX),
        issuer_key_id: identity.svid.issuer_key_id().to_vec(),
    };
    reports
        .try_send(proto::Report { bundle_sequence: live.acknowledged(), held: vec![held] })
        .map_err(|_| AttemptError::Connection("the control plane does not read reports".to_owned()))
}

fn is_valid(live: &Live, identity: &Identity) -> bool {
    let now = live.clock.wall();
    identity.svid.not_before() <= now && now <= identity.svid.not_after()
}
