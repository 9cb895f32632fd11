//! The binaries under test: those that lie beside the test's own executable.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

static PROFILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let own = std::env::current_exe().expect("the system knows where a running program lies");
    // target/<profile>/deps/<test>, or target/<profile>/<binary>.
    let mut directory = own.parent().map(Path::to_owned).unwrap_or_default();
    if directory.ends_with("deps") {
        directory.pop();
    }
    directory
});

/// Cargo's target directory.
pub fn target_directory() -> &'static Path {
    PROFILE.parent().unwrap_or(&PROFILE)
}

/// The command `postern`.
pub fn postern() -> PathBuf {
    binary("postern")
}

/// The sidecar `postern-proxy`.
pub fn postern_proxy() -> PathBuf {
    binary("postern-proxy")
}

/// What writes the rules of redirection, `postern-init`.
pub fn postern_init() -> PathBuf {
    binary("postern-init")
}

fn binary(name: &str) -> PathBuf {
    let path = PROFILE.join(name);
    let release = if PROFILE.ends_with("release") { " --release" } else { "" };
    assert!(
        path.is_file(),
        "{} is not there. These tests run the real binaries: build them with `cargo build --workspace --bins{release}`",
        path.display()
    );
    path
}
