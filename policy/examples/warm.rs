use postern_policy::Loader;
#[path = "../benches/rules/mod.rs"]
mod rules;
fn main() {
    let files = rules::documents(10_000);
    let mut l = Loader::new();
    let mut old = vec![];
    for n in 0..4 {
        eprintln!("---");
        let t = std::time::Instant::now();
        old.push(l.load(&files, &rules::scope(), n).unwrap());
        eprintln!("total {:?}", t.elapsed());
    }
}
