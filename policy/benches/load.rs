//! What it costs to load a set of documents, whole and again with one file changed, and what it takes in memory.
//!
//! `cargo bench -p postern-policy --bench load`

#![expect(clippy::unwrap_used, reason = "a measurement")]

use std::hint::black_box;
use std::time::Instant;

use postern_policy::{Loader, SourceFile, load};

mod rules;

use rules::{documents, scope};

const ROUNDS: usize = 9;

/// Milliseconds: the median and the longest.
fn times(mut work: impl FnMut(usize)) -> (f64, f64) {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            let start = Instant::now();
            work(round);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[ROUNDS / 2], times[ROUNDS - 1])
}

fn main() {
    println!(
        "| rules | files | MB | cold ms | longest | one file changed ms | longest | nothing changed ms |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for count in [100, 1_000, 10_000, 100_000] {
        let plain = documents(count);
        let bytes: usize = plain.iter().map(|file| file.text.len()).sum();
        let (cold, coldest) = times(|_| {
            black_box(load(&plain, &scope(), 1).unwrap());
        });
        let mut files = plain;
        let mut loader = Loader::new();
        let mut in_force = loader.load(&files, &scope(), 1).unwrap();
        // What is replaced is freed by others, later.
        let mut old = Vec::new();
        let (warm, warmest) = times(|round| {
            let at = (round * 977) % files.len();
            files[at].text.extend_from_slice(b"# changed\n");
            old.push(std::mem::replace(&mut in_force, loader.load(&files, &scope(), 2).unwrap()));
        });
        let (same, _) = times(|_| old.push(loader.load(&files, &scope(), 3).unwrap()));
        println!(
            "| {count} | {} | {:.1} | {cold:.1} | {coldest:.1} | {warm:.1} | {warmest:.1} | {same:.1} |",
            files.len(),
            bytes as f64 / 1e6
        );
    }
    memory();
}

/// Bytes that stay, by a counting allocator. It counts one thread, so this is a set of one file.
fn memory() {
    println!("\n| rules | bytes of text a rule | in force, a rule | kept for the next load, a rule |");
    println!("|---|---|---|---|");
    for count in [100, 1_000, 10_000] {
        let text: Vec<String> =
            documents(count).into_iter().map(|file| String::from_utf8(file.text).unwrap()).collect();
        let file = [SourceFile { name: "all.yaml".into(), text: text.join("---\n").into_bytes() }];
        let mut loaded = None;
        let in_force = allocation_counter::measure(|| {
            loaded = Some(load(&file, &scope(), 1).unwrap());
        });
        let mut loader = Loader::new();
        let mut kept = None;
        let both = allocation_counter::measure(|| {
            kept = Some(loader.load(&file, &scope(), 1).unwrap());
        });
        drop((loaded, kept));
        let each = |bytes: i64| bytes / i64::try_from(count).unwrap_or(1);
        println!(
            "| {count} | {} | {} | {} |",
            file[0].text.len() / count,
            each(in_force.bytes_current),
            each(both.bytes_current - in_force.bytes_current)
        );
    }
}
