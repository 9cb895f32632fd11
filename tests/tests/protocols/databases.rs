//! Databases and mail: PostgreSQL and Redis, whose clients speak first, MariaDB and SMTP, whose servers do.

use std::fs;

use postern_tests::protocols::{Notes, Way};
use postern_tests::wait;

use super::{NOBODY, Scene, V4, V6, WAYS, give, inside, text, url};

const POSTGRES: u16 = 5432;
const MARIADB: u16 = 3306;
const REDIS: u16 = 6379;
const SMTP: u16 = 2525;

#[test]
fn databases_and_mail() {
    let tools = ["postgres", "mariadbd", "mariadb", "redis-cli", "msmtpd", "curl", "openssl", "socat"];
    if !inside("databases::databases_and_mail", &tools) {
        return;
    }
    let ports = [(POSTGRES, "tcp"), (MARIADB, "tcp"), (REDIS, "tcp"), (SMTP, "tcp")];
    let mut scene = Scene::start(&ports, "{ports: [5432, 3306, 6379, 2525]}");
    let programs = start_postgres(&mut scene);
    start_mariadb(&mut scene);
    start_redis(&mut scene);
    start_smtp(&mut scene);
    let mut notes = Notes::new("4-databases", "Databases and mail");
    for way in WAYS {
        scene.go(way);
        notes.way(way);
        for at in [V4, V6] {
            postgres(&scene, &programs, at, &mut notes);
            mariadb(&scene, at, &mut notes);
            redis(&scene, at, &mut notes);
        }
        mail(&scene, way, &mut notes);
        is_not_late(&scene);
    }
    notes.leave();
}

/// Its programs' directory is returned.
fn start_postgres(scene: &mut Scene) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("it is installed");
    let found = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .find(|bin| bin.join("initdb").exists());
    let programs = found.expect("it is installed").display().to_string();
    let place = scene.place("postgres", NOBODY);
    fs::write(place.join("password"), "secret").expect("it is ours");
    give(&place.join("password"), NOBODY);
    let (root, data) = (place.display().to_string(), place.join("data").display().to_string());
    let made = scene.orders.run(
        NOBODY,
        &[
            &format!("{programs}/initdb"),
            "-D",
            &data,
            "-U",
            "shop",
            "--auth",
            "scram-sha-256",
            "--no-sync",
            "--locale",
            "C",
            "--encoding",
            "UTF8",
            "--pwfile",
            &format!("{root}/password"),
        ],
    );
    assert_eq!(made.code, 0, "{}{}", made.text(), made.stderr);
    let key = scene.orders.run(
        NOBODY,
        &[
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=orders",
            "-keyout",
            &format!("{data}/server.key"),
            "-out",
            &format!("{data}/server.crt"),
        ],
    );
    assert_eq!(key.code, 0, "{}", key.stderr);
    let hba = "host all all all scram-sha-256\n";
    fs::write(place.join("data/pg_hba.conf"), hba).expect("it is there");
    let words = [
        "-c",
        "listen_addresses=*",
        "-c",
        "unix_socket_directories=",
        "-c",
        "fsync=off",
        "-c",
        "ssl=on",
        "-c",
        "dynamic_shared_memory_type=mmap",
        "-c",
        "shared_buffers=16MB",
    ];
    scene.serve(POSTGRES, NOBODY, &[&[&*format!("{programs}/postgres"), "-D", &data][..], &words].concat());
    programs
}

fn postgres(scene: &Scene, programs: &str, at: &str, notes: &mut Notes) {
    let psql = format!("{programs}/psql");
    let ask = |tls: &str, question: &str| {
        let to = format!("postgresql://shop:secret@{}:{POSTGRES}/postgres?sslmode={tls}", url(at));
        // It would look for certificates at home, which is another user's.
        scene.get(&["env", "HOME=/", &psql, &to, "-AtX", "-v", "ON_ERROR_STOP=1", "-c", question])
    };
    let sum = "create temp table t as select n, repeat('x', 100) as x from generate_series(1, 20000) n;
               select count(*), sum(n), sum(length(x)) from t";
    assert!(ask("disable", sum).ends_with("20000|200010000|2000000\n"));
    let copied = ask("disable", "copy (select n from generate_series(1, 50000) n) to stdout");
    assert_eq!((copied.lines().count(), copied.lines().last()), (50_000, Some("50000")));
    notes.saw(at, "PostgreSQL", ["psql", "PostgreSQL"], "queries, COPY");
    let secured = ask("require", "select ssl from pg_stat_ssl where pid = pg_backend_pid()");
    assert_eq!(secured, "t\n");
    notes.saw(at, "PostgreSQL", ["psql", "PostgreSQL"], "TLS of its own, asked for in its protocol");
}

fn start_mariadb(scene: &mut Scene) {
    let place = scene.place("mariadb", NOBODY);
    let root = place.display().to_string();
    let data = format!("--datadir={root}/data");
    let small = ["--innodb-log-file-size=4M", "--innodb-flush-method=fsync", "--innodb-buffer-pool-size=16M"];
    let install = [
        "mariadb-install-db",
        "--no-defaults",
        &data,
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
    ];
    let made = scene.orders.run(NOBODY, &[&install[..], &small].concat());
    assert_eq!(made.code, 0, "{}{}", made.text(), made.stderr);
    let users = "create user shop@'%' identified by 'secret';\ngrant all on *.* to shop@'%';\ncreate database shop;\n";
    fs::write(place.join("users.sql"), users).expect("it is ours");
    let (socket, pid, init) = (
        format!("--socket={root}/socket"),
        format!("--pid-file={root}/pid"),
        format!("--init-file={root}/users.sql"),
    );
    let words =
        ["mariadbd", "--no-defaults", &data, &socket, &pid, &init, "--bind-address=*", "--skip-name-resolve"];
    scene.serve(MARIADB, NOBODY, &[&words[..], &small].concat());
}

fn mariadb(scene: &Scene, at: &str, notes: &mut Notes) {
    let port = MARIADB.to_string();
    let ask = |question: &str| {
        scene.get(&[
            "mariadb",
            "--no-defaults",
            "-h",
            at,
            "-P",
            &port,
            "-ushop",
            "-psecret",
            "-BN",
            "shop",
            "-e",
            question,
        ])
    };
    // What follows shows that the server's greeting came, and that the client waited for it.
    let sum = "create or replace table t (n int, x longtext); insert into t select seq, repeat('x', 1000) from seq_1_to_2000;
               select count(*), sum(n), sum(length(x)) from t";
    assert_eq!(ask(sum), "2000\t2001000\t2000000\n");
    assert_eq!(ask("select repeat('y', 1000000)").len(), 1_000_001);
    notes.saw(at, "MariaDB", ["mariadb", "MariaDB"], "the server speaks first; queries, large results");
}

fn start_redis(scene: &mut Scene) {
    // Debian's redis-server is this program under another name.
    let place = scene.place("redis", NOBODY);
    let program = place.join("redis-server");
    std::os::unix::fs::symlink("/usr/bin/redis-check-rdb", &program).expect("the directory is new");
    let (program, root) = (program.display().to_string(), place.display().to_string());
    let words =
        ["--port", "6379", "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--dir", &root];
    scene.serve(REDIS, NOBODY, &[&[&*program][..], &words].concat());
}

fn redis(scene: &Scene, at: &str, notes: &mut Notes) {
    let cli = ["redis-cli", "-h", at];
    let ask = |words: &[&str]| scene.get(&[&cli[..], words].concat());
    assert_eq!(
        (ask(&["set", "key", "value"]), ask(&["get", "key"])),
        ("OK\n".to_owned(), "value\n".to_owned())
    );
    let piped = scene.shell(&format!(
        "seq 20000 | sed 's/.*/SET key& value&/' | redis-cli -h {at} --pipe && redis-cli -h {at} get key20000"
    ));
    assert!(
        piped.text().contains("errors: 0, replies: 20000") && piped.text().ends_with("value20000\n"),
        "{piped:?}"
    );
    notes.saw(at, "Redis", ["redis-cli", "Redis"], "commands, one by one and many at once");
    let slowly = scene.shell(&format!(
        "printf '*2\\r\\n$3\\r\\nGET\\r\\n$3\\r\\nkey\\r\\n*1\\r\\n$4\\r\\nQUIT\\r\\n' | socat -b1 -t8 - TCP:{}:{REDIS},nodelay,shut-none",
        url(at)
    ));
    assert_eq!(slowly.text(), "$5\r\nvalue\r\n+OK\r\n", "{}", slowly.stderr);
    notes.saw(at, "Redis", ["socat", "Redis"], "a command that comes byte by byte");
    let log = scene.mesh.directory().join("subscribed.log");
    let channel = format!("news-{}", if at == V4 { "v4" } else { "v6" });
    let words = [&cli[..], &["subscribe", &channel]].concat();
    let subscribed = scene.web.start("redis-cli", super::WORKLOAD, &log, &words, |_| {});
    wait::until("it is subscribed", wait::PATIENCE, || subscribed.log().ends_with("1\n"));
    assert_eq!(ask(&["publish", &channel, "extra"]), "1\n");
    wait::until("the message comes", wait::PATIENCE, || subscribed.log().ends_with("extra\n"));
    drop(subscribed);
    let _ = fs::remove_file(log);
    notes.saw(at, "Redis", ["redis-cli", "Redis"], "messages to subscribers");
}

fn start_smtp(scene: &mut Scene) {
    let program = postern_tests::target_directory().join("foreign/msmtp/usr/bin/msmtpd");
    let program = scene.orders.shared(&program).display().to_string();
    scene.place("mail", NOBODY);
    let interface = format!("--interface={V4}");
    scene.serve(
        SMTP,
        NOBODY,
        &[&program, &interface, "--port=2525", "--command=cat > /run/mail/$$.eml; : %F"],
    );
}

fn mail(scene: &Scene, way: Way, notes: &mut Notes) {
    let body = format!("Subject: {way:?}\r\n\r\n{}", text(50_000).replace('\n', "\r\n"));
    let file = scene.mesh.directory().join("mail");
    fs::write(&file, &body).expect("the directory is ours");
    let (file, to) = (file.display().to_string(), format!("smtp://{V4}:{SMTP}/client.example"));
    let sent = scene.curl(&[
        &to,
        "--mail-from",
        "a@web.example",
        "--mail-rcpt",
        "b@orders.example",
        "--upload-file",
        &file,
    ]);
    assert_eq!(sent.code, 0, "{}", sent.stderr);
    notes.saw(V4, "SMTP", ["curl", "msmtpd"], "the server speaks first; a mail arrives whole");
    let script = format!(
        "import smtplib; s = smtplib.SMTP('{V4}', {SMTP}); s.sendmail('c@web.example', ['d@orders.example'], \
         open('{file}', newline='').read()); s.quit()"
    );
    scene.get(&["/usr/bin/python3", "-c", &script]);
    notes.saw(V4, "SMTP", ["Python smtplib", "msmtpd"], "the server speaks first; a mail arrives whole");
    let subject = format!("Subject: {way:?}");
    let arrived = fs::read_dir("/run/mail").expect("it is there").filter_map(|entry| {
        let mail = fs::read_to_string(entry.ok()?.path()).ok()?;
        mail.contains(&subject).then_some(mail)
    });
    let lines: Vec<usize> = arrived
        .map(|mail| mail.lines().filter(|line| line.len() == 7 && line.starts_with('0')).count())
        .collect();
    assert_eq!(lines, [6_250, 6_250]);
}

/// Nobody waits for a client that waits for its server.
fn is_not_late(scene: &Scene) {
    let script = format!(
        "import smtplib, time\nfor _ in range(5): s = smtplib.SMTP(); began = time.monotonic(); \
         s.connect('{V4}', {SMTP}); print(time.monotonic() - began); s.close()"
    );
    let took = scene.get(&["/usr/bin/python3", "-c", &script]);
    let took: Vec<f64> = took.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(took.len(), 5);
    let quickest = took.iter().copied().fold(f64::MAX, f64::min);
    assert!(quickest < 0.5, "greetings took {took:?} s");
}
