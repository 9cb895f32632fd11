//! Limits and deadlines of the data path, each with its reason, and what counts their hits.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use postern_policy::norm;
use postern_policy::yaml::Span;

/// All of them. The defaults are what a sidecar runs with; a configuration may override any by name.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A mesh connection's first byte: a peer that dials has something to say.
    pub first_byte: Duration,
    /// A TLS handshake, whole.
    pub handshake: Duration,
    /// TLS handshakes at a time, over all workers; each costs a signature.
    pub handshakes: usize,
    /// Unfinished handshakes from one address.
    pub handshakes_per_source: usize,
    /// A request's head, from its first byte: slow heads hold a connection for nothing.
    pub head: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Header fields of a request.
    pub head_fields: usize,
    /// Bytes of a request's target, path and query: more than policy reads of one.
    pub uri_bytes: usize,
    /// Bytes of one header field's value: workloads put it into one buffer.
    pub field_bytes: usize,
    /// Informational answers (1xx) before the one that is asked for: whoever sends them without end never answers.
    pub informational: usize,
    /// A client that sends nothing while its protocol is being found out.
    pub detect: Duration,
    /// An HTTP/1 connection without a request.
    pub idle: Duration,
    /// A pooled connection to the workload without a request: shorter than servers' own idle times (Node: 5 s).
    pub workload_idle: Duration,
    /// Connecting to the own workload.
    pub connect_workload: Duration,
    /// Connecting to another sidecar.
    pub connect_mesh: Duration,
    /// A write without progress.
    pub stall: Duration,
    /// How often an HTTP/2 peer is asked whether it lives: what lies between may forget a silent connection.
    pub ping_interval: Duration,
    /// How long its answer may take.
    pub ping_timeout: Duration,
    /// Streams that a sidecar may have open on one connection.
    pub mesh_streams: usize,
    /// Streams that anybody else may have open on one connection.
    pub streams: usize,
    /// Receive window of a stream between sidecars.
    pub mesh_stream_window: usize,
    /// Receive window of a stream otherwise.
    pub stream_window: usize,
    /// Receive window of a connection between sidecars, and of one to the workload, which carries as many answers. Large
    /// because h2's budget for small frames is half of it: with the default window 128 unread one-byte frames of one
    /// tunnel would cut all its neighbours.
    pub mesh_connection_window: usize,
    /// Receive window of a connection otherwise.
    pub connection_window: usize,
    /// Bytes that a stream may have waiting to be written.
    pub send_buffer: usize,
    /// Streams over which young resets are counted (CVE-2023-44487).
    pub client_reset_streams: usize,
    /// Of those, the share that a peer may take back young, in percent.
    pub client_reset_percent: usize,
    /// How young that is.
    pub client_reset_age: Duration,
    /// How long counting them lasts at most: fewer streams than that in it are no flood, and those of somebody who probes
    /// now and then never add up.
    pub client_reset_window: Duration,
    /// Resets of any age in one second.
    pub client_resets_per_second: usize,
    /// Seconds in a row that may not all be over that: one is a burst.
    pub client_reset_seconds: usize,
    /// Resets for a sidecar's own mistakes before its connection closes: many callers share it.
    pub mesh_local_error_resets: usize,
    /// Resets for anybody else's own mistakes.
    pub local_error_resets: usize,
    /// Memory in use from which on no stream is opened, in percent of the cgroup's limit.
    pub memory_streams_percent: usize,
    /// Memory in use from which on no connection is accepted.
    pub memory_reject_percent: usize,
    /// Descriptors in use from which on no connection is accepted, in percent of the open-files limit.
    pub descriptors_percent: usize,
    /// Connections of one direction at a time; past it, accepting pauses.
    pub connections: usize,
    /// Requests and tunnels at a time.
    pub in_flight: usize,
    /// Requests and tunnels to one Service at a time.
    pub in_flight_per_destination: usize,
    /// After GOAWAY, what still runs is reset.
    pub expiry_grace: Duration,
    /// Draining lasts at least this long: callers learn of it with a delay.
    pub drain_min: Duration,
    /// And at most this long.
    pub drain_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            handshakes: 512,
            handshakes_per_source: 1_024,
            head: Duration::from_secs(10),
            head_bytes: 64 << 10,
            head_fields: 100,
            uri_bytes: norm::MAX_PATH,
            field_bytes: 32 << 10,
            informational: 8,
            detect: Duration::from_secs(1),
            idle: Duration::from_secs(60),
            workload_idle: Duration::from_secs(4),
            connect_workload: Duration::from_secs(1),
            connect_mesh: Duration::from_secs(1),
            stall: Duration::from_secs(30),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            mesh_streams: 250,
            streams: 100,
            mesh_stream_window: 1 << 20,
            stream_window: 256 << 10,
            mesh_connection_window: 16 << 20,
            connection_window: 1 << 20,
            send_buffer: 64 << 10,
            client_reset_streams: 500,
            client_reset_percent: 50,
            client_reset_age: Duration::from_secs(1),
            client_reset_window: Duration::from_secs(10),
            client_resets_per_second: 100,
            client_reset_seconds: 2,
            mesh_local_error_resets: 1_024,
            local_error_resets: 128,
            memory_streams_percent: 85,
            memory_reject_percent: 95,
            descriptors_percent: 90,
            connections: 10_000,
            in_flight: 10_000,
            in_flight_per_destination: 1_000,
            expiry_grace: Duration::from_secs(30),
            drain_min: Duration::from_secs(5),
            drain_max: Duration::from_secs(25),
        }
    }
}

/// Where a limit is kept, and what it may be.
enum Field {
    /// A deadline: 0 would let nothing pass.
    Deadline(fn(&mut Limits) -> &mut Duration),
    /// A wait, which may be left out.
    Wait(fn(&mut Limits) -> &mut Duration),
    Number(fn(&mut Limits) -> &mut usize, RangeInclusive<usize>),
}

/// Longer is no deadline any more, and far from where adding to the time of day would overflow.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);
/// Far more than one process serves, and far less than a semaphore holds.
const COUNT: RangeInclusive<usize> = 1..=1_000_000;
const PERCENT: RangeInclusive<usize> = 1..=100;
/// One whole frame fits; the top is HTTP/2's (RFC 9113, 6.9.1).
const STREAM_WINDOW: RangeInclusive<usize> = (16 << 10)..=MOST;
/// A connection begins with 65,535 and cannot offer less (RFC 9113, 6.9.2).
const CONNECTION_WINDOW: RangeInclusive<usize> = 65_535..=MOST;
const MOST: usize = (1 << 31) - 1;

/// Every limit by its name in `sidecar.yaml`.
const FIELDS: [(&str, Field); 42] = [
    ("firstByte", Field::Deadline(|limits| &mut limits.first_byte)),
    ("handshake", Field::Deadline(|limits| &mut limits.handshake)),
    ("handshakes", Field::Number(|limits| &mut limits.handshakes, COUNT)),
    ("handshakesPerSource", Field::Number(|limits| &mut limits.handshakes_per_source, COUNT)),
    ("head", Field::Deadline(|limits| &mut limits.head)),
    ("headBytes", Field::Number(|limits| &mut limits.head_bytes, 1..=16 << 20)),
    ("headFields", Field::Number(|limits| &mut limits.head_fields, 1..=10_000)),
    ("uriBytes", Field::Number(|limits| &mut limits.uri_bytes, 1..=norm::MAX_PATH)),
    ("fieldBytes", Field::Number(|limits| &mut limits.field_bytes, 1..=16 << 20)),
    ("informational", Field::Number(|limits| &mut limits.informational, 1..=10_000)),
    ("detect", Field::Deadline(|limits| &mut limits.detect)),
    ("idle", Field::Deadline(|limits| &mut limits.idle)),
    ("workloadIdle", Field::Deadline(|limits| &mut limits.workload_idle)),
    ("connectWorkload", Field::Deadline(|limits| &mut limits.connect_workload)),
    ("connectMesh", Field::Deadline(|limits| &mut limits.connect_mesh)),
    ("stall", Field::Deadline(|limits| &mut limits.stall)),
    ("pingInterval", Field::Deadline(|limits| &mut limits.ping_interval)),
    ("pingTimeout", Field::Deadline(|limits| &mut limits.ping_timeout)),
    ("meshStreams", Field::Number(|limits| &mut limits.mesh_streams, COUNT)),
    ("streams", Field::Number(|limits| &mut limits.streams, COUNT)),
    ("meshStreamWindow", Field::Number(|limits| &mut limits.mesh_stream_window, STREAM_WINDOW)),
    ("streamWindow", Field::Number(|limits| &mut limits.stream_window, STREAM_WINDOW)),
    ("meshConnectionWindow", Field::Number(|limits| &mut limits.mesh_connection_window, CONNECTION_WINDOW)),
    ("connectionWindow", Field::Number(|limits| &mut limits.connection_window, CONNECTION_WINDOW)),
    ("sendBuffer", Field::Number(|limits| &mut limits.send_buffer, 1_024..=MOST)),
    ("clientResetStreams", Field::Number(|limits| &mut limits.client_reset_streams, COUNT)),
    ("clientResetPercent", Field::Number(|limits| &mut limits.client_reset_percent, PERCENT)),
    ("clientResetAge", Field::Deadline(|limits| &mut limits.client_reset_age)),
    ("clientResetWindow", Field::Deadline(|limits| &mut limits.client_reset_window)),
    ("clientResetsPerSecond", Field::Number(|limits| &mut limits.client_resets_per_second, COUNT)),
    ("clientResetSeconds", Field::Number(|limits| &mut limits.client_reset_seconds, 1..=3_600)),
    ("meshLocalErrorResets", Field::Number(|limits| &mut limits.mesh_local_error_resets, COUNT)),
    ("localErrorResets", Field::Number(|limits| &mut limits.local_error_resets, COUNT)),
    ("memoryStreamsPercent", Field::Number(|limits| &mut limits.memory_streams_percent, PERCENT)),
    ("memoryRejectPercent", Field::Number(|limits| &mut limits.memory_reject_percent, PERCENT)),
    ("descriptorsPercent", Field::Number(|limits| &mut limits.descriptors_percent, PERCENT)),
    ("connections", Field::Number(|limits| &mut limits.connections, COUNT)),
    ("inFlight", Field::Number(|limits| &mut limits.in_flight, COUNT)),
    ("inFlightPerDestination", Field::Number(|limits| &mut limits.in_flight_per_destination, COUNT)),
    ("expiryGrace", Field::Wait(|limits| &mut limits.expiry_grace)),
    ("drainMin", Field::Wait(|limits| &mut limits.drain_min)),
    ("drainMax", Field::Wait(|limits| &mut limits.drain_max)),
];

impl Limits {
    /// Overrides one by its name; durations are written like `500ms`, `10s`, `5m`.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let Some((_, field)) = FIELDS.iter().find(|(known, _)| *known == name) else {
            return Err(format!("limits.{name}: there is no such limit (docs/operations.md lists them)"));
        };
        match field {
            Field::Deadline(of) | Field::Wait(of) => {
                let span = Span::parse(value).ok_or_else(|| {
                    format!("limits.{name}: {value:?} is no duration (write 500ms, 10s or 5m)")
                })?;
                if span.0.is_zero() && matches!(field, Field::Deadline(_)) {
                    return Err(format!("limits.{name}: a deadline of 0 lets nothing pass"));
                }
                if span.0 > LONGEST {
                    return Err(format!("limits.{name}: {value} is too long; 30d is the most"));
                }
                *of(self) = span.0;
            }
            Field::Number(of, range) => {
                *of(self) = value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
                    let (least, most) = (range.start(), range.end());
                    format!("limits.{name}: {value:?} is no whole number from {least} to {most}")
                })?;
            }
        }
        Ok(())
    }

    /// What does not fit together: the names of two limits, and what is wrong with them.
    pub fn conflicts(&self) -> Vec<([&'static str; 2], String)> {
        let pairs = [
            (
                "memoryStreamsPercent",
                self.memory_streams_percent,
                "memoryRejectPercent",
                self.memory_reject_percent,
            ),
            ("streamWindow", self.stream_window, "connectionWindow", self.connection_window),
            (
                "meshStreamWindow",
                self.mesh_stream_window,
                "meshConnectionWindow",
                self.mesh_connection_window,
            ),
        ];
        let over = pairs.into_iter().filter(|(_, one, _, other)| one > other);
        let over = over.map(|(small, one, large, other)| {
            let text = format!(
                "limits.{small} ({one}) is above limits.{large} ({other}): lower it, or raise the other"
            );
            ([small, large], text)
        });
        over.chain(self.cutting_drain()).collect()
    }

    /// What still runs when the doors close gets the time between the two. Both 0 is no mistake: it leaves at once.
    fn cutting_drain(&self) -> Option<([&'static str; 2], String)> {
        let (min, max) = (self.drain_min, self.drain_max);
        let cuts = min >= max && !min.is_zero();
        cuts.then(|| {
            let text = format!(
                "limits.drainMin ({min:?}) is not below limits.drainMax ({max:?}): the sidecar would cut whatever still runs the moment it stops accepting; lower it, or raise the other (both 0s to leave at once)"
            );
            (["drainMin", "drainMax"], text)
        })
    }

    /// All of them by name: durations in seconds, the rest as numbers.
    pub fn shown(&self) -> BTreeMap<&'static str, serde_json::Number> {
        let mut copy = self.clone();
        let shown = FIELDS.iter().map(|(name, field)| match field {
            Field::Deadline(of) | Field::Wait(of) => {
                let seconds = serde_json::Number::from_f64(of(&mut copy).as_secs_f64());
                (*name, seconds.unwrap_or_else(|| 0.into()))
            }
            Field::Number(of, _) => (*name, (*of(&mut copy)).into()),
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides() {
        let of = |name: &str, value: &str| {
            let mut limits = Limits::default();
            limits.set(name, value).map(|()| limits)
        };
        assert_eq!(of("head", "500ms").unwrap().head, Duration::from_millis(500));
        assert_eq!(of("inFlight", "7").unwrap().in_flight, 7);
        assert!(of("head", "soon").unwrap_err().contains("limits.head"));
        assert!(of("inFlight", "0").is_err());
        assert!(of("stall", "0s").is_err());
        assert_eq!(of("drainMin", "0s").unwrap().drain_min, Duration::ZERO);
        assert!(of("hed", "1s").unwrap_err().contains("no such limit"));
        assert_eq!(of("streamWindow", "2147483647").unwrap().stream_window, MOST);
        assert_eq!(of("clientResetAge", "2s").unwrap().client_reset_age, Duration::from_secs(2));
    }

    #[test]
    fn what_a_library_would_panic_at_is_refused() {
        for (name, value) in [
            ("streamWindow", "2147483648"),
            ("streamWindow", "16383"),
            ("meshConnectionWindow", "65534"),
            ("sendBuffer", "4294967296"),
            ("memoryRejectPercent", "0"),
            ("memoryRejectPercent", "101"),
            ("connections", "18446744073709551615"),
            ("headFields", "32769"),
            ("idle", "365000000d"),
            ("streams", "-1"),
            ("streams", "1.5"),
        ] {
            let error = Limits::default().set(name, value).unwrap_err();
            assert!(error.starts_with(&format!("limits.{name}: ")), "{error}");
        }
    }

    #[test]
    fn limits_that_do_not_fit_together_are_named() {
        let of = |name, value| {
            let mut limits = Limits::default();
            limits.set(name, value).unwrap();
            limits.conflicts()
        };
        assert!(Limits::default().conflicts().is_empty());
        assert_eq!(of("memoryStreamsPercent", "96")[0].0, ["memoryStreamsPercent", "memoryRejectPercent"]);
        assert!(of("connectionWindow", "65535")[0].1.contains("limits.streamWindow (262144)"));
    }

    #[test]
    fn a_drain_leaves_time_to_end() {
        let of = |min, max| {
            let mut limits = Limits::default();
            limits.set("drainMin", min).unwrap();
            limits.set("drainMax", max).unwrap();
            limits.conflicts()
        };
        for (min, max) in [("5s", "25s"), ("0s", "1s"), ("24999ms", "25s"), ("0s", "0s")] {
            assert!(of(min, max).is_empty(), "{min} {max}");
        }
        for (min, max) in [("30s", "25s"), ("25s", "25s"), ("1s", "0s")] {
            let found = of(min, max);
            assert_eq!(found.len(), 1, "{min} {max}");
            assert_eq!(found[0].0, ["drainMin", "drainMax"]);
            assert!(found[0].1.contains("limits.drainMin") && found[0].1.contains("cut"), "{}", found[0].1);
        }
    }

    #[test]
    fn every_limit_has_a_place_of_its_own_and_is_shown() {
        // One more in turn: two names for one place would show it twice.
        for (at, (name, field)) in FIELDS.iter().enumerate() {
            let mut limits = Limits::default();
            match field {
                Field::Deadline(of) | Field::Wait(of) => *of(&mut limits) += Duration::from_secs(1),
                Field::Number(of, _) => *of(&mut limits) += 1,
            }
            let (before, after) = (Limits::default().shown(), limits.shown());
            let changed: Vec<_> = after.iter().filter(|(name, value)| before[*name] != **value).collect();
            assert_eq!(changed.len(), 1, "{at} {changed:?}");
            assert_eq!(changed[0].0, name);
        }
    }
}
