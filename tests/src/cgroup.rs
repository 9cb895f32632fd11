//! A bound on memory, of the test's own making.

use std::fs;
use std::path::{Path, PathBuf};

/// A cgroup with a limit of memory, of either version; gone with this.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    used: &'static str,
}

impl Cgroup {
    /// Makes one; an error where this machine lets nobody.
    pub fn with_memory(name: &str, bytes: u64) -> Result<Self, String> {
        let root = Path::new("/sys/fs/cgroup");
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let first = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
            controllers.split(',').any(|one| one == "memory").then_some(path)
        });
        let (parent, limit, used) = match first {
            Some(path) if root.join("memory").join(path).is_dir() => {
                (root.join("memory").join(path), "memory.limit_in_bytes", "memory.max_usage_in_bytes")
            }
            Some(_) => (root.join("memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
            // Version 2: the root may have processes beside cgroups, no other cgroup may.
            None => (root.to_owned(), "memory.max", "memory.peak"),
        };
        let path = parent.join(format!("postern-test-{}-{name}", std::process::id()));
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        fs::create_dir(&path).map_err(failed)?;
        let this = Self { path: path.clone(), used };
        fs::write(path.join(limit), bytes.to_string()).map_err(failed)?;
        // Swapped out, memory would not count.
        for (file, text) in
            [("memory.swap.max", "0".to_owned()), ("memory.memsw.limit_in_bytes", bytes.to_string())]
        {
            if path.join(file).exists() {
                fs::write(path.join(file), text).map_err(failed)?;
            }
        }
        Ok(this)
    }

    /// The words that start a program in it ([`SidecarPlan::under`](crate::SidecarPlan::under)).
    pub fn words(&self) -> [String; 5] {
        let enter = "echo $$ > \"$0\" && exec \"$@\"".to_owned();
        let procs = self.path.join("cgroup.procs").display().to_string();
        ["/bin/sh".to_owned(), "-c".to_owned(), enter, procs, "env".to_owned()]
    }

    /// The most that was used at a time, in MiB; `None` where the kernel does not keep it.
    pub fn peak(&self) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(self.used)).ok()?;
        Some(text.trim().parse::<u64>().ok()? >> 20)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is empty once its processes are gone, which may take the kernel a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            crate::wait::pause(std::time::Duration::from_millis(10));
        }
        eprintln!("{}: it cannot be removed", self.path.display());
    }
}
