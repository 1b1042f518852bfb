//! What lies on the disk: who may read what the engine and its commands write, what is not followed, and what is
//! no tenant's file.

use hooksieve_tests::{Receiver, Server, Setup, TOKEN, cli, cli_with, program, until};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const TENANT: &str = "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n";

fn mode(path: &Path) -> u32 {
    let about =
        std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    about.permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// What others may do with anything below a folder that they can come to.
fn open_to_others(folder: &Path) -> Vec<PathBuf> {
    let mut open = Vec::new();
    if mode(folder) & 0o077 == 0 {
        return open;
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            open.extend(open_to_others(&path));
        } else if mode(&path) & 0o077 != 0 {
            open.push(path);
        }
    }
    open
}

/// A command with a umask that takes nothing away.
fn with_open_umask(args: &[&str], server: Option<&Server>) {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0; exec \"$0\" \"$@\""]);
    command.arg(program()).args(args);
    if let Some(server) = server {
        command
            .env("HOOKSIEVE_URL", &server.base)
            .env("HOOKSIEVE_TOKEN", TOKEN);
    }
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_holds_payloads_or_secrets_is_its_owners_alone() {
    let setup = Setup::new()
        .tenant("acme", TENANT)
        .without_env("HOOKSIEVE_OPERATOR_TOKEN");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let arg = |name: &str| at(name).to_str().unwrap().to_owned();
    let server = setup.start().await;
    server
        .post_json("/in/acme/open", r#"{"a":"secret"}"#)
        .await
        .id();
    let token = std::fs::read_to_string(setup.data().join("operator-token")).unwrap();
    server.stop().await;
    assert_eq!(open_to_others(&setup.data()), [] as [PathBuf; 0]);

    let setup = setup.env("HOOKSIEVE_OPERATOR_TOKEN", TOKEN);
    let server = setup.start().await;
    with_open_umask(&["backup", &arg("backup")], Some(&server));
    with_open_umask(
        &["record", &arg("events.hsr"), "--tenant", "acme"],
        Some(&server),
    );
    server.stop().await;
    let data = setup.data().to_str().unwrap().to_owned();
    with_open_umask(&["store", "export", &arg("export"), "--data", &data], None);
    with_open_umask(
        &["store", "import", &arg("export"), "--data", &arg("new")],
        None,
    );
    for file in ["backup", "events.hsr", "export"] {
        assert_eq!(mode(&at(file)), 0o600, "{file}");
    }
    for made in ["new", "new/store"] {
        assert_eq!(mode(&at(made)), 0o700, "{made}");
    }

    // What an earlier version or a hand left open is closed at the next start, which says so.
    for (name, lies) in [
        ("operator-token", 0o644),
        ("store", 0o755),
        ("modules", 0o755),
        ("link-key", 0o664),
    ] {
        set_mode(&setup.data().join(name), lies);
    }
    set_mode(&setup.data(), 0o777);
    let setup = setup.without_env("HOOKSIEVE_OPERATOR_TOKEN");
    let server = setup.start().await;
    let said = until("the log to say so", || async {
        let said = server.said();
        let closed = said.matches("it was open to other users").count();
        let warned = said.contains("may put files into the data folder");
        (closed == 4 && warned).then_some(said)
    })
    .await;
    server.stop().await;
    assert_eq!(open_to_others(&setup.data()), [] as [PathBuf; 0], "{said}");
    assert!(!said.contains(token.trim()), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_place_of_a_file_of_the_engines_is_not_followed() {
    let setup = Setup::new()
        .tenant("acme", TENANT)
        .without_env("HOOKSIEVE_OPERATOR_TOKEN");
    setup.start().await.stop().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("another's");
    for name in [
        "operator-token",
        "link-key",
        "secrets-key",
        "store/lock",
        "store/db",
        "store/conf",
        "modules/secret",
    ] {
        let path = setup.data().join(name);
        let kept = path.with_extension("kept");
        std::fs::rename(&path, &kept).unwrap();
        // The start would go by what stands there, or write over it.
        let text = "a text of somebody else's, which is longer than a token";
        std::fs::write(&target, text).unwrap();
        symlink(&target, &path).unwrap();
        let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
        assert_eq!(code, 2, "{name}: {said}");
        let inner = name.rsplit('/').next().unwrap();
        assert!(
            said.contains("symbolic link") && said.contains(inner),
            "{name}: {said}"
        );
        assert_eq!(std::fs::read_to_string(&target).unwrap(), text, "{name}");
        // Nor is one that leads nowhere made a file of.
        std::fs::remove_file(&target).unwrap();
        let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
        assert_eq!(code, 2, "{name}: {said}");
        assert!(!target.exists(), "{name}");
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&kept, &path).unwrap();
    }
    setup.start().await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_goes_into_no_file_that_a_link_names() {
    let setup = Setup::new().tenant("acme", TENANT);
    let server = setup.start().await;
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("hooksieve");
    std::fs::create_dir(&folder).unwrap();
    let target = home.path().join("another's");
    std::fs::write(&target, "another's").unwrap();
    symlink(&target, folder.join("login.toml")).unwrap();
    let env = [("XDG_CONFIG_HOME", home.path().to_str().unwrap())];
    let signed_in = cli_with(&["login", &server.base], &env, TOKEN.as_bytes());
    assert_eq!(signed_in.code, 0, "{}", signed_in.stderr);
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "another's");
    assert_eq!(mode(&folder.join("login.toml")), 0o600);
    server.stop().await;
}

/// Leaves beside a file what editors and systems leave there: a lock that leads nowhere, and bytes.
fn leave_dot_files(folder: &Path, file: &str) {
    symlink("somebody@somewhere.1234", folder.join(format!(".#{file}"))).unwrap();
    std::fs::write(folder.join(format!("._{file}")), [0, 5, 0x16, 7, 0xff]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dot_file_is_no_tenants() {
    let hook = Receiver::start().await;
    let setup = Setup::new().tenant("acme", TENANT);
    leave_dot_files(&setup.tenants(), "acme.toml");
    let server = setup.start().await;
    until("the log to name what is left out", || async {
        server.said().contains("._acme.toml").then_some(())
    })
    .await;
    let url = hook.url("/hook");
    let channel = format!("{TENANT}[[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{url}'\n");
    std::fs::write(setup.tenants().join("acme.toml"), channel).unwrap();
    server.hang_up();
    until("the files to be read again", || async {
        server
            .said()
            .contains("the tenants' files are read again")
            .then_some(())
    })
    .await;
    server.stop().await;

    // `apply` reads such a folder too, and `replay` one with events.
    let folder = tempfile::tempdir().unwrap();
    leave_dot_files(folder.path(), "event.json");
    std::fs::write(folder.path().join("event.json"), r#"{"a":1}"#).unwrap();
    let events = folder.path().to_str().unwrap();
    let module = setup.tenants().join("probe.wasm");
    let module = module.to_str().unwrap();
    let replayed = cli(&["replay", "--rule", module, "--type", "thing", events]);
    assert_eq!(replayed.code, 0, "{}{}", replayed.stdout, replayed.stderr);
    let server = Setup::new().start().await;
    let files = setup.tenants().to_str().unwrap().to_owned();
    let env = [
        ("HOOKSIEVE_URL", server.base.as_str()),
        ("HOOKSIEVE_TOKEN", TOKEN),
    ];
    let applied = cli_with(&["apply", "-f", &files, "--dry-run"], &env, b"");
    assert_eq!(applied.code, 0, "{}", applied.stderr);
    server.stop().await;
}
