//! Limits and deadlines of the data path, each with its reason, and what counts their hits.

use std::collections::BTreeMap;
use std::time::Duration;

use postern_policy::yaml::Span;

/// All of them. The defaults are what a sidecar runs with; a configuration may override any by name.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A mesh connection's first byte: a peer that dials has something to say.
    pub first_byte: Duration,
    /// A TLS handshake, whole.
    pub handshake: Duration,
    /// TLS handshakes at a time in one worker; each costs a signature.
    pub handshakes: usize,
    /// Unfinished handshakes from one address.
    pub handshakes_per_source: usize,
    /// A request's head, from its first byte: slow heads hold a connection for nothing.
    pub head: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Header fields of a request.
    pub head_fields: usize,
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
    /// Connections at a time, all listeners together; past it, accepting pauses.
    pub connections: usize,
    /// Requests and tunnels at a time.
    pub in_flight: usize,
    /// Requests and tunnels to one destination at a time.
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
            detect: Duration::from_secs(1),
            idle: Duration::from_secs(60),
            workload_idle: Duration::from_secs(4),
            connect_workload: Duration::from_secs(1),
            connect_mesh: Duration::from_secs(1),
            stall: Duration::from_secs(30),
            connections: 10_000,
            in_flight: 10_000,
            in_flight_per_destination: 1_000,
            expiry_grace: Duration::from_secs(30),
            drain_min: Duration::from_secs(5),
            drain_max: Duration::from_secs(25),
        }
    }
}

impl Limits {
    /// Overrides one by its name; durations are written like `500ms`, `10s`, `5m`.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let duration = match name {
            "firstByte" => &mut self.first_byte,
            "handshake" => &mut self.handshake,
            "head" => &mut self.head,
            "detect" => &mut self.detect,
            "idle" => &mut self.idle,
            "workloadIdle" => &mut self.workload_idle,
            "connectWorkload" => &mut self.connect_workload,
            "connectMesh" => &mut self.connect_mesh,
            "stall" => &mut self.stall,
            "expiryGrace" => &mut self.expiry_grace,
            "drainMin" => &mut self.drain_min,
            "drainMax" => &mut self.drain_max,
            _ => return self.set_number(name, value),
        };
        let span = Span::parse(value)
            .ok_or_else(|| format!("limits.{name}: {value:?} is no duration (write 500ms, 10s or 5m)"))?;
        // A deadline of nothing is one that nobody can keep; only waits may be left out.
        if span.0.is_zero() && !matches!(name, "drainMin" | "drainMax" | "expiryGrace") {
            return Err(format!("limits.{name}: a deadline of 0 lets nothing pass"));
        }
        *duration = span.0;
        Ok(())
    }

    /// All of them by name: durations in seconds, the rest as numbers.
    pub fn shown(&self) -> BTreeMap<&'static str, serde_json::Number> {
        let seconds = |duration: Duration| {
            serde_json::Number::from_f64(duration.as_secs_f64()).unwrap_or_else(|| 0.into())
        };
        BTreeMap::from([
            ("firstByte", seconds(self.first_byte)),
            ("handshake", seconds(self.handshake)),
            ("handshakes", self.handshakes.into()),
            ("handshakesPerSource", self.handshakes_per_source.into()),
            ("head", seconds(self.head)),
            ("headBytes", self.head_bytes.into()),
            ("headFields", self.head_fields.into()),
            ("detect", seconds(self.detect)),
            ("idle", seconds(self.idle)),
            ("workloadIdle", seconds(self.workload_idle)),
            ("connectWorkload", seconds(self.connect_workload)),
            ("connectMesh", seconds(self.connect_mesh)),
            ("stall", seconds(self.stall)),
            ("connections", self.connections.into()),
            ("inFlight", self.in_flight.into()),
            ("inFlightPerDestination", self.in_flight_per_destination.into()),
            ("expiryGrace", seconds(self.expiry_grace)),
            ("drainMin", seconds(self.drain_min)),
            ("drainMax", seconds(self.drain_max)),
        ])
    }

    fn set_number(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = match name {
            "handshakes" => &mut self.handshakes,
            "handshakesPerSource" => &mut self.handshakes_per_source,
            "headBytes" => &mut self.head_bytes,
            "headFields" => &mut self.head_fields,
            "connections" => &mut self.connections,
            "inFlight" => &mut self.in_flight,
            "inFlightPerDestination" => &mut self.in_flight_per_destination,
            _ => {
                return Err(format!("limits.{name}: there is no such limit (docs/operations.md lists them)"));
            }
        };
        *number = value
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("limits.{name}: {value:?} is no number above 0"))?;
        Ok(())
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
    }
}
