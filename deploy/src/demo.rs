//! `postern demo`: a real mesh on this machine's loopback, proven line by line.
//!
//! No root, no Kubernetes, nothing faked: a control plane, three services and their sidecars, each a process of its own,
//! started from this very binary. What must hold is listed in [`expectations`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

mod admin;
mod credential;
mod documents;
mod expectations;
pub(crate) mod failure;
mod files;
mod home;
pub(crate) mod http;
mod intruder;
mod invitation;
mod mesh;
mod netns;
pub(crate) mod plan;
pub(crate) mod process;
mod report;

use expectations::Play;
use failure::{Explain, Failure};
use files::Files;
use home::Home;
use mesh::Mesh;
use netns::Inside;
use plan::{Apart, Ground, Plan, Service, Subnet};
use report::Report;

/// A whole mesh on this machine, proven line by line.
///
/// Three services, each behind a sidecar, and a control plane run as processes on loopback addresses; no root is needed.
/// On loopback nothing forces traffic through a sidecar: the services use it because they are told to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the mesh running afterwards, until Ctrl-C, and print what to try.
    #[arg(long)]
    keep: bool,
    /// Print one JSON document instead of lines.
    #[arg(long)]
    json: bool,
    /// A new or empty directory for configuration, documents, state and logs, which is kept. Default: a temporary one,
    /// removed at the end unless something failed.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The first three numbers of every address, so that two demos can run at once.
    #[arg(long, value_name = "127.x.y", default_value = "127.0.0")]
    subnet: Subnet,
    /// In network namespaces of its own, where the kernel leads all traffic through the sidecars; shows that nobody gets around
    /// them. As root, or where the kernel lets everybody make namespaces.
    #[arg(long, conflicts_with = "subnet")]
    netns: bool,
    /// How the demo tells itself where it is.
    #[arg(long, hide = true, requires = "netns")]
    inside: Option<Inside>,
}

/// Runs the demo; success only if every expectation holds.
pub(crate) fn run(args: Args) -> ExitCode {
    let outcome = if args.netns && args.inside.is_none() {
        Err(netns::enter())
    } else {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .explain("cannot start the runtime")
            .and_then(|runtime| runtime.block_on(demo(&args)))
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            if args.json {
                println!("{:#}", json!({ "ok": false, "error": failure.to_string() }));
            }
            eprintln!("postern demo: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Err means that it could not even begin.
async fn demo(args: &Args) -> Result<bool, Failure> {
    let begun = Instant::now();
    let mut interrupted = Interrupt::listen()?;
    let plan = if let Some(inside) = &args.inside {
        inside.check()?;
        Plan::namespaces(inside.apart)
    } else {
        let plan = Plan::new(args.subnet);
        mesh::addresses_are_free(&plan).await?;
        plan
    };
    let (expected, note) = match plan.ground {
        Ground::Loopback => (expectations::LOOPBACK, LOOPBACK),
        Ground::Namespaces(_) => (expectations::NAMESPACES, NAMESPACES),
    };
    let home = Home::open(args.dir.as_deref())?;
    let files = Files::lay_out(home.path(), &plan)?;
    home.occupy()?;
    let raised = match plan.ground {
        Ground::Loopback => None,
        Ground::Namespaces(apart) => Some(netns::raise(&files, &plan, apart).await?),
    };
    let mesh = Mesh::new(plan, files);
    let mut report = Report::new(args.json);
    report.say(&opening(&mesh));
    if args.keep {
        // Whoever keeps it plays with it long before the last line.
        report.say(&format!("{note}\n"));
    }

    let finished = tokio::select! {
        () = play(&mesh, &expected, &mut report) => true,
        () = interrupted.wait() => false,
    };
    let all = expected.all().map(|scene| scene.expectations.len()).sum();
    report.conclude(all, note, &mesh.files, begun.elapsed().as_secs_f64());
    let holds = finished && report.holds();
    if !finished {
        report.say("Interrupted: what is not listed above was not looked at.");
    } else if args.keep {
        report.say(&invitation::text(&mesh));
        tokio::select! {
            () = interrupted.wait() => {}
            () = watch(&mesh) => {}
        }
    }
    mesh.shut_down().await;
    drop(raised);
    report.say(&home.close(args.keep || !holds));
    report.say(&format!("\n{note}"));
    Ok(holds)
}

const LOOPBACK: &str = "On loopback nothing forces traffic through a sidecar: these services use theirs because \
                        they are told to, and anybody on this machine can reach a service past it.";

const NAMESPACES: &str = "Here the kernel leads traffic through the sidecars; the services know of none.";

/// Every scene; each finding is told as soon as it is there.
async fn play(mesh: &Mesh, play: &Play, report: &mut Report) {
    report.settle(expectations::FIRST.settle(mesh).await);
    if !report.holds() {
        let why = Failure::new("not looked at, because the mesh did not come up");
        for scene in play.all().skip(1) {
            report.settle_unplayed(scene.unplayed(&why));
        }
        return;
    }
    let in_turn = async {
        for scene in play.in_turn {
            report.settle(scene.settle(mesh).await);
        }
        if play.alongside.is_some() {
            report.say("  … customers keep coming until every certificate was renewed twice");
        }
    };
    let alongside = async {
        match play.alongside {
            Some(scene) => scene.settle(mesh).await,
            None => Vec::new(),
        }
    };
    let ((), alongside) = tokio::join!(in_turn, alongside);
    report.settle(alongside);
    report.say(match mesh.plan.ground {
        Ground::Loopback => "  … now without the control plane",
        Ground::Namespaces(_) => "  … now without sidecars and without rules",
    });
    for scene in play.last {
        report.settle(scene.settle(mesh).await);
    }
}

/// Tells which processes end while people play with the rest, for ever.
async fn watch(mesh: &Mesh) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for ended in mesh.ended().await {
            eprintln!("{ended}");
        }
    }
}

fn opening(mesh: &Mesh) -> String {
    let on = match mesh.plan.ground {
        Ground::Loopback => "on this machine",
        Ground::Namespaces(Apart::User) => "in network namespaces, each sidecar told apart by its user",
        Ground::Namespaces(Apart::Mark) => {
            "in network namespaces without root, each sidecar told apart by a mark"
        }
    };
    let mut text = format!(
        "A mesh {on}, trust domain {}, certificates that live {} s\n  control plane    {}\n",
        plan::TRUST_DOMAIN,
        files::SVID_TTL_S,
        mesh.plan.control()
    );
    for service in Service::ALL {
        text.push_str(&format!(
            "  {:<16} {}, its sidecar {} out and {} in\n",
            service.name(),
            mesh.plan.service(service),
            mesh.plan.outbound(service),
            mesh.plan.mesh(service)
        ));
    }
    text.push_str(&format!("  files            {}\n", mesh.files.root().display()));
    text
}

/// Whoever tells the demo to stop. Its children are in groups of their own and hear of it from the demo alone.
struct Interrupt([tokio::signal::unix::Signal; 3]);

impl Interrupt {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).explain("cannot listen for signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
