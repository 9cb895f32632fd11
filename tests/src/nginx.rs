//! nginx as a workload: fast, and not written here.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use crate::mesh::Mesh;
use crate::process::Process;
use crate::wait;

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    /// Its document root.
    pub root: PathBuf,
    _process: Process,
}

impl Nginx {
    /// Starts nginx at `address` with `locations` in its only server, and waits until it listens. Its log and its root
    /// are in the mesh's directory: it must be dropped before the mesh.
    pub fn start(mesh: &Mesh, address: impl Into<SocketAddr>, locations: &str) -> Self {
        let address = address.into();
        let root = mesh.directory().join(format!("nginx-{}", address.port()));
        fs::create_dir(&root).expect("the mesh's directory can be written to");
        let place = root.display();
        let config = format!(
            "daemon off; master_process off; pid {place}/pid; error_log stderr;\nevents {{}}\nhttp {{\n\
             access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n\
             fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
             gzip on; gzip_types text/plain; types {{ text/plain txt; }} keepalive_requests 1000000;\n\
             server {{ listen {address}; root {place};\n{locations}\n}} }}\n"
        );
        let file = root.join("nginx.conf");
        fs::write(&file, config).expect("it was just made");
        let process = Process::start("nginx", "nginx".as_ref(), &root.join("error.log"), |command| {
            command.arg("-c").arg(&file).arg("-p").arg(&root);
        });
        wait::until("nginx listens", wait::PATIENCE, || {
            assert!(process.ended().is_none(), "nginx ended: {}", process.log());
            TcpStream::connect(address).is_ok()
        });
        Self { root, _process: process }
    }
}
