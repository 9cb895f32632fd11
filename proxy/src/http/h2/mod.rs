//! HTTP/2, driven with the `h2` crate itself on every leg.
//!
//! hyper would hide what a shared mesh connection needs: the budget for small DATA frames, informational responses,
//! resets counted by age, stalls by stream, and a tunnel that is a stream like any other. hyper stays for HTTP/1.

mod client;
mod recv;
mod send;
mod server;
mod tunnel;
mod watch;

pub use client::{Connection, Opened};
pub use recv::RecvBody;
pub use server::{Closing, serve};
pub use tunnel::TunnelIo;

use std::time::Duration;

use crate::limits::Limits;

/// What one leg offers and demands. Windows are in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Streams the peer may have open.
    pub max_streams: u32,
    /// Streams that we open before the peer has said how many it allows; past them, opening waits.
    pub first_streams: usize,
    /// Receive window of a stream.
    pub stream_window: u32,
    /// Receive window of the connection.
    pub connection_window: u32,
    /// Largest list of header fields, by RFC 9113's count (name + value + 32 a field).
    pub header_list: u32,
    /// Resets for the peer's own mistakes before the connection is closed.
    pub local_error_resets: usize,
    /// Streams that the peer has taken back before they were looked at, before the connection is closed.
    pub unseen_resets: usize,
    /// Many callers share the connection: what one of them does must not end the others' requests.
    pub is_shared: bool,
    /// Bytes a stream may have waiting to be written.
    pub send_buffer: usize,
    /// How often the peer is asked whether it lives.
    pub ping_interval: Duration,
    /// How long its answer may take.
    pub ping_timeout: Duration,
    /// How long a write may go without progress.
    pub stall: Duration,
    /// How long the preface may take.
    pub preface: Duration,
    /// How many of its requests a peer may take back.
    pub client_resets: ClientResets,
    /// Informational answers before the one that is asked for.
    pub informational: usize,
}

/// Two rules against rapid reset: of so many streams that come within a window no more than a share may be taken back
/// young, and never more than so many a second, of whatever age, for several seconds running.
#[derive(Clone, Copy, Debug)]
pub struct ClientResets {
    /// The streams over which young resets are counted.
    pub streams: usize,
    /// The share of them, in percent.
    pub percent: usize,
    /// How young.
    pub age: Duration,
    /// How long counting lasts at most: if fewer streams came by then, it begins anew. Many callers share a mesh
    /// connection, and one who probes now and then must not add up to its end.
    pub window: Duration,
    /// Resets in a second.
    pub per_second: usize,
    /// Seconds in a row that are too many.
    pub seconds: usize,
}

/// What one leg offers and demands, from the limits in force. The peer's fields are counted by RFC 9113 with 32 bytes each,
/// so that whatever our own count allows passes here.
impl Settings {
    /// Between two sidecars.
    pub fn mesh(limits: &Limits) -> Self {
        Self {
            max_streams: wire(limits.mesh_streams),
            first_streams: usize::MAX,
            stream_window: wire(limits.mesh_stream_window),
            connection_window: wire(limits.mesh_connection_window),
            header_list: wire(limits.head_bytes + MORE_BYTES + (limits.head_fields + MORE_FIELDS) * 32),
            local_error_resets: limits.mesh_local_error_resets,
            // A burst that the caller's sidecar has let through arrives at once, and so do the resets behind it.
            unseen_resets: limits.mesh_streams,
            is_shared: true,
            send_buffer: limits.send_buffer,
            ping_interval: limits.ping_interval,
            ping_timeout: limits.ping_timeout,
            stall: limits.stall,
            preface: limits.head,
            client_resets: ClientResets {
                streams: limits.client_reset_streams,
                percent: limits.client_reset_percent,
                age: limits.client_reset_age,
                window: limits.client_reset_window,
                per_second: limits.client_resets_per_second,
                seconds: limits.client_reset_seconds,
            },
            informational: limits.informational,
        }
    }

    /// Towards callers that are no sidecars.
    pub fn edge(limits: &Limits) -> Self {
        Self {
            max_streams: wire(limits.streams),
            stream_window: wire(limits.stream_window),
            connection_window: wire(limits.connection_window),
            header_list: wire(limits.head_bytes + limits.head_fields * 32),
            local_error_resets: limits.local_error_resets,
            unseen_resets: UNSEEN_RESETS,
            is_shared: false,
            ..Self::mesh(limits)
        }
    }

    /// Towards the workload: as many responses at once as on the mesh, so as large a connection window, and no stream
    /// before its SETTINGS: a stream too many would wait for another's end instead of getting a connection.
    pub fn workload(limits: &Limits) -> Self {
        Self {
            first_streams: 0,
            connection_window: wire(limits.mesh_connection_window),
            ..Self::edge(limits)
        }
    }
}

/// h2's own default.
const UNSEEN_RESETS: usize = 20;

/// What the mesh leg carries more than the edge allows: fields and bytes of our own.
pub const MORE_FIELDS: usize = 16;
/// The bytes of them.
pub const MORE_BYTES: usize = 4 << 10;

/// HTTP/2's numbers end at 2^31 - 1; the configuration allows no more.
fn wire(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX).min((1 << 31) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leg_obeys_the_limits() {
        let mut limits = Limits::default();
        for (name, value) in [
            ("meshStreams", "7"),
            ("streams", "5"),
            ("meshStreamWindow", "100000"),
            ("streamWindow", "70000"),
            ("meshConnectionWindow", "200000"),
            ("connectionWindow", "80000"),
            ("meshLocalErrorResets", "9"),
            ("localErrorResets", "3"),
            ("sendBuffer", "2048"),
            ("pingInterval", "3s"),
            ("pingTimeout", "4s"),
            ("stall", "6s"),
            ("head", "8s"),
            ("clientResetPercent", "20"),
        ] {
            limits.set(name, value).unwrap();
        }
        let (mesh, edge, workload) =
            (Settings::mesh(&limits), Settings::edge(&limits), Settings::workload(&limits));
        for (settings, expected) in [
            (mesh, (7, 100_000, 200_000, 9)),
            (edge, (5, 70_000, 80_000, 3)),
            (workload, (5, 70_000, 200_000, 3)),
        ] {
            let found = (
                settings.max_streams,
                settings.stream_window,
                settings.connection_window,
                settings.local_error_resets,
            );
            assert_eq!(found, expected);
            assert_eq!((settings.send_buffer, settings.client_resets.percent), (2_048, 20));
            let times = [settings.ping_interval, settings.ping_timeout, settings.stall, settings.preface];
            assert_eq!(times.map(|time| time.as_secs()), [3, 4, 6, 8]);
        }
    }
}
