//! A workload that answers as none should. Its caller gets a whole answer or an error, never a part that looks whole; nothing
//! of one answer ends up in another's; and no answer fills memory.

mod http1;
mod http2;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use postern_tests::{Mesh, Plan};

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
"#;

/// What the caller may be told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum May {
    /// The answer, whole: this body.
    Whole(&'static str),
    /// An error of the sidecar's.
    Error,
    /// The head, and a body that does not end in order; or an error.
    Broken,
    /// Either of the last two, or a whole answer with this body.
    Any(&'static str),
}

/// Resident memory of a sidecar, in MiB.
pub(crate) fn resident_of(mesh: &Mesh, name: &str) -> u64 {
    postern_tests::resident(mesh.sidecar(name).process().id())
}

/// A mesh whose workload `orders` is evil.
pub(crate) struct Evil {
    pub(crate) mesh: Mesh,
    stopped: Arc<AtomicBool>,
    address: SocketAddr,
}

impl Evil {
    pub(crate) fn new(protocol: &str, serve: fn(TcpListener, Arc<AtomicBool>)) -> Self {
        let mut plan = Plan::new();
        plan.sidecar("web").limit("stall", "3s");
        plan.sidecar("orders").serves(80, 8080, protocol).limit("stall", "3s").limit("head", "3s");
        plan.document("policy.yaml", POLICY);
        let listener = TcpListener::bind((plan.address("orders"), 8080)).expect("the port is free");
        let address = listener.local_addr().expect("it has one");
        let stopped = Arc::new(AtomicBool::new(false));
        let of_thread = Arc::clone(&stopped);
        std::thread::spawn(move || serve(listener, of_thread));
        Self { mesh: plan.start(), stopped, address }
    }
}

impl Drop for Evil {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}
