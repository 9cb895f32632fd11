//! The attacks, each on one connection or a few, and what it must come to.

use std::time::{Duration, Instant};

use postern_tests::frames::{Raw, flag, frame, kind};
use postern_tests::{Origin, is_long, wait};

/// One port under attack.
pub(crate) struct Target<'a> {
    pub(crate) name: &'static str,
    pub(crate) open: Box<dyn Fn() -> Raw + 'a>,
    pub(crate) origin: &'a Origin,
    pub(crate) process: u32,
}

/// What an attack came to.
pub(crate) struct Seen {
    /// The far side closed the connection, or the streams that were held.
    pub(crate) cut: bool,
    /// What was asked for before that, and how much of it reached the origin.
    pub(crate) sent: usize,
    pub(crate) requests: usize,
    /// Resident memory that came with it, in MiB.
    pub(crate) grown: u64,
    pub(crate) took: Duration,
}

pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Target) -> (bool, usize),
    /// With the limits, and without the one that is against it. None where the library's own limit is, which nobody can set:
    /// tests/mutants/sidecar takes those away.
    pub(crate) held: fn(&Seen) -> bool,
    pub(crate) succeeded: Option<fn(&Seen) -> bool>,
}

pub(crate) const ATTACKS: [Attack; 12] = [
    Attack {
        name: "rapid reset, 300 a second",
        run: paced_reset,
        held: |seen| seen.cut && seen.requests <= 700,
        succeeded: Some(|seen| !seen.cut && seen.sent >= 700),
    },
    Attack {
        name: "rapid reset, all at once",
        run: burst_reset,
        held: |seen| seen.cut && seen.requests <= 700,
        succeeded: None,
    },
    Attack {
        name: "made you reset: window update of 0",
        run: |target| made_you_reset(target, &frame_of_zero),
        held: |seen| seen.cut && seen.sent <= 100,
        succeeded: None,
    },
    Attack {
        name: "made you reset: more body than said",
        run: |target| made_you_reset(target, &more_than_said),
        held: |seen| seen.cut && seen.sent <= 1_500,
        succeeded: Some(|seen| !seen.cut && seen.sent == 2_000),
    },
    Attack {
        name: "CONTINUATION without end",
        run: continuations,
        held: |seen| seen.cut && seen.requests == 0,
        succeeded: Some(|seen| !seen.cut && seen.sent == 1_000),
    },
    Attack {
        name: "HPACK bomb: 1.2 MB of fields in 5 kB",
        run: hpack_bomb,
        held: |seen| seen.requests == 0,
        succeeded: Some(|seen| seen.requests == 1),
    },
    Attack {
        name: "2,000 cookie crumbs",
        run: crumbs,
        held: |seen| seen.requests == 0,
        succeeded: Some(|seen| seen.requests == 1),
    },
    Attack {
        name: "PINGs, answers not read",
        run: |target| unread(target, &frame(kind::PING, flag::NONE, 0, b"12345678")),
        held: |seen| seen.cut && seen.grown <= 16,
        succeeded: Some(|seen| !seen.cut),
    },
    Attack {
        name: "SETTINGS, answers not read",
        run: |target| unread(target, &frame(kind::SETTINGS, flag::NONE, 0, &[0, 4, 0, 0, 255, 255])),
        held: |seen| seen.cut && seen.grown <= 16,
        succeeded: Some(|seen| !seen.cut),
    },
    Attack { name: "300,000 PRIORITY", run: priorities, held: |seen| seen.grown <= 8, succeeded: None },
    Attack {
        name: "empty DATA",
        run: empty_data,
        held: |seen| seen.cut && seen.sent <= 1_000,
        succeeded: None,
    },
    Attack {
        name: "window of 0, many answers of 1 MB",
        run: hold,
        held: |seen| seen.cut && seen.grown <= 50,
        succeeded: Some(|seen| !seen.cut),
    },
];

fn paced_reset(target: &Target) -> (bool, usize) {
    let (mut raw, mut sent, begun) = ((target.open)(), 0, Instant::now());
    raw.hello(&[]);
    while begun.elapsed() < Duration::from_secs(4) {
        let streams: Vec<u32> = (0..6).map(|_| raw.stream()).collect();
        let heads: Vec<u8> =
            streams.iter().flat_map(|one| raw.head(*one, flag::END_STREAM, "GET", "/hold", &[])).collect();
        let _ = raw.send(&heads);
        // They are being served when they are taken back: h2 counts only those that nobody has seen.
        if raw.is_cut(Duration::from_millis(14)) {
            return (true, sent);
        }
        let resets: Vec<u8> =
            streams.iter().flat_map(|one| frame(kind::RST_STREAM, 0, *one, &8_u32.to_be_bytes())).collect();
        let _ = raw.send(&resets);
        sent += streams.len();
    }
    (raw.is_cut(Duration::from_millis(200)), sent)
}

fn burst_reset(target: &Target) -> (bool, usize) {
    let mut raw = (target.open)();
    raw.hello(&[]);
    for sent in 0..2_000 {
        let stream = raw.stream();
        let mut pair = raw.head(stream, flag::END_STREAM, "GET", "/hold", &[]);
        pair.extend(frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        if raw.send(&pair).is_err() {
            return (true, sent);
        }
    }
    (raw.is_cut(Duration::from_secs(2)), 2_000)
}

fn frame_of_zero(stream: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &[0; 4])
}

fn more_than_said(stream: u32) -> Vec<u8> {
    frame(kind::DATA, flag::END_STREAM, stream, b"more than one")
}

/// Has the far side reset streams for mistakes of ours, so that none of them counts as taken back.
fn made_you_reset(target: &Target, mistake: &dyn Fn(u32) -> Vec<u8>) -> (bool, usize) {
    let mut raw = (target.open)();
    raw.hello(&[]);
    for sent in 0..2_000 {
        let stream = raw.stream();
        let mut pair = raw.head(stream, flag::NONE, "POST", "/one", &[("content-length", "1")]);
        pair.extend(mistake(stream));
        if raw.send(&pair).is_err() || raw.is_over() {
            return (true, sent);
        }
        if sent % 50 == 0 && raw.is_cut(Duration::from_millis(20)) {
            return (true, sent);
        }
    }
    (raw.is_cut(Duration::from_millis(500)), 2_000)
}

fn continuations(target: &Target) -> (bool, usize) {
    let mut raw = (target.open)();
    raw.hello(&[]);
    let block = raw.head_block("GET", "/one", &[]);
    let _ = raw.send(&frame(kind::HEADERS, flag::END_STREAM, 1, &block));
    for sent in 0..1_000 {
        if raw.send(&frame(kind::CONTINUATION, 0, 1, &[])).is_err() {
            return (true, sent);
        }
    }
    (raw.is_cut(Duration::from_millis(500)), 1_000)
}

fn hpack_bomb(target: &Target) -> (bool, usize) {
    let mut raw = (target.open)();
    raw.hello(&[]);
    let mut block = raw.head_block("GET", "/one", &[]);
    // Into the dynamic table (RFC 7541, 6.2.1), then 300 times out of it.
    block.extend(b"\x40\x01x\x7f\xa1\x1e");
    block.extend([b'a'; 4_000]);
    block.extend([0xbe; 300]);
    let sent = block.len();
    let _ = raw.send(&frame(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, 1, &block));
    (answered(&mut raw), sent)
}

fn crumbs(target: &Target) -> (bool, usize) {
    let mut raw = (target.open)();
    raw.hello(&[]);
    let mut block = raw.head_block("GET", "/one", &[]);
    // `cookie` by its index, which costs a byte, as does each value.
    for _ in 0..2_000 {
        block.extend(b"\x0f\x11\x01a");
    }
    let sent = block.len();
    let _ = raw.send(&frame(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, 1, &block));
    (answered(&mut raw), sent)
}

/// Waits for whatever comes of one request; whether the connection is gone.
fn answered(raw: &mut Raw) -> bool {
    let is_end = |kind: u8| matches!(kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY);
    raw.wait_for(Duration::from_secs(3), |frame| is_end(frame.kind))
        .is_none_or(|end| end.kind == kind::GOAWAY)
}

/// Sends what asks for answers until nothing more goes out, and reads none of them.
fn unread(target: &Target, question: &[u8]) -> (bool, usize) {
    let mut raw = (target.open)();
    raw.hello(&[]);
    let many = question.repeat(1_000);
    let (begun, mut sent) = (Instant::now(), 0);
    while raw.send(&many).is_ok() && begun.elapsed() < Duration::from_secs(2) {
        sent += 1_000;
    }
    wait::pause(Duration::from_secs(2));
    // TLS after half a record sends nothing; a reader sees the end all the same, behind what waits.
    (raw.is_over() || raw.is_cut(Duration::from_secs(1)), sent)
}

fn priorities(target: &Target) -> (bool, usize) {
    let mut raw = (target.open)();
    raw.hello(&[]);
    let many = frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 16]).repeat(1_000);
    for sent in 0..300 {
        if raw.send(&many).is_err() {
            return (true, sent * 1_000);
        }
    }
    (raw.is_cut(Duration::from_millis(200)), 300_000)
}

fn empty_data(target: &Target) -> (bool, usize) {
    let mut raw = (target.open)();
    raw.hello(&[]);
    let head = raw.head(1, flag::NONE, "POST", "/one", &[]);
    let _ = raw.send(&head);
    for sent in 0..2_000 {
        if raw.send(&frame(kind::DATA, 0, 1, &[])).is_err() {
            return (true, sent);
        }
        if sent % 50 == 0 && raw.is_cut(Duration::from_millis(5)) {
            return (true, sent);
        }
    }
    (raw.is_cut(Duration::from_millis(500)), 2_000)
}

/// Asks for large answers and lets none of them come. Whether they were all taken away.
fn hold(target: &Target) -> (bool, usize) {
    const CONNECTIONS: usize = 10;
    // As many as the way out allows; unoptimized code takes seconds for so many.
    let streams = if is_long() { 100 } else { 40 };
    let mut all: Vec<Raw> = (0..CONNECTIONS).map(|_| (target.open)()).collect();
    for raw in &mut all {
        raw.hello(&[(4, 0)]);
        let heads: Vec<u8> = (0..streams)
            .flat_map(|_| {
                let stream = raw.stream();
                raw.head(stream, flag::END_STREAM, "GET", "/bytes/1048576", &[])
            })
            .collect();
        let _ = raw.send(&heads);
    }
    let (begun, mut ended) = (Instant::now(), [0; CONNECTIONS]);
    let patience = Duration::from_secs(if is_long() { 20 } else { 8 });
    while begun.elapsed() < patience {
        for (raw, ended) in all.iter_mut().zip(&mut ended) {
            let frames = raw.read(Duration::from_millis(20));
            *ended += frames.iter().filter(|one| one.kind == kind::RST_STREAM).count();
            if raw.is_over() {
                *ended = streams;
            }
        }
        if ended.iter().all(|ended| *ended >= streams) {
            return (true, CONNECTIONS * streams);
        }
    }
    (false, CONNECTIONS * streams)
}
