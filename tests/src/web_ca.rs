//! An authority as the web has them: names of hosts, no SPIFFE ids.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::forge::{self, Papers};

/// An authority with a root of its own.
pub struct WebCa {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl WebCa {
    /// Its files are in `directory`.
    pub fn new(directory: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("keys can be made");
        let root = params.self_signed(&key).expect("the parameters are whole").pem();
        let directory = directory.join("web-ca");
        fs::create_dir_all(&directory).expect("the directory is ours");
        fs::write(directory.join("root.pem"), root).expect("the directory is ours");
        Self { directory, issuer: Issuer::new(params, key) }
    }

    /// The file of its root.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root.pem")
    }

    /// A server's certificate for these hosts that is good from `from` to `to` seconds from now.
    pub fn server(&self, file: &str, hosts: &[&str], (from, to): (i64, i64)) -> Papers {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("these are names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        forge::life(&mut params, from, to);
        let key = KeyPair::generate().expect("keys can be made");
        let chain = params.signed_by(&key, &self.issuer).expect("the parameters are whole").pem();
        let papers = Papers {
            chain: self.directory.join(format!("{file}.pem")),
            key: self.directory.join(format!("{file}.key")),
        };
        fs::write(&papers.chain, chain).expect("the directory is ours");
        fs::write(&papers.key, key.serialize_pem()).expect("the directory is ours");
        papers
    }
}
