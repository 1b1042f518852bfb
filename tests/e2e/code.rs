//! Machine code on the engine's disk: how much a module may become, how much a tenant may have of it, and that
//! it goes with the last that needs it.

use crate::uploads::{As, module_path, start, token};
use hooksieve_tests::{Answer, PROBE, Server, Setup, TOKEN, cli_with, say, until};
use reqwest::Method;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;

/// A module that turns floating-point numbers into integers and back again and again: these two bytes
/// become a hundred times as many, since all that cannot be turned is told apart.
fn trunc_chain(functions: usize, steps: usize) -> Vec<u8> {
    let step = "i64.trunc_f64_s f64.convert_i64_s ";
    let function = format!("(func (param f64) local.get 0 {} drop)", step.repeat(steps));
    let wat = format!(
        r#"(module
          (memory (export "memory") 1)
          (func (export "hooksieve_abi_1"))
          (func (export "hooksieve_reserve") (param i32) (result i32) (i32.const 256))
          (func (export "hooksieve_decide") (param i32 i32 i32 i32) (result i64) (i64.const 0))
          {})"#,
        function.repeat(functions)
    );
    wat::parse_str(wat).unwrap()
}

/// The same module with another SHA-256.
fn numbered(wasm: &[u8], number: u8) -> Vec<u8> {
    [wasm, b"\0\x03\x01n", &[number]].concat()
}

fn policy() -> &'static [u8] {
    hooksieve_policies::get("github-triage").unwrap().wasm
}

fn sha256(tenant: &str, wasm: &[u8]) -> String {
    let path = module_path(tenant, wasm);
    path.rsplit('/').next().unwrap().to_owned()
}

/// The modules that have machine code in an engine's folder.
fn kept(data: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(data.join("modules")).unwrap();
    let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "secret").collect()
}

fn only(wasm: &[&[u8]]) -> BTreeSet<String> {
    wasm.iter().map(|wasm| sha256("acme", wasm)).collect()
}

async fn delete(author: &As<'_>, tenant: &str, wasm: &[u8]) -> Answer {
    let path = module_path(tenant, wasm);
    author.call(Method::DELETE, &path, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_becomes_much_code_is_refused_and_leaves_nothing() {
    let (_receiver, setup, server) = start("").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    let chain = trunc_chain(2, 8_000);
    for _ in 0..2 {
        let refused = author.upload("acme", &chain).await;
        let told = refused.problem(422, "module-refused");
        assert!(
            told.contains("bytes of machine code, the limit for its size is"),
            "{told}"
        );
        assert!(told.contains("written out many times"), "{told}");
        assert_eq!(kept(&setup.data()), only(&[PROBE]));
    }
    // As the command line says it, which compiles by itself.
    let file = setup.path().join("chain.wasm");
    std::fs::write(&file, &chain).unwrap();
    let checked = cli_with(&["check", "--json", file.to_str().unwrap()], &[], b"");
    assert_eq!(
        checked.json_lines()[0]["kind"],
        "code",
        "{}",
        checked.stdout
    );
    server.end().await;

    // An absolute limit beside the one for its size, from both sides.
    for (max, kind) in [
        (code_bytes(policy()), None),
        (code_bytes(policy()) - 1, Some("code")),
    ] {
        let file = setup.path().join("policy.wasm");
        std::fs::write(&file, policy()).unwrap();
        let max = max.to_string();
        let variables = [("HOOKSIEVE_COMPILE__CODE_BYTES_MAX", max.as_str())];
        let checked = cli_with(
            &["check", "--json", file.to_str().unwrap()],
            &variables,
            b"",
        );
        let checked = checked.json_lines().remove(0);
        assert_eq!(checked["kind"].as_str(), kind, "{checked}");
    }
}

/// What a module becomes here.
fn code_bytes(wasm: &[u8]) -> u64 {
    let sandbox = hooksieve::sandbox::Sandbox::new(hooksieve::sandbox::Limits::default());
    sandbox.compile(wasm).unwrap().code_bytes()
}

/// Rules as they are written stay far from what is refused.
#[test]
fn what_people_write_becomes_less_than_half_of_what_it_may() {
    let policies = hooksieve_policies::ALL.iter();
    let policies = policies.map(|policy| (policy.name, policy.wasm));
    let guests = hooksieve_tests::LEAN.into_iter();
    let others = [
        ("probe", PROBE),
        ("command", hooksieve_tests::TRIAGE_COMMAND),
    ];
    let mut figures = String::new();
    for (name, wasm) in policies.chain(guests).chain(others) {
        let code = code_bytes(wasm);
        let limit = 32 * wasm.len() as u64 + (256 << 10);
        let times = code as f64 / wasm.len() as f64;
        figures += &format!(
            "{name}: {} B of wasm, {code} B of code, x{times:.1}\n",
            wasm.len()
        );
        assert!(2 * code < limit, "{name}: {code} of {limit}");
    }
    say(&figures);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_goes_with_the_last_module_that_has_it() {
    let (_receiver, setup, server) = start("").await;
    let operator = As(&server, TOKEN.to_owned());
    for _ in 0..20 {
        let uploaded = operator.upload("acme", policy()).await;
        assert_eq!(uploaded.status, 201, "{}", uploaded.body);
        let module = uploaded.json();
        let usage = server.get("/v1/tenants/acme/usage").await.json();
        assert_eq!(usage["code_bytes"]["used"], module["code_bytes"]);
        assert!(module["code_bytes"].as_u64() > module["size_bytes"].as_u64());
        assert_eq!(kept(&setup.data()), only(&[PROBE, policy()]));
        assert_eq!(delete(&operator, "acme", policy()).await.status, 200);
        assert_eq!(kept(&setup.data()), only(&[PROBE]));
    }
    let usage = server.get("/v1/tenants/acme/usage").await.json();
    assert_eq!(usage["code_bytes"]["used"], 0);

    // Two tenants with the same one, and a tenant that goes as a whole.
    for tenant in ["acme", "other"] {
        assert_eq!(operator.upload(tenant, policy()).await.status, 201);
    }
    assert_eq!(delete(&operator, "acme", policy()).await.status, 200);
    assert_eq!(kept(&setup.data()), only(&[PROBE, policy()]));
    assert_eq!(delete(&operator, "other", policy()).await.status, 200);
    assert_eq!(kept(&setup.data()), only(&[PROBE]));
    let made = operator
        .call(Method::PUT, "/v1/tenants/third", Some(json!({})))
        .await;
    assert!(made.status < 300, "{}", made.body);
    assert_eq!(operator.upload("third", policy()).await.status, 201);
    let gone = operator
        .call(Method::DELETE, "/v1/tenants/third", None)
        .await;
    assert_eq!(gone.status, 200, "{}", gone.body);
    assert_eq!(kept(&setup.data()), only(&[PROBE]));

    // One that a rule in a file has stays, whoever uploads and deletes it.
    assert_eq!(operator.upload("acme", PROBE).await.status, 201);
    assert_eq!(delete(&operator, "acme", PROBE).await.status, 200);
    assert_eq!(kept(&setup.data()), only(&[PROBE]));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_a_tenants_modules_is_bounded() {
    let [one, two, three] = [1, 2, 3].map(|number| numbered(policy(), number));
    let code = code_bytes(&one);
    let config = format!("[uploads]\ncode_bytes_max = {}\n", 2 * code);
    let (_receiver, setup, server) = start(&config).await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    assert_eq!(author.upload("acme", &one).await.status, 201);
    assert_eq!(author.upload("acme", &two).await.status, 201);
    for _ in 0..2 {
        let refused = author.upload("acme", &three).await;
        let told = refused.problem(403, "quota");
        assert!(told.contains("code_bytes_max of [uploads]"), "{told}");
        assert_eq!(kept(&setup.data()), only(&[PROBE, &one, &two]));
    }
    // It is the tenant's own, and there is room again when something goes.
    let operator = As(&server, TOKEN.to_owned());
    assert_eq!(operator.upload("other", &three).await.status, 201);
    assert_eq!(delete(&author, "acme", &one).await.status, 200);
    assert_eq!(author.upload("acme", &three).await.status, 201);
    assert_eq!(kept(&setup.data()), only(&[PROBE, &two, &three]));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_leaves_only_what_is_used() {
    let (_receiver, setup, server) = start("").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    assert_eq!(author.upload("acme", policy()).await.status, 201);
    let body = json!({
        "module": sha256("acme", policy()), "events": ["*"], "channels": ["hook"],
        "config": { "channel": "hook" },
    });
    // Whether or not it starts with that: it is the tenant's.
    author
        .call(
            Method::POST,
            "/v1/tenants/acme/rules/own/versions",
            Some(body),
        )
        .await;
    server.end().await;
    // As an engine that was killed between compiling and recording leaves it, and an earlier engine.
    let modules = setup.data().join("modules");
    let orphan = sha256("acme", b"nobody's");
    std::fs::create_dir(modules.join(&orphan)).unwrap();
    std::fs::write(modules.join(&orphan).join("code"), [0; 4_096]).unwrap();
    std::fs::write(modules.join("a".repeat(64)), [0; 4_096]).unwrap();
    let server = setup.start().await;
    assert_eq!(kept(&setup.data()), only(&[PROBE, policy()]));
    server.end().await;
    // Without its file, the tenant rests; what it has uploaded is there when it comes back.
    let file = setup.tenants().join("acme.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let server = setup.start().await;
    assert_eq!(kept(&setup.data()), only(&[PROBE, policy()]));
    // A rule that is in no file any more.
    let other = setup.tenants().join("other.toml");
    let all = std::fs::read_to_string(&other).unwrap();
    std::fs::write(&other, all.split("[[rule]]").next().unwrap()).unwrap();
    server.hang_up();
    until("the file's rule to go", async || {
        (kept(&setup.data()) == only(&[policy()])).then_some(())
    })
    .await;
    std::fs::write(&file, text).unwrap();
    server.hang_up();
    until("the tenant to come back", async || {
        (kept(&setup.data()) == only(&[PROBE, policy()])).then_some(())
    })
    .await;
    server.end().await;
}

/// The last room on the disk is the senders'.
#[tokio::test(flavor = "multi_thread")]
async fn no_module_is_compiled_on_a_disk_that_is_nearly_full() {
    let setup = || {
        Setup::new().tenant(
            "acme",
            "[[rule]]\nname = 'probe'\nmodule = 'probe.wasm'\nevents = ['*']\n",
        )
    };
    let upload = async |setup: &Setup, expected: Option<&str>| {
        let server: Server = setup.start().await;
        let operator = As(&server, TOKEN.to_owned());
        let answer = operator.upload("acme", policy()).await;
        match expected {
            None => assert_eq!(answer.status, 201, "{}", answer.body),
            Some(what) => {
                let told = answer.problem(503, "store-full");
                assert!(told.contains(what), "{told}");
                assert_eq!(answer.header("retry-after"), "60");
                assert!(server.said().contains("disk_free_bytes_min of [store]"));
            }
        }
        // Where nothing has to be compiled, nothing is in the way.
        let known = operator.upload("acme", PROBE).await;
        assert_eq!(known.status, 201, "{}", known.body);
        server.stop().await;
    };
    let disk = setup().config("[store]\ndisk_free_bytes_min = 1_000_000\n");
    upload(&disk, None).await;
    // More than any disk has.
    let disk = setup().config(&format!("[store]\ndisk_free_bytes_min = {}\n", 1_u64 << 50));
    upload(
        &disk,
        Some("the disk is nearly full, so no module is compiled"),
    )
    .await;
}
