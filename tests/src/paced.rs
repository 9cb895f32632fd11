//! A load at an even pace, each answer of which is read and looked at. Time runs from when a request was due, not from when it
//! could be sent: a pause shows in all that should have been asked meanwhile.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{wait, wire};

/// Connections, each of which asks every fourth request.
const LINES: u32 = 4;
/// Bytes of each answer.
const BODY: usize = 1_000;
/// An answer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A load that runs.
#[derive(Debug)]
pub struct Paced {
    stop: Arc<AtomicBool>,
    lines: Vec<JoinHandle<Vec<Asked>>>,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When it was due.
    pub due: Instant,
    /// From then to the end of its answer.
    pub took: Duration,
    /// What was wrong with the answer: its status, or what the connection came to.
    pub wrong: Option<String>,
}

/// All requests of a load, in their order.
#[derive(Clone, Debug)]
pub struct Told(Vec<Asked>);

impl Paced {
    /// Asks the service `host` through the outbound listener `to`, so many times a second; its workload is an
    /// [`Origin`](crate::Origin).
    pub fn start(to: SocketAddr, host: &str, per_second: u32) -> Self {
        let (stop, begun) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let lines = (0..LINES)
            .map(|number| {
                let (stop, host) = (Arc::clone(&stop), host.to_owned());
                let apart = Duration::from_secs(1) / per_second;
                std::thread::spawn(move || {
                    let mut line = Line { to, host, connection: None };
                    let mut all = Vec::new();
                    for at in (number..).step_by(LINES as usize) {
                        let due = begun + apart * at;
                        wait::pause(due.saturating_duration_since(Instant::now()));
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let wrong = line.ask().err();
                        all.push(Asked { due, took: due.elapsed(), wrong });
                    }
                    all
                })
            })
            .collect();
        Self { stop, lines }
    }

    /// The load of a while.
    pub fn during(to: SocketAddr, host: &str, per_second: u32, time: Duration) -> Told {
        let load = Self::start(to, host, per_second);
        wait::pause(time);
        load.end()
    }

    /// Ends it.
    pub fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let mut all: Vec<Asked> =
            self.lines.into_iter().flat_map(|line| line.join().expect("a line never panics")).collect();
        all.sort_by_key(|asked| asked.due);
        Told(all)
    }
}

impl Told {
    /// How many were asked.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What was wrong, each with when it was due.
    pub fn failed(&self) -> Vec<&Asked> {
        self.0.iter().filter(|asked| asked.wrong.is_some()).collect()
    }

    /// Only those that were due within this time.
    pub fn between(&self, from: Instant, to: Instant) -> Self {
        Self(self.0.iter().filter(|asked| (from..to).contains(&asked.due)).cloned().collect())
    }

    /// The time within which this share of all was answered, in percent.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut times: Vec<Duration> = self.0.iter().map(|asked| asked.took).collect();
        times.sort();
        times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
    }

    /// What 99 of 100 took at most.
    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        self.percentile(100)
    }

    /// From `moment` to the end of the last failure, as if each had been asked in vain until then.
    pub fn recovered(&self, moment: Instant) -> Duration {
        let ends = self.failed().into_iter().map(|asked| asked.due + asked.took);
        ends.max().map_or(Duration::ZERO, |end| end.saturating_duration_since(moment))
    }

    /// In one line.
    pub fn line(&self) -> String {
        let (failed, p99, longest) = (self.failed().len(), self.p99(), self.longest());
        format!("{} asked, {failed} failed, p99 {p99:.0?}, longest {longest:.0?}", self.count())
    }

    /// Panics unless all went well, and as many were asked as `least`.
    pub fn expect_all(&self, what: &str, least: usize) {
        let failed = self.failed();
        let first = &failed[..failed.len().min(5)];
        assert!(failed.is_empty(), "{what}: {} of {} failed: {first:#?}", failed.len(), self.count());
        assert!(self.count() >= least, "{what}: only {} of {least} were asked", self.count());
    }
}

struct Line {
    to: SocketAddr,
    host: String,
    connection: Option<(TcpStream, BufReader<TcpStream>)>,
}

impl Line {
    fn ask(&mut self) -> Result<(), String> {
        let asked = self.try_to_ask();
        if asked.is_err() {
            self.connection = None;
        }
        asked
    }

    fn try_to_ask(&mut self) -> Result<(), String> {
        let (writer, reader) = match &mut self.connection {
            Some(open) => open,
            none => none.insert(open(self.to).map_err(|error| format!("connecting: {error}"))?),
        };
        write!(writer, "GET /bytes/{BODY} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host)
            .map_err(|error| format!("writing: {error}"))?;
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            match reader.read_line(&mut line) {
                Ok(0) => return Err(format!("closed, {status}")),
                Ok(_) => {}
                Err(error) => return Err(format!("reading the head: {error}")),
            }
            let text = line.trim_end().to_ascii_lowercase();
            if status == 0 {
                status = wire::status(line.as_bytes());
            } else if let Some(value) = text.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            } else if text.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).map_err(|error| format!("reading the body: {error}"))?;
        if status != 200 {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim_end()));
        }
        let is_right = length == BODY && body.iter().all(|byte| *byte == b'x');
        if is_right { Ok(()) } else { Err(format!("another body, of {length} bytes")) }
    }
}

fn open(to: SocketAddr) -> std::io::Result<(TcpStream, BufReader<TcpStream>)> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok((stream.try_clone()?, BufReader::new(stream)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        let due = Instant::now();
        let asked = |milliseconds: u64, wrong: Option<&str>| Asked {
            due,
            took: Duration::from_millis(milliseconds),
            wrong: wrong.map(str::to_owned),
        };
        let mut all: Vec<Asked> = (1..=99).map(|took| asked(took, None)).collect();
        all.push(asked(1_000, Some("503")));
        let told = Told(all);
        assert_eq!(told.p99(), Duration::from_millis(99));
        assert_eq!(told.longest(), Duration::from_secs(1));
        assert_eq!((told.count(), told.failed().len()), (100, 1));
        assert_eq!(told.recovered(due), Duration::from_secs(1));
        assert_eq!(told.between(due + Duration::from_secs(1), due + Duration::from_secs(2)).count(), 0);
    }
}
