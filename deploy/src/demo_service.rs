//! One of the three services of the demo: ordinary HTTP servers that know nothing of the mesh.
//!
//! A service listens in plaintext, calls the next one by its name through `http_proxy`, and counts what arrives, so that
//! the demo can prove that a refused request never reached it.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::demo::http::{Client, Host, Peer};
use crate::demo::plan::Service;
use crate::stdin;

mod ledger;
mod shop;

pub(crate) use ledger::MARKER;
use shop::Shop;

/// What a service of the demo needs to know.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which service to be.
    service: Service,
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// The proxy for outgoing calls: the outbound listener of this service's sidecar.
    #[arg(long, required_unless_present = "hosts")]
    http_proxy: Option<SocketAddr>,
    /// Where another service is, for a service that knows of no proxy.
    #[arg(long = "host", value_name = "NAME=ADDRESS:PORT")]
    hosts: Vec<Host>,
    /// Whose demo this is, for a second one that finds the address taken.
    #[arg(long)]
    demo: String,
}

/// Serves until standard input closes, which it does when the demo ends, however it ends.
pub(crate) fn run(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{}: no runtime: {error}", args.service);
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let name = args.service;
        tokio::select! {
            () = stdin::ended() => ExitCode::SUCCESS,
            error = serve(args) => {
                eprintln!("{name}: {error}");
                ExitCode::FAILURE
            }
        }
    })
}

async fn serve(args: Args) -> String {
    let listener = match TcpListener::bind(args.listen).await {
        Ok(listener) => listener,
        Err(error) => return format!("cannot listen on {}: {error}", args.listen),
    };
    let way = args.http_proxy.map_or_else(String::new, |proxy| format!(" through {proxy}"));
    println!("{} listens on {}, calls others{way}", args.service, args.listen);
    let out = args.http_proxy.map_or(Peer::Named(args.hosts), Peer::Tcp);
    let shop = Arc::new(Shop::new(args.service, Client::new(out), args.demo));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => return format!("cannot accept connections: {error}"),
        };
        // A connection without it still works, only slower.
        let _ = stream.set_nodelay(true);
        let shop = Arc::clone(&shop);
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let shop = Arc::clone(&shop);
                async move { shop.answer(request).await }
            });
            // A caller that goes away is none of the service's business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}
