//! The mesh bench's answer: one table, ratios with their spread, and whether the machine was quiet enough to believe it.

use std::fmt::Write as _;

use postern_svid::{Clock as _, SystemClock};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::machine::{self, Memory};
use crate::mesh::{Cell, Row};
use crate::options::Options;
use crate::stats::Spread;

/// Between the best and the worst round of load generator and backend alone. Beyond, the machine itself was changing.
const DIRECT_SPREAD: f64 = 1.5;
/// Processors that others kept busy in the middle round.
const STRANGERS: f64 = 0.2;

/// What was measured, and what it means.
#[derive(Debug)]
pub(crate) struct Report {
    rows: Vec<Row>,
    header: String,
    load_before: f64,
}

/// What a figure is compared in: the name, the figure of a cell.
type Figure = (&'static str, fn(&Cell) -> f64);

const FIGURES: [Figure; 3] = [
    ("CPU per request", |cell| cell.pair_cost()),
    ("requests/s", |cell| cell.load.per_second),
    ("p99", |cell| cell.load.p99.as_secs_f64()),
];

impl Report {
    pub(crate) fn new(rows: Vec<Row>, load_before: f64, options: &Options) -> Self {
        let header = format!(
            "{}, {}, {} rounds of {} s, {} connections, one worker each",
            now(),
            machine::describe(),
            options.rounds,
            options.length.as_secs(),
            options.connections
        );
        Self { rows, header, load_before }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\n\n", self.header);
        for row in &self.rows {
            let _ = writeln!(text, "{:<8} {}", row.name, row.what);
        }
        text.push_str(
            "\n| way | CPU us per request, pair | outbound + inbound | user + system | requests/s | p50 ms | p99 ms \
             | MB under load | MB idle |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            text.push_str(&line(row));
        }
        text.push('\n');
        for (name, figure) in FIGURES {
            for other in ["envoy", "haproxy"] {
                if let Some(ratio) = self.ratio("postern", other, figure) {
                    let _ = writeln!(text, "postern / {other}, {name}: {}", ratio.show(2));
                }
            }
        }
        text.push('\n');
        text.push_str(&match self.noise() {
            Some(noise) => format!("TOO NOISY TO JUDGE: {noise}. Do not quote these figures.\n"),
            None => format!(
                "Quiet enough: direct rounds within {:.2}x, strangers used {:.2} processors in the middle round.\n",
                self.direct().width(),
                self.strangers().median
            ),
        });
        text
    }

    /// For programs: every round by itself.
    pub(crate) fn to_json(&self) -> Value {
        let ratios: Vec<Value> = FIGURES
            .into_iter()
            .flat_map(|(name, figure)| ["envoy", "haproxy"].map(|other| (name, figure, other)))
            .filter_map(|(name, figure, other)| {
                let ratio = self.ratio("postern", other, figure)?;
                Some(json!({"figure": name, "of": "postern", "to": other, "ratio": ratio.to_json()}))
            })
            .collect();
        json!({
            "bench": "mesh",
            "run": self.header,
            "load_average_before": self.load_before,
            "too_noisy": self.noise(),
            "contenders": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "ratios": ratios,
        })
    }

    /// Round by round, for a round's noise hits both.
    fn ratio(&self, of: &str, to: &str, figure: fn(&Cell) -> f64) -> Option<Spread> {
        let row = |name: &str| self.rows.iter().find(|row| row.name == name);
        let pairs = row(of)?.cells.iter().zip(&row(to)?.cells);
        Some(Spread::of(pairs.map(|(of, to)| figure(of) / figure(to))))
    }

    /// Why nothing here should be believed, if so.
    fn noise(&self) -> Option<String> {
        let (direct, strangers) = (self.direct(), self.strangers());
        let mut reasons = Vec::new();
        if direct.width() > DIRECT_SPREAD {
            reasons.push(format!("direct rounds differ by {:.2}x", direct.width()));
        }
        if strangers.median > STRANGERS {
            reasons.push(format!("other programs kept {:.2} processors busy", strangers.median));
        }
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }

    fn direct(&self) -> Spread {
        let direct = self.rows.iter().filter(|row| row.name == "direct").flat_map(|row| &row.cells);
        Spread::of(direct.map(|cell| cell.load.per_second))
    }

    fn strangers(&self) -> Spread {
        Spread::of(self.rows.iter().flat_map(|row| &row.cells).map(|cell| cell.strangers))
    }
}

fn line(row: &Row) -> String {
    let spread = |figure: &dyn Fn(&Cell) -> f64| Spread::of(row.cells.iter().map(figure));
    let ms = |figure: &dyn Fn(&Cell) -> f64| spread(&|cell: &Cell| figure(cell) * 1e3).show(2);
    let per_second = spread(&|cell| cell.load.per_second).show(0);
    let latency =
        format!("{} | {}", ms(&|cell| cell.load.p50.as_secs_f64()), ms(&|cell| cell.load.p99.as_secs_f64()));
    let has_pair = row.idle[0].resident > 0;
    if !has_pair {
        return format!("| {} | - | - | - | {per_second} | {latency} | - | - |\n", row.name);
    }
    let per_request =
        |part: &dyn Fn(&Cell) -> f64| spread(&|cell: &Cell| part(cell) * 1e6 / cell.load.requests).median;
    format!(
        "| {} | {} | {:.1} + {:.1} | {:.1} + {:.1} | {per_second} | {latency} | {} | {} |\n",
        row.name,
        spread(&Cell::pair_cost).show(1),
        spread(&|cell| cell.cost(0)).median,
        spread(&|cell| cell.cost(1)).median,
        per_request(&|cell| cell.cpu[0].user + cell.cpu[1].user),
        per_request(&|cell| cell.cpu[0].system + cell.cpu[1].system),
        row.cells.last().map_or_else(String::new, |cell| both(cell.memory)),
        both(row.idle),
    )
}

fn both(memory: [Memory; 2]) -> String {
    format!("{:.1} + {:.1}", megabytes(memory[0].resident), megabytes(memory[1].resident))
}

/// As people count them: a million bytes.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// When this run was, to the minute.
pub(crate) fn now() -> String {
    let wall = OffsetDateTime::from(SystemClock.wall());
    format!("{} {:02}:{:02} UTC", wall.date(), wall.hour(), wall.minute())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::Load;
    use crate::machine::CpuTime;

    fn cell(per_second: f64, cost_us: f64, strangers: f64) -> Cell {
        let requests = per_second * 5.0;
        let half = CpuTime { user: cost_us * requests * 0.25e-6, system: cost_us * requests * 0.25e-6 };
        Cell {
            load: Load { requests, per_second, p50: Duration::from_millis(1), p99: Duration::from_millis(2) },
            cpu: [half, half],
            memory: <[Memory; 2]>::default(),
            strangers,
        }
    }

    fn row(name: &'static str, cells: Vec<Cell>) -> Row {
        let some = Memory { resident: u64::from(name != "direct"), ..Memory::default() };
        Row { name, what: String::new(), idle: [some; 2], cells }
    }

    fn report(direct: [f64; 2], strangers: f64) -> Report {
        Report {
            rows: vec![
                row("direct", direct.map(|per_second| cell(per_second, 0.0, strangers)).to_vec()),
                row("postern", vec![cell(10_000.0, 60.0, strangers), cell(8_000.0, 90.0, strangers)]),
                row("envoy", vec![cell(4_000.0, 240.0, strangers), cell(4_000.0, 270.0, strangers)]),
            ],
            header: String::new(),
            load_before: 0.0,
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let ratio = report([1.0, 1.0], 0.0).ratio("postern", "envoy", Cell::pair_cost).unwrap();
        assert!((ratio.min - 0.25).abs() < 1e-9 && (ratio.max - 1.0 / 3.0).abs() < 1e-9, "{ratio:?}");
        assert!(report([1.0, 1.0], 0.0).ratio("postern", "haproxy", Cell::pair_cost).is_none());
    }

    #[test]
    fn noise_is_said() {
        assert_eq!(report([40_000.0, 50_000.0], 0.05).noise(), None);
        assert!(
            report([40_000.0, 70_000.0], 0.0).text().contains("TOO NOISY TO JUDGE: direct rounds differ")
        );
        assert!(report([40_000.0, 40_000.0], 0.5).text().contains("kept 0.50 processors busy"));
    }

    #[test]
    fn a_line_has_all_columns() {
        for row in &report([1.0, 1.0], 0.0).rows {
            assert_eq!(line(row).matches('|').count(), 10, "{}", line(row));
        }
    }
}
