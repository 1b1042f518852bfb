//! Database servers of a test's own: from a fresh folder, on a free port of this machine, ended with
//! the value that stands for them. Where the programs are not installed, that is said loudly.

use crate::peers::absent;
use crate::{Absent, PATIENCE, until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Row as _};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What the engine logs in as, in the database [`DATABASE`].
pub const USER: &str = "hooks";
pub const PASSWORD: &str = "made-up 'with' quotes & ünïcode";
pub const DATABASE: &str = "shop";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    MariaDb,
}

/// A server, running or stopped.
pub struct Database {
    pub kind: Kind,
    pub port: u16,
    programs: Programs,
    running: Option<Child>,
    dir: TempDir,
}

struct Programs {
    install: PathBuf,
    serve: PathBuf,
    /// Whom they run as, where the tests are root: neither server would be.
    user: Option<u32>,
}

impl Kind {
    /// The driver as tenant files name it.
    pub fn driver(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres",
            Kind::MariaDb => "mysql",
        }
    }

    /// The programs, where they are there.
    fn programs(self) -> Result<Programs, Absent> {
        let (install, serve, package) = match self {
            Kind::Postgres => (&["initdb"][..], &["postgres"][..], "postgresql"),
            Kind::MariaDb => (
                &["mariadb-install-db", "mysql_install_db"][..],
                &["mariadbd", "mysqld"][..],
                "mariadb-server",
            ),
        };
        match (find(install), find(serve)) {
            (Some(install), Some(serve)) => Ok(Programs {
                install,
                serve,
                user: unprivileged(),
            }),
            _ => Err(absent(
                &format!("the programs of {package} are not here"),
                &format!("apt-get install {package}"),
                "HOOKSIEVE_NEED_SQL",
            )),
        }
    }
}

impl Database {
    /// Starts a server that offers TLS with a certificate for `localhost`, signed by the authority in
    /// [`Database::ca`].
    ///
    /// # Errors
    /// When it is not installed, and the environment does not say that it must be.
    pub fn start(kind: Kind) -> Result<Self, Absent> {
        let programs = kind.programs()?;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("the folder takes a file");
            let secret = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&path, secret).expect("a mode");
            programs.own(&path);
        };
        programs.own(dir.path());
        certify(&write);
        // As text in SQL, where its quotes are doubled.
        let password = PASSWORD.replace('\'', "''");
        write("password", PASSWORD);
        write(
            "init.sql",
            &format!(
                "CREATE DATABASE IF NOT EXISTS {DATABASE} CHARACTER SET utf8mb4;\n\
                 CREATE USER IF NOT EXISTS '{USER}'@'127.0.0.1' IDENTIFIED BY '{password}';\n\
                 GRANT ALL ON {DATABASE}.* TO '{USER}'@'127.0.0.1';\n"
            ),
        );
        let mut database = Self {
            kind,
            port: free_port(),
            programs,
            running: None,
            dir,
        };
        database.install();
        database.run();
        Ok(database)
    }

    /// The authority that signed its certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn path(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        path.to_str()
            .expect("temporary folders are text")
            .to_owned()
    }

    fn install(&self) {
        let mut command = self
            .programs
            .command(&self.programs.install, self.dir.path());
        match self.kind {
            Kind::Postgres => command
                .args(["--pgdata", &self.path("data"), "--username", USER])
                .args(["--pwfile", &self.path("password")])
                .args([
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--no-locale",
                    "--no-sync",
                ]),
            Kind::MariaDb => command
                .arg("--no-defaults")
                .arg(format!("--datadir={}", self.path("data")))
                .args(["--auth-root-authentication-method=normal", "--skip-test-db"]),
        };
        let output = command.output().expect("the program starts");
        assert!(output.status.success(), "{command:?}: {output:?}");
        if self.kind == Kind::Postgres {
            let mut command = self.programs.command(&self.programs.serve, self.dir.path());
            let statement = self.dir.path().join("create.sql");
            std::fs::write(&statement, format!("CREATE DATABASE {DATABASE}\n")).expect("a file");
            command
                .args(["--single", "-F", "-D", &self.path("data"), "postgres"])
                .stdin(std::fs::File::open(statement).expect("a file"));
            let output = command.output().expect("the program starts");
            assert!(output.status.success(), "{command:?}: {output:?}");
        }
    }

    /// Runs statements as the user; gives the first column of what they return, as text.
    pub async fn query(&self, sql: &str) -> Vec<String> {
        let host = "127.0.0.1";
        let ask = async || -> sqlx::Result<Vec<String>> {
            let sql = sqlx::AssertSqlSafe(sql.to_owned());
            match self.kind {
                Kind::Postgres => {
                    let options = PgConnectOptions::new_without_pgpass()
                        .host(host)
                        .port(self.port)
                        .username(USER)
                        .password(PASSWORD)
                        .database(DATABASE)
                        .ssl_mode(PgSslMode::Disable);
                    let mut connection = options.connect().await?;
                    let rows = sqlx::raw_sql(sql).fetch_all(&mut connection).await?;
                    rows.iter().map(|row| row.try_get(0)).collect()
                }
                Kind::MariaDb => {
                    let options = MySqlConnectOptions::new()
                        .host(host)
                        .port(self.port)
                        .username(USER)
                        .password(PASSWORD)
                        .database(DATABASE)
                        .ssl_mode(MySqlSslMode::Disabled);
                    let mut connection = options.connect().await?;
                    let rows = sqlx::raw_sql(sql).fetch_all(&mut connection).await?;
                    rows.iter().map(|row| row.try_get(0)).collect()
                }
            }
        };
        until("the database to take a statement", || async {
            match ask().await {
                Ok(rows) => Some(rows),
                // It is starting.
                Err(sqlx::Error::Io(_)) => None,
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("57P03") => {
                    None
                }
                Err(error) => panic!("{sql}: {error:?}"),
            }
        })
        .await
    }

    /// Starts it, for the first time or again, and waits until it takes connections.
    pub fn run(&mut self) {
        let mut command = self.programs.command(&self.programs.serve, self.dir.path());
        let port = self.port.to_string();
        match self.kind {
            Kind::Postgres => command
                .args(["-D", &self.path("data"), "-p", &port, "-k", ""])
                .args([
                    "-c",
                    "listen_addresses=127.0.0.1",
                    "-c",
                    "fsync=off",
                    "-c",
                    "ssl=on",
                ])
                .args([
                    "-c",
                    &format!("ssl_cert_file={}", self.path("certificate.pem")),
                ])
                .args(["-c", &format!("ssl_key_file={}", self.path("key.pem"))]),
            Kind::MariaDb => command
                .args(["--no-defaults", "--bind-address=127.0.0.1", "--port", &port])
                .arg(format!("--datadir={}", self.path("data")))
                .arg(format!("--socket={}", self.path("socket")))
                .arg(format!("--pid-file={}", self.path("pid")))
                .arg(format!("--init-file={}", self.path("init.sql")))
                .arg(format!("--ssl-cert={}", self.path("certificate.pem")))
                .arg(format!("--ssl-key={}", self.path("key.pem")))
                .args(["--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"]),
        };
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a log");
        command.stderr(log).stdout(Stdio::null());
        let mut child = command.spawn().expect("the program starts");
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = child.try_wait().expect("a child can be waited for");
            if ended.is_some() || started.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.dir.path().join("log"));
                panic!("{:?} did not start: {ended:?} {log:?}", self.kind);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.running = Some(child);
    }

    /// Stops it as a service manager does; its data stays.
    pub fn stop(&mut self) {
        let Some(mut child) = self.running.take() else {
            return;
        };
        let id = i32::try_from(child.id()).expect("process ids are small");
        let signal = match self.kind {
            // Postgres would wait for its clients at SIGTERM.
            Kind::Postgres => libc::SIGINT,
            Kind::MariaDb => libc::SIGTERM,
        };
        // SAFETY: a signal to a child of ours that was not waited for, so its id is its own.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(id, signal)
        };
        let started = Instant::now();
        while child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
        {
            if started.elapsed() > Duration::from_secs(30) {
                let _ = child.kill();
                let _ = child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.stop();
    }
}

/// PgBouncer before a Postgres server, where every transaction gets one of a few connections.
pub struct Pooler {
    pub port: u16,
    child: Child,
    _dir: TempDir,
}

impl Pooler {
    /// Starts one whose settings are PgBouncer's own, but for the mode.
    ///
    /// # Errors
    /// When it is not installed, and the environment does not say that it must be.
    pub fn start(database: &Database) -> Result<Self, Absent> {
        let Some(program) = find(&["pgbouncer"]) else {
            return Err(absent(
                "pgbouncer is not here",
                "apt-get install pgbouncer",
                "HOOKSIEVE_NEED_SQL",
            ));
        };
        let dir = tempfile::tempdir().expect("a temporary folder");
        database.programs.own(dir.path());
        let port = free_port();
        let settings = format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={} dbname={DATABASE} user={USER} password='{}'\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n",
            database.port,
            PASSWORD.replace('\'', "''"),
        );
        let path = dir.path().join("pgbouncer.ini");
        std::fs::write(&path, settings).expect("the folder takes a file");
        database.programs.own(&path);
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let mut child = database
            .programs
            .command(&program, dir.path())
            .arg(&path)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = child.try_wait().expect("a child can be waited for");
            if ended.is_some() || started.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(dir.path().join("log"));
                panic!("pgbouncer did not start: {ended:?} {log:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            port,
            child,
            _dir: dir,
        })
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Programs {
    fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        // Not in a folder that its user may not enter.
        command.current_dir(folder).stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    fn own(&self, path: &Path) {
        if let Some(user) = self.user {
            chown(path, Some(user), Some(user)).expect("root may give a file away");
        }
    }
}

/// Looks on PATH and where Debian keeps servers.
fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let mut versions: Vec<PathBuf> = versions
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    versions.sort();
    // The programs of one version stand together, so the newest is taken for all.
    folders.splice(0..0, versions.into_iter().rev());
    let all = folders
        .iter()
        .flat_map(|folder| names.iter().map(|name| folder.join(name)));
    all.into_iter().find(|path| path.is_file())
}

/// The user nobody, where the tests are root.
fn unprivileged() -> Option<u32> {
    // SAFETY: it only asks, and cannot fail.
    #[allow(unsafe_code)]
    let me = unsafe { libc::geteuid() };
    (me == 0).then_some(65_534)
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0");
    let address = listener.and_then(|listener| listener.local_addr());
    address
        .expect("the loopback address has a free port")
        .port()
}

/// An authority of the test's own, and a certificate for `localhost` that it signed.
fn certify(write: &dyn Fn(&str, &str)) {
    let mut authority = CertificateParams::new(Vec::new()).expect("an authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let name = "an authority for tests";
    authority.distinguished_name.push(DnType::CommonName, name);
    let key = || KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(authority, key()).expect("an authority");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let own = key();
    let certificate = certificate
        .signed_by(&own, &authority)
        .expect("a signature");
    write("ca.pem", &authority.pem());
    write("certificate.pem", &certificate.pem());
    write("key.pem", &own.serialize_pem());
}
