//! The binaries that are measured, built as they are shipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use postern_tests::target_directory;

use crate::Failure;
use crate::options::Options;

/// `postern-proxy` in the profile `dist`, or the one named on the command line.
pub(crate) fn proxy(options: &Options) -> Result<PathBuf, Failure> {
    if let Some(path) = &options.proxy {
        let found = path.canonicalize();
        return found.map_err(|error| format!("--proxy {}: {error}", path.display()));
    }
    let target = options.target_directory.as_deref().unwrap_or_else(|| target_directory());
    if !options.is_built {
        cargo("dist", "postern-proxy", target)?;
    }
    let path = target.join("dist/postern-proxy");
    path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))
}

/// The command `postern`, beside the bench itself: the control plane is needed, not measured.
pub(crate) fn control_plane(options: &Options) -> Result<(), Failure> {
    if options.is_built {
        return Ok(());
    }
    let own = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
    let directory = own.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let profile = match directory {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    cargo(profile, "postern", target_directory())
}

fn cargo(profile: &str, package: &str, target: &Path) -> Result<(), Failure> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    eprintln!("building {package} (profile {profile})");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--profile", profile, "--package", package, "--bins", "--target-dir"])
        .arg(target)
        .current_dir(workspace)
        .status();
    match built {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{package} could not be built: cargo ended with {status}")),
        Err(error) => Err(format!("cargo cannot be run: {error}")),
    }
}
