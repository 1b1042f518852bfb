//! Compilation happens in a process of its own, which ends with its limits; what was compiled is kept
//! and found again.

use hooksieve_tests::{PROBE, Setup, cli_with};

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
    let code = kept[0].clone();
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
