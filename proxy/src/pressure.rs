//! Memory and descriptors: saying no early, instead of being killed with everybody's calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::heap::{self, Heap};
use crate::limits::Limits;
use crate::listener::is_exhaustion;
use crate::sidecar::Sidecar;

/// How often it is measured: memory can fill at gigabytes a second, reading two small files costs microseconds.
const EVERY: Duration = Duration::from_millis(250);

const CGROUPS: &str = "/sys/fs/cgroup";
const OWN_CGROUP: &str = "/proc/self/cgroup";

/// How tight things are.
#[derive(Debug, Default)]
pub struct Pressure {
    memory: AtomicU8,
    descriptors: AtomicU8,
}

impl Pressure {
    /// Whether a new stream may be opened.
    pub fn allows_streams(&self, limits: &Limits) -> bool {
        usize::from(self.memory.load(Ordering::Relaxed)) < limits.memory_streams_percent
    }

    /// Whether a new connection may be accepted.
    pub fn allows_connections(&self, limits: &Limits) -> bool {
        self.refuses_connections(limits).is_none()
    }

    /// The limit that forbids new connections, if one does.
    pub fn refuses_connections(&self, limits: &Limits) -> Option<&'static str> {
        if usize::from(self.memory.load(Ordering::Relaxed)) >= limits.memory_reject_percent {
            Some("memory")
        } else if usize::from(self.descriptors.load(Ordering::Relaxed)) >= limits.descriptors_percent {
            Some("descriptors")
        } else {
            None
        }
    }

    /// As if it had been measured, in percent.
    #[cfg(test)]
    pub(crate) fn set(&self, memory: u8, descriptors: u8) {
        self.memory.store(memory, Ordering::Relaxed);
        self.descriptors.store(descriptors, Ordering::Relaxed);
    }
}

/// Measures until the runtime ends.
pub async fn watch(sidecar: Arc<Sidecar>, descriptors: usize) {
    let mut told = false;
    let (mut heap, mut looked) = (Heap::new(), Instant::now());
    loop {
        measure_memory(&sidecar.pressure, &mut told);
        let is_tight = !sidecar.pressure.allows_streams(&sidecar.snapshots.limits());
        sidecar.metrics.memory_tight.set(is_tight.into());
        if looked.elapsed() >= heap::EVERY {
            looked = Instant::now();
            if heap.give_back() {
                tracing::debug!("memory that lay free was given back to the system");
            }
        }
        let open = open(std::fs::read_dir("/proc/self/fd").map(Iterator::count), descriptors);
        let share = percent(open as u64, descriptors as u64);
        sidecar.pressure.descriptors.store(share, Ordering::Relaxed);
        // Many descriptors take long to count, and are the case in which they change slowly.
        let pause = if open > 1_000 { EVERY * 8 } else { EVERY };
        tokio::time::sleep(pause).await;
    }
}

/// `told` is whether the log says already that there is no limit.
fn measure_memory(pressure: &Pressure, told: &mut bool) {
    let own = match std::fs::read_to_string(OWN_CGROUP) {
        // Without a descriptor nothing can be read: what was measured last stands.
        Err(error) if is_exhaustion(&error) => return,
        own => own.unwrap_or_default(),
    };
    // Looked up each time: a limit may be set or lifted while this runs.
    let limited = limited(Path::new(CGROUPS), &own);
    if limited.is_none() && !std::mem::replace(told, true) {
        tracing::info!("no memory limit to watch: no cgroup of this process has one");
    }
    pressure.memory.store(limited.map_or(0, |limited| limited.percent()), Ordering::Relaxed);
}

/// Not even one descriptor left to count them with means that all are taken; without `/proc` nothing is known.
fn open(counted: std::io::Result<usize>, descriptors: usize) -> usize {
    counted.unwrap_or_else(|error| if is_exhaustion(&error) { descriptors } else { 0 })
}

/// A cgroup with a limit of memory.
#[derive(Debug, Eq, PartialEq)]
struct Limited {
    cgroup: PathBuf,
    max: u64,
    names: &'static Names,
}

/// What the two versions of cgroups call the same files. Of a tree, version 1 has the sums in lines of their own.
#[derive(Debug, Eq, PartialEq)]
struct Names {
    limit: &'static str,
    used: &'static str,
    inactive: &'static str,
}

const VERSION_1: Names =
    Names { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", inactive: "total_inactive_file " };
const VERSION_2: Names = Names { limit: "memory.max", used: "memory.current", inactive: "inactive_file " };

/// What version 1 says where there is no limit is the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 62;

/// The nearest cgroup with a limit, from the process's own upwards; `own` is the text of `/proc/self/cgroup`. In a
/// container with a cgroup namespace that is the root itself, in a systemd unit a directory far below it.
fn limited(root: &Path, own: &str) -> Option<Limited> {
    // Version 1 names the controllers that it has; where memory is among them, version 2 has no limits of it.
    let first = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    });
    let second = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let nearest = |root: &Path, path: &str, names: &'static Names| {
        // What lies outside the namespace is shown with dots; only the root of what is mounted can be looked at then.
        let path = Path::new(if path.split('/').any(|part| part == "..") { "" } else { path });
        path.ancestors().find_map(|path| {
            let cgroup = root.join(path);
            let max = number(&std::fs::read_to_string(cgroup.join(names.limit)).ok()?)?;
            (max < NO_LIMIT).then_some(Limited { cgroup, max, names })
        })
    };
    let of_first = first.and_then(|path| nearest(&root.join("memory"), path, &VERSION_1));
    of_first.or_else(|| nearest(root, second?, &VERSION_2))
}

impl Limited {
    /// The share of the limit in use; 0 if it cannot be read.
    fn percent(&self) -> u8 {
        let read = |name: &str| std::fs::read_to_string(self.cgroup.join(name)).unwrap_or_default();
        let current = number(&read(self.names.used)).unwrap_or(0);
        // File pages that nobody used lately are given back before anything is killed.
        let stat = read("memory.stat");
        let inactive =
            stat.lines().find_map(|line| number(line.strip_prefix(self.names.inactive)?)).unwrap_or(0);
        percent(current.saturating_sub(inactive), self.max)
    }
}

/// `max` is no number: no limit.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn percent(part: u64, whole: u64) -> u8 {
    let share = u128::from(part) * 100 / u128::from(whole.max(1));
    u8::try_from(share).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!(percent(85, 100), 85);
        assert_eq!(percent(999_999_999_999, 1), 255);
        assert_eq!(percent(1, 0), 100);
    }

    #[test]
    fn nothing_left_to_count_with_is_full() {
        let failed = |number| Err(std::io::Error::from_raw_os_error(number));
        assert_eq!(open(Ok(7), 64), 7);
        assert_eq!(open(failed(24), 64), 64);
        assert_eq!(open(failed(2), 64), 0);
    }

    fn cgroup(root: &Path, path: &str, files: &[(&str, &str)]) {
        let directory = root.join(path);
        std::fs::create_dir_all(&directory).unwrap();
        for (name, text) in files {
            std::fs::write(directory.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_nearest_limit_above_is_watched() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        // The real root has no such files.
        cgroup(root, "", &[]);
        cgroup(root, "system.slice", &[("memory.max", "1000\n"), ("memory.current", "900\n")]);
        cgroup(
            root,
            "system.slice/postern.service",
            &[
                ("memory.max", "200\n"),
                ("memory.current", "190\n"),
                ("memory.stat", "anon 90\ninactive_file 100\n"),
            ],
        );
        cgroup(root, "system.slice/postern.service/inner", &[("memory.max", "max\n")]);
        cgroup(root, "user.slice", &[("memory.max", "max\n"), ("memory.current", "5\n")]);
        for (own, watched) in [
            ("0::/system.slice/postern.service/inner\n", Some(("system.slice/postern.service", 45))),
            ("0::/system.slice/postern.service\n", Some(("system.slice/postern.service", 45))),
            ("1:memory:/x\n0::/system.slice/other.service\n", Some(("system.slice", 90))),
            ("0::/user.slice\n", None),
            ("0::/../system.slice\n", None),
            ("0::/\n", None),
            ("1:memory:/system.slice\n", None),
            ("", None),
        ] {
            let found = limited(root, own);
            let found = found.as_ref().map(|one| (one.cgroup.strip_prefix(root).unwrap(), one.percent()));
            assert_eq!(found, watched.map(|(path, share)| (Path::new(path), share)), "{own}");
        }
    }

    #[test]
    fn version_1_has_other_names_and_no_word_for_no_limit() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let none = ("memory.limit_in_bytes", "9223372036854771712\n");
        cgroup(root, "memory", &[none, ("memory.usage_in_bytes", "5000\n")]);
        cgroup(
            root,
            "memory/docker/one",
            &[
                ("memory.limit_in_bytes", "200\n"),
                ("memory.usage_in_bytes", "190\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
            ],
        );
        cgroup(root, "memory/free", &[none]);
        for (own, watched) in [
            ("9:cpu:/docker/one\n8:memory:/docker/one\n0::/\n", Some(45)),
            ("8:hugetlb,memory:/docker/one\n", Some(45)),
            ("8:memory:/free\n", None),
            ("8:memory:/\n", None),
        ] {
            assert_eq!(limited(root, own).map(|found| found.percent()), watched, "{own}");
        }
        // In a container its own cgroup is what is mounted, whatever the path says.
        cgroup(root, "memory", &[("memory.limit_in_bytes", "10000\n")]);
        assert_eq!(limited(root, "8:memory:/docker/elsewhere\n").map(|found| found.percent()), Some(50));
    }

    #[test]
    fn a_namespace_of_its_own_has_the_limit_at_its_root() {
        let root = tempfile::tempdir().unwrap();
        cgroup(root.path(), "", &[("memory.max", "100\n"), ("memory.current", "85\n")]);
        let found = limited(root.path(), "0::/\n").unwrap();
        assert_eq!((found.percent(), found.max), (85, 100));
    }

    #[test]
    fn thresholds() {
        let mut limits = Limits::default();
        for (name, value) in
            [("memoryStreamsPercent", "60"), ("memoryRejectPercent", "70"), ("descriptorsPercent", "50")]
        {
            limits.set(name, value).unwrap();
        }
        for (limits, [streams, reject, descriptors]) in
            [(Limits::default(), [85, 95, 90]), (limits, [60, 70, 50])]
        {
            let pressure = Pressure::default();
            let of = |memory, descriptors| {
                pressure.set(memory, descriptors);
                (pressure.allows_streams(&limits), pressure.refuses_connections(&limits))
            };
            assert_eq!(of(streams - 1, descriptors - 1), (true, None));
            assert_eq!(of(streams, 0), (false, None));
            assert_eq!(of(reject, 0), (false, Some("memory")));
            assert_eq!(of(0, descriptors), (true, Some("descriptors")));
        }
    }
}
