//! wrk, and what it prints.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use postern_tests::foreign;

use crate::Failure;
use crate::process;

/// What one run of wrk saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) requests: f64,
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked<'a> {
    /// One path, again and again.
    Path(&'a str),
    /// What a script for wrk says.
    Script(&'a Path),
}

/// Keep-alive requests over `connections` connections, as fast as answers come.
pub(crate) fn run(
    wrk: &Path,
    front: SocketAddr,
    host: &str,
    asked: Asked<'_>,
    connections: usize,
    length: Duration,
) -> Result<Load, Failure> {
    let mut command = process::on(process::LOAD, wrk);
    command.args(["--latency", "-t1", "--timeout", "5s"]);
    command.arg(format!("-c{connections}")).arg(format!("-d{}s", length.as_secs().max(1)));
    command.arg("-H").arg(format!("Host: {host}"));
    let path = match asked {
        Asked::Path(path) => path,
        Asked::Script(script) => {
            command.arg("-s").arg(script);
            "/"
        }
    };
    command.arg(format!("http://{front}{path}"));
    let ran = foreign::run(&mut command, length + Duration::from_secs(30));
    if ran.code != 0 {
        return Err(format!("wrk ended with {}: {}", ran.code, ran.stderr.trim()));
    }
    parse(&ran.text())
}

/// A single failed request spoils a run: failures are cheap, and would count as speed.
fn parse(text: &str) -> Result<Load, Failure> {
    for bad in ["Socket errors", "Non-2xx"] {
        if let Some(line) = text.lines().find(|line| line.contains(bad)) {
            return Err(format!("requests failed under load: {}", line.trim()));
        }
    }
    let second = |name: &str| {
        let line = text.lines().map(str::trim).find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1))
    };
    let unreadable = || format!("wrk printed what the bench cannot read:\n{text}");
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(number, _)| number.parse().ok());
    Ok(Load {
        requests: requests.ok_or_else(unreadable)?,
        per_second: second("Requests/sec:").and_then(|number| number.parse().ok()).ok_or_else(unreadable)?,
        p50: second("50%").and_then(duration).ok_or_else(unreadable)?,
        p99: second("99%").and_then(duration).ok_or_else(unreadable)?,
    })
}

fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "Running 5s test @ http://127.0.0.1:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.75ms  250.99us  12.45ms   96.07%
    Req/Sec    18.33k     1.11k   19.74k    88.00%
  Latency Distribution
     50%  901.00us
     75%    1.79ms
     90%    1.88ms
     99%    2.31ms
  91174 requests in 5.00s, 22.35MB read
Requests/sec:  18229.63
Transfer/sec:      4.47MB
";

    #[test]
    fn what_wrk_prints() {
        let load = parse(OUTPUT).unwrap();
        assert_eq!((load.requests, load.per_second), (91_174.0, 18_229.63));
        assert_eq!((load.p50, load.p99), (Duration::from_micros(901), Duration::from_micros(2_310)));
    }

    #[test]
    fn a_failed_request_spoils_a_run() {
        let failed = format!("{OUTPUT}  Non-2xx or 3xx responses: 3\n");
        assert!(parse(&failed).unwrap_err().contains("responses: 3"));
        let broken = format!("{OUTPUT}  Socket errors: connect 0, read 7, write 0, timeout 0\n");
        assert!(parse(&broken).unwrap_err().contains("read 7"));
        assert!(parse("nothing").is_err());
    }
}
