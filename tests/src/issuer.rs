//! An issuer of tokens that was not written here: PyJWT signs, and a server gives out its keys.

use std::net::IpAddr;

use serde_json::Value;

use crate::mesh::Mesh;
use crate::process::Process;
use crate::{Answer, foreign, wait};

/// A running issuer (`tests/peers/issuer.py`). Its log is in the mesh's directory: it must be dropped before the mesh.
#[derive(Debug)]
pub struct Issuer {
    /// Its process, for those who end it.
    pub process: Process,
    address: IpAddr,
    port: u16,
}

impl Issuer {
    /// Starts it at `address`: keys over TLS at `port`, what it is told at the next one.
    pub fn start(mesh: &Mesh, address: IpAddr, port: u16) -> Self {
        let directory = mesh.directory();
        let (python, script) = foreign::python("issuer.py");
        let process = Process::start("issuer", &python, &directory.join("issuer.log"), |command| {
            command.arg(script).arg(address.to_string()).arg(port.to_string()).arg(directory);
        });
        let issuer = Self { process, address, port };
        wait::until("the issuer listens", wait::PATIENCE, || issuer.told(mesh, "/behave").status == 200);
        issuer
    }

    /// Where a set of these of its keys is, without TLS: `first,second`.
    pub fn keys_url(&self, keys: &str) -> String {
        format!("http://{}:{}/keys?keys={keys}", self.address, self.port + 1)
    }

    /// That set.
    pub fn keys(&self, mesh: &Mesh, keys: &str) -> String {
        let answer = self.told(mesh, &format!("/keys?keys={keys}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    /// From now on its server of keys behaves so, and gives out these.
    pub fn behave(&self, mesh: &Mesh, how: &str, keys: &str) -> Value {
        self.told(mesh, &format!("/behave?how={how}&keys={keys}")).json()
    }

    /// A token signed by the key `kid`; `rest` is `&as=KID` for one that names another key.
    pub fn token(&self, mesh: &Mesh, kid: &str, claims: &str, rest: &str) -> String {
        let claims: String = claims.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.told(mesh, &format!("/token?kid={kid}&claims={claims}{rest}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    fn told(&self, mesh: &Mesh, path: &str) -> Answer {
        mesh.curl_directly(&[&format!("http://{}:{}{path}", self.address, self.port + 1)])
    }
}
