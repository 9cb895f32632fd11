//! The directory of documents that all sidecars of a mesh read, and the ways in which people change it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest::{Context, SHA256};
use postern_policy::SourceFile;

/// The directory.
#[derive(Debug)]
pub struct Documents {
    directory: PathBuf,
}

impl Documents {
    /// Over an existing directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Puts a file there, or replaces it, in one step.
    pub fn write(&self, name: &str, text: &str) {
        self.write_bytes(name, text.as_bytes());
    }

    /// The same for what may be no text.
    pub fn write_bytes(&self, name: &str, text: &[u8]) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let fresh = self.directory.join(format!(".{name}.{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::write(&fresh, text).unwrap_or_else(|error| panic!("{}: {error}", fresh.display()));
        let path = self.directory.join(name);
        fs::rename(&fresh, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Takes a file away.
    pub fn remove(&self, name: &str) {
        let path = self.directory.join(name);
        fs::remove_file(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// What is there now, as the sidecar reads it.
    pub fn files(&self) -> Vec<SourceFile> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.directory)
            .unwrap_or_else(|error| panic!("{}: {error}", self.directory.display()))
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml"))
            })
            .collect();
        paths.sort();
        let file = |path: PathBuf| {
            let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            SourceFile { name: path.display().to_string(), text }
        };
        paths.into_iter().map(file).collect()
    }
}

/// A set's digest as `/v1/policy` shows it: SHA-256 over each file's name and content, each after its length in eight
/// bytes, big-endian. Computed here anew: a checker that asked the sidecar would check nothing.
pub fn digest(files: &[SourceFile]) -> String {
    let mut context = Context::new(&SHA256);
    for file in files {
        let name = file.name.rsplit('/').next().unwrap_or(&file.name);
        for part in [name.as_bytes(), &file.text] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
