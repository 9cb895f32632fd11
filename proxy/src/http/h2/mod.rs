//! HTTP/2, driven with the `h2` crate itself on every leg.
//!
//! hyper would hide what a shared mesh connection needs: the budget for small DATA frames, informational responses,
//! resets counted by age, stalls by stream, and a tunnel that is a stream like any other. hyper stays for HTTP/1.

mod client;
mod recv;
mod send;
mod server;
mod tunnel;

pub use client::{Connection, Opened};
pub use recv::RecvBody;
pub use server::{Closing, Ended, serve};
pub use tunnel::TunnelIo;

use std::time::Duration;

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
}

impl Settings {
    /// Between two sidecars. The connection window is large because h2's budget for small frames is half of it: with
    /// the default window 128 unread one-byte frames of one tunnel would cut all its neighbours.
    pub const MESH: Self = Self {
        max_streams: 250,
        first_streams: usize::MAX,
        stream_window: 1 << 20,
        connection_window: 16 << 20,
        header_list: (64 << 10) + (4 << 10) + 116 * 32,
        local_error_resets: 1_024,
        send_buffer: 64 << 10,
        ping_interval: Duration::from_secs(10),
        ping_timeout: Duration::from_secs(20),
        stall: Duration::from_secs(30),
        preface: Duration::from_secs(10),
    };

    /// Towards callers.
    pub const EDGE: Self = Self {
        max_streams: 100,
        stream_window: 256 << 10,
        connection_window: 1 << 20,
        header_list: (64 << 10) + 100 * 32,
        local_error_resets: 128,
        ..Self::MESH
    };

    /// Towards the workload: as many responses at once as on the mesh, so as large a connection window, and no stream
    /// before its SETTINGS: a stream too many would wait for another's end instead of getting a connection.
    pub const WORKLOAD: Self = Self { first_streams: 0, connection_window: 16 << 20, ..Self::EDGE };
}
