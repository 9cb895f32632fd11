//! The root's key in a PKCS#11 token: SoftHSM, which is a program like a device.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use postern_tests::{Mesh, Plan, Process, foreign, openssl, pem, postern, wait};

const PIN: &str = "4711-0815";
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];

/// A token of its own, in the mesh's directory.
struct Token {
    module: PathBuf,
    config: PathBuf,
    pin: PathBuf,
}

impl Token {
    fn new(mesh: &Mesh) -> Self {
        let directory = mesh.directory();
        let module = MODULES.iter().map(PathBuf::from).find(|path| path.exists());
        let module = module.expect("softhsm2 is installed");
        fs::create_dir(directory.join("tokens")).expect("the directory is ours");
        let config = directory.join("softhsm2.conf");
        let tokens = directory.join("tokens").display().to_string();
        fs::write(
            &config,
            format!("directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"),
        )
        .expect("the directory is ours");
        let pin = directory.join("pin");
        fs::write(&pin, format!("{PIN}\n")).expect("the directory is ours");
        fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        let token = Self { module, config, pin };
        let made = token.run(
            "softhsm2-util",
            &["--init-token", "--free", "--label", "mesh", "--so-pin", "security-officer", "--pin", PIN],
        );
        assert_eq!(made.code, 0, "{}{}", made.text(), made.stderr);
        token
    }

    fn run(&self, program: &str, arguments: &[&str]) -> foreign::Run {
        let mut command = Command::new(program);
        command.args(arguments).env("SOFTHSM2_CONF", &self.config);
        foreign::run(&mut command, wait::PATIENCE)
    }

    fn yaml(&self, label: &str, issuing: bool) -> String {
        let (module, pin) = (self.module.display(), self.pin.display());
        format!(
            "keys: {{pkcs11: {{module: {module}, token: {label}, pin: {{file: {pin}}}, issuing: {issuing}}}}}\n"
        )
    }

    /// What another program of PKCS#11 says of the private keys there.
    fn private_keys(&self) -> String {
        let module = self.module.display().to_string();
        let run = self.run(
            "pkcs11-tool",
            &[
                "--module",
                &module,
                "--token-label",
                "mesh",
                "--login",
                "--pin",
                PIN,
                "--list-objects",
                "--type",
                "privkey",
            ],
        );
        assert_eq!(run.code, 0, "{}{}", run.text(), run.stderr);
        run.text()
    }
}

fn ca(token: &Token, mesh: &Mesh, verb: &[&str]) -> foreign::Run {
    let config = mesh.control.config().display().to_string();
    let arguments = [&["ca"], verb, &["--config", &config]].concat();
    token.run(&postern().display().to_string(), &arguments)
}

fn start(token: &Token, mesh: &Mesh) -> Process {
    let process = Process::start("control", &postern(), &mesh.directory().join("control.log"), |command| {
        command.arg("control").arg("--config").arg(mesh.control.config()).env("SOFTHSM2_CONF", &token.config);
    });
    wait::until("the control plane is ready", wait::PATIENCE * 2, || {
        assert!(process.ended().is_none(), "it ended");
        mesh.control.page("/ready").is_some_and(|(status, _)| status == 200)
    });
    process
}

fn key_files(state: &Path) -> Vec<String> {
    let names =
        fs::read_dir(state).expect("it is there").map(|entry| entry.expect("it can be read").file_name());
    let mut names: Vec<_> =
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".key")).collect();
    names.sort();
    names
}

#[test]
fn the_root_is_made_in_the_token_and_never_leaves_it() {
    if !foreign::need(&["softhsm2-util", "pkcs11-tool", "openssl"]) {
        return;
    }
    let mut plan = Plan::new();
    plan.sidecar("orders").serves(80, 8080, "http");
    let mesh = plan.prepare();
    let token = Token::new(&mesh);
    let plain = fs::read_to_string(mesh.control.config()).expect("the plan wrote it");
    let config = |keys: &str| fs::write(mesh.control.config(), format!("{plain}{keys}")).expect("it is ours");

    // What does not fit is told before anything is made.
    config(&token.yaml("mehs", false));
    let other = ca(&token, &mesh, &["init"]);
    assert!(
        other.code == 1 && other.stderr.contains("no token has this label; the module shows: mesh"),
        "{}",
        other.stderr
    );
    fs::write(&token.pin, "1234\n").expect("it is ours");
    config(&token.yaml("mesh", false));
    let wrong = ca(&token, &mesh, &["init"]);
    assert!(wrong.code == 1 && wrong.stderr.contains("not the token's user PIN"), "{}", wrong.stderr);
    fs::write(&token.pin, format!("{PIN}\n")).expect("it is ours");

    let made = ca(&token, &mesh, &["init"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let listed = token.private_keys();
    assert_eq!(listed.matches("Private Key Object").count(), 1, "{listed}");
    assert!(listed.contains("postern/demo.postern/root-"), "{listed}");
    assert!(listed.contains("sensitive, always sensitive, never extractable, local"), "{listed}");
    let files = key_files(mesh.control.state());
    assert!(files.len() == 2 && files[0].starts_with("issuing-") && files[1] == "ledger.key", "{files:?}");

    let control = start(&token, &mesh);
    let orders = mesh.sidecar("orders");
    let created = ca(
        &token,
        &mesh,
        &["token", "create", "--id", &orders.id(), "--out", &orders.token().display().to_string()],
    );
    assert_eq!(created.code, 0, "{}", created.stderr);
    orders.start();
    orders.wait_ready();
    drop(control);
    let certificates = mesh.control.certificates();
    let write = |name: &str, kind: &str| {
        let der = &certificates.iter().find(|(found, _)| found.contains(kind)).expect("it was made").1;
        let path = mesh.directory().join(name);
        fs::write(&path, pem(der)).expect("it is ours");
        path.display().to_string()
    };
    let (root, issuing, leaf) =
        (write("root.pem", "root"), write("issuing.pem", "issuing"), write("leaf.pem", "/sa/orders"));
    let verified = openssl(&["verify", "-x509_strict", "-CAfile", &root, "-untrusted", &issuing, &leaf], b"");
    assert_eq!(verified.code, 0, "{}{}", verified.text(), verified.stderr);

    // A backup has what are files; issuing CAs' keys go into the token from the next one on.
    config(&token.yaml("mesh", true));
    drop(start(&token, &mesh));

    // Without the token there is no CA, and the error says which.
    config("");
    let gone = token.run(
        &postern().display().to_string(),
        &["control", "--config", &mesh.control.config().display().to_string()],
    );
    assert!(gone.code == 1 && gone.stderr.contains("root-"), "{}", gone.stderr);
}
