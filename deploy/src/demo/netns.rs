//! The ground of `--netns`: a network namespace for each party, joined by a bridge in one more, from which no way leads to the
//! machine's own network.
//!
//! The demo starts itself anew under `unshare`, in namespaces of network and mounts of its own: the first is where the bridge is,
//! in the second the other namespaces are mounted, so that nobody else sees them and no two demos meet. The kernel takes all of
//! them away with the last process, however that ends. Whoever may not make them as root gets a namespace of users as
//! well; there is one user in it, and sidecars are told apart by a mark.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;

use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::files::Files;
use crate::demo::plan::{Apart, Ground, Place, Plan, Service};
use crate::demo::process::output_of;

/// What a sidecar's own connections bear where there is one user only.
pub(crate) const MARK: u32 = 0x706f;
/// The sidecars' user where there are several.
pub(crate) const SIDECAR: u32 = 24_140;
const WORKLOAD: u32 = 1_000;
const NOBODY: u32 = 65_534;

/// The program's file, as mounted for everybody.
const PROGRAM: &str = "postern";
const NETWORK: &str = "/proc/self/ns/net";
const MOUNTS: &str = "/proc/self/ns/mnt";
/// What is run, and the package that has it.
const TOOLS: [(&str, &str); 7] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount or util-linux"),
    ("umount", "mount or util-linux"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
];
const WITHOUT: &str = "`postern demo` without --netns needs none of this, and forces nothing";

/// As whom a process of a namespace runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Who {
    /// As an ordinary user without any privilege.
    Workload,
    /// As a sidecar: another user, or one who may mark connections.
    Sidecar,
    /// As whoever may write rules, and nothing else.
    Rules,
    /// As an ordinary user who may listen at low ports.
    Sink,
    /// As the demo itself.
    Own,
}

/// Where the demo came from, so that it touches nothing there.
#[derive(Clone, Debug)]
pub(crate) struct Inside {
    pub(crate) apart: Apart,
    outside: [String; 2],
}

impl FromStr for Inside {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split(',').collect();
        let [apart, network, mounts] = parts.as_slice() else {
            return Err("the demo alone writes this".to_owned());
        };
        let apart = if *apart == "user" { Apart::User } else { Apart::Mark };
        Ok(Self { apart, outside: [(*network).to_owned(), (*mounts).to_owned()] })
    }
}

impl Inside {
    /// Makes sure that this really is somewhere else.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        for (path, outside) in [NETWORK, MOUNTS].iter().zip(&self.outside) {
            ensure!(name_of(path)? != *outside, "this is no namespace of the demo's own: use --netns");
        }
        Ok(())
    }
}

/// Becomes the demo in namespaces of its own. Comes back only if that cannot be.
pub(crate) fn enter() -> Failure {
    match prepare() {
        Ok(mut command) => Failure::new(format!("cannot run unshare: {}", command.exec())),
        Err(failure) => Failure::new(format!("{failure}. {WITHOUT}.")),
    }
}

fn prepare() -> Result<Command, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (tool, package) in TOOLS {
        let found = std::env::split_paths(&path).any(|directory| directory.join(tool).is_file());
        ensure!(found, "there is no `{tool}` on the path: install the package {package}");
    }
    let (flags, apart) = possible()?;
    let own = std::env::current_exe().explain("cannot find this program's own file")?;
    let inside = format!("--inside={apart},{},{}", name_of(NETWORK)?, name_of(MOUNTS)?);
    let mut command = Command::new("unshare");
    command.args([flags, "--propagation", "private", "--"]).arg(own);
    command.args(std::env::args_os().skip(1).chain([OsString::from(inside)]));
    Ok(command)
}

/// The first of the two ways that the kernel allows here.
fn possible() -> Result<(&'static str, &'static str), Failure> {
    let user = SIDECAR.to_string();
    let several = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "true"];
    let mut refused = String::new();
    for (flags, apart, words) in [("-nm", "user", several.as_slice()), ("-Urnm", "mark", &["true"])] {
        let tried = Command::new("unshare")
            .args([flags, "--propagation", "private", "--"])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .explain("cannot run unshare")?;
        if tried.status.success() {
            return Ok((flags, apart));
        }
        refused = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
    }
    Err(Failure::new(format!(
        "this machine lets neither root nor anybody make network namespaces here ({refused}): run it as root, or allow \
         user namespaces (sysctl user.max_user_namespaces; on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)"
    )))
}

fn name_of(namespace: &str) -> Result<String, Failure> {
    let name = fs::read_link(namespace).explain(format!("cannot read {namespace}"))?;
    Ok(name.to_string_lossy().into_owned())
}

/// The namespaces; dropping them unmounts them, and the kernel takes them away with their processes.
pub(crate) struct Raised(Files);

impl Drop for Raised {
    fn drop(&mut self) {
        let mounted = fs::read_dir(self.0.mounted("")).into_iter().flatten().flatten();
        // What is not unmounted goes with this process's own namespace of mounts.
        let _ = Command::new("umount").arg("-l").args(mounted.map(|entry| entry.path())).output();
    }
}

/// Makes the namespaces, and writes the rules in those that have a sidecar. Nothing runs in them yet.
pub(crate) async fn raise(files: &Files, plan: &Plan, apart: Apart) -> Result<Raised, Failure> {
    let outcome = async {
        fs::create_dir(files.mounted("")).explain("cannot make a directory for what is mounted")?;
        let raised = Raised(files.clone());
        let own = std::env::current_exe().explain("cannot find this program's own file")?;
        let program = touched(files, PROGRAM)?;
        run(&["mount", "--bind", &own.to_string_lossy(), &program]).await?;
        run(&["ip", "link", "set", "lo", "up"]).await?;
        run(&["ip", "link", "add", "switch", "type", "bridge"]).await?;
        run(&["ip", "link", "set", "switch", "up"]).await?;
        let [v4, v6] = plan.own();
        run(&["ip", "addr", "add", &format!("{v4}/24"), "dev", "switch"]).await?;
        run(&["ip", "addr", "add", &format!("{v6}/64"), "dev", "switch", "nodad"]).await?;
        for place in Place::all() {
            connect(files, plan, place).await?;
        }
        if apart == Apart::User {
            share(files)?;
        }
        for service in Service::ALL {
            rules(files, plan, service, "apply").await?;
        }
        Ok(raised)
    };
    outcome.await.map_err(|failure: Failure| Failure::new(format!("{failure}. {WITHOUT}.")))
}

/// One namespace, on the bridge by a cable of its own.
async fn connect(files: &Files, plan: &Plan, place: Place) -> Result<(), Failure> {
    let at = touched(files, place.name())?;
    run(&["unshare", &format!("--net={at}"), "true"]).await?;
    let (own, cable) = (std::process::id().to_string(), format!("v-{}", place.name()));
    let enter = format!("--net={at}");
    let within = ["nsenter", &enter, "ip"];
    let link = ["link", "add", "eth0", "type", "veth", "peer", "name", &cable, "netns", &own];
    run(&[&within[..], &link].concat()).await?;
    run(&["ip", "link", "set", &cable, "master", "switch", "up"]).await?;
    for device in ["lo", "eth0"] {
        run(&[&within[..], &["link", "set", device, "up"]].concat()).await?;
    }
    let [v4, v6] = plan.both(place);
    run(&[&within[..], &["addr", "add", &format!("{v4}/24"), "dev", "eth0"]].concat()).await?;
    run(&[&within[..], &["addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"]].concat()).await?;
    // To where services are called. Nobody is there to forward anything.
    let [gateway4, gateway6] = plan.own().map(|address| address.to_string());
    run(&[&within[..], &["route", "add", "default", "via", &gateway4]].concat()).await?;
    run(&[&within[..], &["-6", "route", "add", "default", "via", &gateway6]].concat()).await
}

/// `postern-init` in a service's namespace; what it printed.
pub(crate) async fn rules(
    files: &Files,
    plan: &Plan,
    service: Service,
    verb: &str,
) -> Result<String, Failure> {
    let Ground::Namespaces(apart) = plan.ground else {
        return Err(Failure::new("there are no rules on loopback"));
    };
    let mut words = within(files, plan, Place::Service(service), Who::Rules);
    words.extend(["init".to_owned(), verb.to_owned()]);
    if verb != "remove" {
        let [v4, v6] = plan.both(Place::Control);
        words.extend(["--dns-server".to_owned(), format!("{v4},{v6}")]);
        match apart {
            Apart::User => words.extend(["--exclude-uid".to_owned(), SIDECAR.to_string()]),
            Apart::Mark => words.extend(["--exclude-mark".to_owned(), format!("{MARK:#x}")]),
        }
    }
    output_of(&words).await
}

/// Runs a program in a service's namespace with all that the demo may.
pub(crate) async fn privileged(files: &Files, service: Service, words: &[&str]) -> Result<String, Failure> {
    let mut all = nsenter(files, Place::Service(service));
    all.extend(words.iter().map(|word| (*word).to_owned()));
    output_of(&all).await
}

/// The words that run this program in a namespace; its arguments follow.
pub(crate) fn within(files: &Files, plan: &Plan, place: Place, who: Who) -> Vec<String> {
    let mut words = nsenter(files, place);
    if let (Ground::Namespaces(apart), true) = (plan.ground, who != Who::Own) {
        words.extend(as_who(apart, who));
    }
    words.push(files.mounted(PROGRAM).to_string_lossy().into_owned());
    words
}

fn nsenter(files: &Files, place: Place) -> Vec<String> {
    let net = format!("--net={}", files.mounted(place.name()).display());
    vec!["nsenter".to_owned(), net, "--".to_owned()]
}

fn as_who(apart: Apart, who: Who) -> Vec<String> {
    let (uid, capability) = match who {
        Who::Sidecar => (SIDECAR, (apart == Apart::Mark).then_some("net_admin")),
        Who::Rules => (NOBODY, Some("net_admin")),
        Who::Sink => (WORKLOAD, Some("net_bind_service")),
        Who::Workload | Who::Own => (WORKLOAD, None),
    };
    let mut words: Vec<String> = ["setpriv", "--no-new-privs"].map(str::to_owned).into();
    if apart == Apart::User {
        let uid = uid.to_string();
        words.extend(["--reuid", &uid, "--regid", &uid, "--clear-groups"].map(str::to_owned));
    }
    let capabilities = capability.map_or_else(|| "-all".to_owned(), |name| format!("-all,+{name}"));
    for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        words.extend([set.to_owned(), capabilities.clone()]);
    }
    words.push("--".to_owned());
    words
}

/// Gives the sidecars' user what is theirs, and lets other users pass to it.
fn share(files: &Files) -> Result<(), Failure> {
    fs::set_permissions(files.root(), Permissions::from_mode(0o711))
        .explain("cannot open the demo's directory")?;
    for above in files.root().ancestors().skip(1) {
        let mode =
            fs::metadata(above).explain(format!("cannot look at {}", above.display()))?.permissions().mode();
        ensure!(
            mode & 0o001 != 0,
            "other users cannot pass through {}: name another directory with --dir or TMPDIR",
            above.display()
        );
    }
    let documents = fs::read_dir(files.documents()).explain("cannot read the documents")?;
    let documents = documents.flatten().map(|entry| entry.path()).chain([files.documents()]);
    for path in documents.chain(Service::ALL.into_iter().flat_map(|service| files.of_sidecar(service))) {
        give(&path)?;
    }
    Ok(())
}

/// Gives a file to the sidecars' user.
pub(crate) fn give(path: &Path) -> Result<(), Failure> {
    chown(path, Some(SIDECAR), Some(SIDECAR)).explain(format!("cannot give {} away", path.display()))
}

/// An empty file to mount something on.
fn touched(files: &Files, name: &str) -> Result<String, Failure> {
    let path = files.mounted(name);
    File::create_new(&path).explain(format!("cannot write {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

async fn run(words: &[&str]) -> Result<(), Failure> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    output_of(&words).await.map(drop)
}
