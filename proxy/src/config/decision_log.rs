//! `decisionLog`: where decisions are written, how many of them, and what of a request is shown.

use std::path::PathBuf;

use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use serde::Deserialize;

/// Fields that are secrets by what they are: no configuration shows them.
pub const WITHHELD: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "set-cookie"];
/// Fields that may be shown: rules do not ask for more.
const MAX_SHOWN: usize = 64;

/// How decisions are logged.
#[derive(Clone, Debug)]
pub struct DecisionLogConfig {
    /// The file; `None`: standard output.
    pub path: Option<PathBuf>,
    /// The part of allowances that is written, 0 to 1.
    pub allow: f64,
    /// The part of denials.
    pub deny: f64,
    /// Most bytes a second.
    pub max_bytes_per_second: u64,
    /// Size at which the file is put aside.
    pub rotate_bytes: u64,
    /// How many of those put aside are kept.
    pub rotate_keep: u32,
    /// Header fields whose values are written as they are.
    pub show_headers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Raw {
    path: Option<PathBuf>,
    #[serde(default)]
    stdout: bool,
    #[serde(default)]
    sample: Sample,
    max_bytes_per_second: Option<Spanned<u64>>,
    #[serde(default)]
    rotate: Rotate,
    #[serde(default)]
    show_headers: Vec<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sample {
    allow: Option<Spanned<f64>>,
    deny: Option<Spanned<f64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Rotate {
    bytes: Option<Spanned<u64>>,
    keep: Option<Spanned<u32>>,
}

/// Checks the section, each mistake with its place.
pub(super) fn check(file: &SourceFile, raw: &Spanned<Raw>, wrong: &mut Diagnostics) -> DecisionLogConfig {
    let Raw { path, stdout, sample, max_bytes_per_second, rotate, show_headers } = &raw.value;
    if path.is_some() == *stdout {
        wrong.push(
            yaml::at(file, raw, "`decisionLog` needs `path` or `stdout: true`, and not both")
                .with_help("write `path: /var/log/postern/decisions.jsonl`"),
        );
    }
    let mut rate = |written: &Option<Spanned<f64>>, otherwise: f64| {
        let Some(written) = written else { return otherwise };
        if !(0.0..=1.0).contains(&written.value) {
            wrong.push(
                yaml::at(file, written, "a part is between 0 and 1")
                    .with_help("0.01 writes one of a hundred"),
            );
        }
        written.value
    };
    // Allowances are many and alike; each denial is somebody's trouble.
    let (allow, deny) = (rate(&sample.allow, 0.01), rate(&sample.deny, 1.0));
    let mut within = |written: &Option<Spanned<u64>>, otherwise: u64, least: u64, most: u64| {
        let Some(written) = written else { return otherwise };
        if !(least..=most).contains(&written.value) {
            wrong.push(yaml::at(file, written, format!("this is between {least} and {most} bytes")));
        }
        written.value
    };
    let max_bytes_per_second = within(max_bytes_per_second, 1 << 20, 1 << 10, 1 << 30);
    let rotate_bytes = within(&rotate.bytes, 64 << 20, 64 << 10, 16 << 30);
    let rotate_keep = rotate.keep.as_ref().map_or(4, |keep| {
        if keep.value > 100 {
            wrong.push(yaml::at(file, keep, "at most 100 files are kept"));
        }
        keep.value
    });
    if let Some(first) = show_headers.get(MAX_SHOWN) {
        wrong.push(yaml::at(file, first, format!("at most {MAX_SHOWN} header fields can be shown")));
    }
    for name in show_headers {
        if WITHHELD.contains(&name.value.as_str()) {
            let what = format!("{} is a secret: it is never written", name.value);
            wrong.push(yaml::at(file, name, what).with_help("leave it out"));
        } else if name.value != name.value.to_ascii_lowercase() {
            wrong.push(yaml::at(file, name, "names of header fields are written in lower case here"));
        }
    }
    DecisionLogConfig {
        path: path.clone(),
        allow,
        deny,
        max_bytes_per_second,
        rotate_bytes,
        rotate_keep,
        show_headers: show_headers.iter().map(|name| name.value.clone()).collect(),
    }
}
