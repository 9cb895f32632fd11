//! What `/proc` says: the machine, who used how much of its processors, and who holds how much of its memory.

use std::fs;

use serde_json::{Value, json};

use crate::Failure;

/// `/proc` counts in hundredths of a second on every architecture we build for (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuTime {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl CpuTime {
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }
}

impl std::ops::Sub for CpuTime {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self { user: self.user - before.user, system: self.system - before.system }
    }
}

/// What all threads of a process have used so far.
pub(crate) fn cpu_time(process: u32) -> Result<CpuTime, Failure> {
    let [user, system] = stat_fields(&process.to_string(), [14, 15])?;
    Ok(CpuTime { user, system })
}

/// What this process's children used that have ended.
pub(crate) fn cpu_time_of_ended_children() -> Result<f64, Failure> {
    let [user, system] = stat_fields("self", [16, 17])?;
    Ok(user + system)
}

/// What the whole machine has worked so far, in seconds of one processor. Stolen time counts: it was not ours.
pub(crate) fn busy() -> Result<f64, Failure> {
    let text = read("/proc/stat")?;
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    match ticks[..] {
        [user, nice, system, _, _, irq, softirq, steal, ..] => {
            Ok((user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND)
        }
        _ => Err(format!("/proc/stat begins with `{first}`")),
    }
}

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) resident: u64,
    /// Heap and stacks: what this process alone pays for.
    pub(crate) anonymous: u64,
    /// The binary and its libraries, shared between all sidecars of a machine.
    pub(crate) file: u64,
}

impl Memory {
    pub(crate) fn of(process: u32) -> Result<Self, Failure> {
        let path = format!("/proc/{process}/status");
        let text = read(&path)?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
            number.map(|kib| kib * 1024).ok_or_else(|| format!("{path} has no {name}"))
        };
        Ok(Self { resident: field("VmRSS:")?, anonymous: field("RssAnon:")?, file: field("RssFile:")? })
    }

    pub(crate) fn to_json(self) -> Value {
        json!({"resident": self.resident, "anonymous": self.anonymous, "file": self.file})
    }
}

/// The load average of the last minute.
pub(crate) fn load_average() -> f64 {
    let text = read("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(f64::NAN)
}

/// Kind of machine, for the record.
pub(crate) fn describe() -> String {
    let info = read("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let kernel = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} x {}, Linux {}", processors(), model.trim_start_matches(['\t', ' ', ':']), kernel.trim())
}

/// Processors this process may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn stat_fields<const N: usize>(process: &str, numbers: [usize; N]) -> Result<[f64; N], Failure> {
    let path = format!("/proc/{process}/stat");
    let text = read(&path)?;
    // The second field, the name in parentheses, may hold anything.
    let rest: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let mut found = [0.0; N];
    for (found, number) in found.iter_mut().zip(numbers) {
        let ticks: Option<f64> = rest.get(number - 3).and_then(|field| field.parse().ok());
        *found = ticks.ok_or_else(|| format!("{path} has no field {number}"))? / TICKS_PER_SECOND;
    }
    Ok(found)
}

fn read(path: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_own_process_has_used_something() {
        let before = cpu_time(std::process::id()).unwrap();
        let busy_before = busy().unwrap();
        let start = Instant::now();
        // The machine's count is taken by other means than a process's, and may lag behind it.
        let shows = || {
            let own = (cpu_time(std::process::id()).unwrap() - before).total();
            own >= 0.05 && busy().unwrap() - busy_before >= 0.04
        };
        while !shows() {
            assert!(start.elapsed() < Duration::from_secs(20), "working does not show");
        }
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.anonymous > 0 && memory.file > 0);
        assert!(memory.resident >= memory.anonymous + memory.file);
    }
}
