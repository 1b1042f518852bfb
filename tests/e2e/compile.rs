//! Compilation happens in a process of its own, which ends with its limits, and within a budget of each
//! tenant's; what was compiled is kept and found again.

use crate::flow::join_all;
use crate::uploads::{As, module_path};
use hooksieve_tests::{PROBE, Server, Setup, TOKEN, cli_with, say};
use reqwest::Method;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A module within every limit on what it declares, on which the compiler works for long and takes
/// much: one function of almost a megabyte whose values all depend on each other.
fn bomb() -> Vec<u8> {
    let step = "(local.set $n (i32.add (local.get $n) (i32.load (local.get $n))))";
    let wat = format!(
        r#"(module
          (memory (export "memory") 1)
          (func (export "hooksieve_abi_1"))
          (func (export "hooksieve_reserve") (param i32) (result i32) (i32.const 256))
          (func (export "hooksieve_decide") (param i32 i32 i32 i32) (result i64)
            (local $n i32) {} (i64.const 0)))"#,
        step.repeat(100_000)
    );
    wat::parse_str(wat).unwrap()
}

/// Checks the bomb with this setting; gives the kind of refusal and the sentence.
fn refused_with(variable: &str, value: &str) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bomb.wasm");
    std::fs::write(&file, bomb()).unwrap();
    let args = ["check", "--json", file.to_str().unwrap()];
    let output = cli_with(&args, &[(variable, value)], b"");
    assert_eq!(output.code, 1, "{}", output.stderr);
    let line = output.json_lines().remove(0);
    assert_eq!(line["accepted"], false);
    let text = |key: &str| line[key].as_str().unwrap().to_owned();
    (text("kind"), text("error"))
}

#[test]
fn a_compile_bomb_ends_with_its_limit() {
    let (kind, error) = refused_with("HOOKSIEVE_COMPILE__CPU_S", "1");
    assert_eq!(kind, "compile_cpu", "{error}");
    assert!(
        error.contains("more than the 1 s of processor time"),
        "{error}"
    );
    let (kind, error) = refused_with("HOOKSIEVE_COMPILE__WALL_CLOCK_MS", "300");
    assert_eq!(kind, "compile_time", "{error}");
    let memory = (256 << 20).to_string();
    let (kind, error) = refused_with("HOOKSIEVE_COMPILE__MEMORY_BYTES", &memory);
    assert_eq!(kind, "compile_memory", "{error}");
}

/// A module that is kept is not compiled again, and its code is authenticated before it is run.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_compiled_once() {
    let tenant = "[[source]]\nname = 'hook'\nkind = 'json'\nopen = true\ntype = 'test'\n
        [[rule]]\nname = 'probe'\nmodule = 'probe.wasm'\nevents = ['*']\n";
    let setup = Setup::new().tenant("acme", tenant);
    std::fs::write(setup.tenants().join("probe.wasm"), PROBE).unwrap();
    let decide = async || {
        let server = setup.start().await;
        let event = server.post_json("/in/acme/hook", r#"{"do": "drop"}"#).await;
        let story = server.settled(&event.id()).await;
        assert_eq!(story["decisions"][0]["reason"], "asked to drop", "{story}");
        let said = server.said();
        server.stop().await;
        said
    };
    decide().await;
    let modules = setup.data().join("modules");
    let files = || {
        let files = std::fs::read_dir(&modules).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    };
    let kept = files();
    assert_eq!(kept.len(), 2, "the secret and one module: {kept:?}");
    let mut codes = std::fs::read_dir(&kept[0]).unwrap();
    let code = codes.next().unwrap().unwrap().path();
    assert!(codes.next().is_none());
    let written = || std::fs::metadata(&code).unwrap().modified().unwrap();
    let first = written();
    decide().await;
    assert_eq!((files(), written()), (kept, first), "compiled again");

    // Someone's own code in its place is not run.
    let mut bytes = std::fs::read(&code).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(&code, bytes).unwrap();
    let said = decide().await;
    assert!(said.contains("is damaged or was not made here"), "{said}");
    assert_ne!(written(), first);
}

/// Tenants without files, made by the operator.
async fn tenants(server: &Server, names: &[&str]) {
    let operator = As(server, TOKEN.to_owned());
    for name in names {
        let path = format!("/v1/tenants/{name}");
        let made = operator.call(Method::PUT, &path, Some(json!({}))).await;
        assert_eq!(made.status, 201, "{}", made.body);
    }
}

/// The same module with another SHA-256.
fn numbered(wasm: &[u8], number: usize) -> Vec<u8> {
    [wasm, b"\0\x0a\x01n", &(number as u64).to_le_bytes()].concat()
}

/// Four tenants have the compiler work for as long as it may, again and again. A fifth one's rules are
/// compiled all the same.
#[tokio::test(flavor = "multi_thread")]
async fn compile_bombs_of_others_keep_nobody_waiting() {
    let setup = Setup::new().config("[compile]\ncpu_s = 2\nwall_clock_ms = 600_000\n");
    let server = setup.start().await;
    let bombers = ["a", "b", "c", "d"];
    tenants(&server, &bombers).await;
    tenants(&server, &["good"]).await;
    let operator = As(&server, TOKEN.to_owned());
    let (bomb, done, ended) = (bomb(), AtomicBool::new(false), AtomicUsize::new(0));
    let bombs = bombers.map(async |tenant| {
        let mut told = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let answer = operator.upload(tenant, &bomb).await;
            if answer.status == 422 {
                let why = answer.problem(422, "module-refused");
                assert!(why.contains("of processor time"), "{why}");
                ended.fetch_add(1, Ordering::Relaxed);
            }
            told.push(answer.status);
        }
        told
    });
    let good = async {
        let mut took = Vec::new();
        // The first four that nobody knew for bombs, and some after them.
        while ended.load(Ordering::Relaxed) < 5 {
            let wasm = numbered(PROBE, took.len());
            let began = Instant::now();
            let uploaded = operator.upload("good", &wasm).await;
            took.push(began.elapsed());
            assert_eq!(uploaded.status, 201, "{}: {took:?}", uploaded.body);
            let path = module_path("good", &wasm);
            let gone = operator.call(Method::DELETE, &path, None).await;
            assert_eq!(gone.status, 200, "{}", gone.body);
        }
        done.store(true, Ordering::Relaxed);
        took
    };
    let (took, answered) = tokio::join!(good, join_all(bombs.into_iter()));
    let longest = took.iter().max().unwrap();
    say(&format!(
        "beside four tenants' bombs, {} uploads of another: the longest took {longest:.1?}; the bombs were answered {answered:?}",
        took.len()
    ));
    assert!(*longest < Duration::from_secs(10), "{took:?}");
    server.end().await;
}

/// What a tenant may have compiled in an hour is charged with what it took, refused or not; what is compiled
/// already needs none of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_had_too_much_compiled_is_told_when_to_come_again() {
    let config = "[compile]\ncpu_s = 1\n[uploads]\ncompile_s_per_hour = 6\n";
    let setup = Setup::new().config(config);
    let server = setup.start().await;
    tenants(&server, &["bomber", "good"]).await;
    let operator = As(&server, TOKEN.to_owned());
    assert_eq!(operator.upload("bomber", PROBE).await.status, 201);
    let mut refused = 0;
    let told = loop {
        let answer = operator.upload("bomber", &bomb()).await;
        if answer.status != 422 {
            break answer;
        }
        refused += 1;
        assert!(refused < 7, "each takes a second");
    };
    assert!(refused >= 2, "there was time for that: {}", told.body);
    let why = told.problem(429, "compile-quota");
    assert!(why.contains("compile_s_per_hour of [uploads]"), "{why}");
    let wait_s: u64 = told.header("retry-after").parse().unwrap();
    assert!((1..3_600).contains(&wait_s), "{wait_s}");

    // What is there is looked at, made a version and tried; others are not concerned.
    assert_eq!(operator.upload("bomber", PROBE).await.status, 200);
    let sha256 = module_path("", PROBE)
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    let path = "/v1/tenants/bomber/rules/own/versions";
    let version = json!({ "module": sha256, "events": ["*"], "as": "live" });
    let made = operator.call(Method::POST, path, Some(version)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let trial = json!({
        "module": sha256, "payload": { "do": "drop" }, "type": "test", "source": "hook",
    });
    let tried = operator
        .call(Method::POST, "/v1/tenants/bomber/try", Some(trial))
        .await;
    assert_eq!(tried.status, 200, "{}", tried.body);
    assert_eq!(
        operator.upload("good", &numbered(PROBE, 1)).await.status,
        201
    );
    server.end().await;
}
