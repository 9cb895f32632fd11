//! Rules that hold at some times: which of them do now. The time is told; nobody reads a clock here.

use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::time::SystemTime;

use crate::cond::minute;
use crate::window::{self, Window};

/// Nobody has told the time yet.
const UNTOLD: i64 = i64::MIN;

/// Windows of the rules, and how each stands.
#[derive(Debug)]
pub(super) struct Clock {
    windows: Vec<(Window, AtomicU8)>,
    told: AtomicI64,
    /// Whether some condition asks for the time, which counts minutes.
    counts_minutes: bool,
}

/// Whether a rule holds now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(super) enum Standing {
    Unknown,
    Closed,
    Open,
}

impl Default for Clock {
    fn default() -> Self {
        Self { windows: Vec::new(), told: AtomicI64::new(UNTOLD), counts_minutes: false }
    }
}

impl Clock {
    /// The number of a window, for [`standing`](Self::standing).
    pub(super) fn add(&mut self, window: &Window) -> u32 {
        self.windows.push((window.clone(), AtomicU8::new(Standing::Unknown as u8)));
        u32::try_from(self.windows.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.windows.is_empty() && !self.counts_minutes
    }

    pub(super) fn count_minutes(&mut self) {
        self.counts_minutes = true;
    }

    pub(super) fn tell(&self, now: SystemTime) -> bool {
        let now = window::seconds(now);
        let before = self.told.swap(now, Ordering::Relaxed);
        let mut changed = self.counts_minutes && (before == UNTOLD || minute(before) != minute(now));
        for (window, standing) in &self.windows {
            let next = if window.is_open(now) { Standing::Open } else { Standing::Closed };
            changed |= standing.swap(next as u8, Ordering::Relaxed) != next as u8;
        }
        changed
    }

    pub(super) fn told(&self) -> Option<i64> {
        Some(self.told.load(Ordering::Relaxed)).filter(|told| *told != UNTOLD)
    }

    pub(super) fn standing(&self, window: u32) -> Standing {
        match self.windows.get(window as usize).map(|(_, standing)| standing.load(Ordering::Relaxed)) {
            Some(open) if open == Standing::Open as u8 => Standing::Open,
            Some(closed) if closed == Standing::Closed as u8 => Standing::Closed,
            _ => Standing::Unknown,
        }
    }
}
