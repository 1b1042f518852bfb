//! The same module, configuration and event burn the same fuel and give the same bytes: again and
//! again, on any thread, whatever ran before.

use hooksieve::sandbox::{Instances, Kept, Limits, Module, Program, Run, Sandbox};
use hooksieve::tenant::encode_config;
use hooksieve_sdk::testing::event;
use hooksieve_sdk::wire::EventHead;
use hooksieve_sdk::wire::json::Data;
use hooksieve_tests::PROBE;

const RUNS: usize = 1_000;

/// The default limits, but for the wall clock: a slow machine must not get a word in.
fn limits() -> Limits {
    Limits {
        wall_clock_ms: 60_000,
        ..Limits::default()
    }
}

/// A program and an event for it.
struct Case {
    name: String,
    program: Program,
    event: (Vec<u8>, Vec<u8>),
}

/// All that a run shows to anyone, except for how long it took.
#[derive(Debug, PartialEq)]
struct Shown {
    outcome: Result<Vec<u8>, hooksieve::sandbox::Error>,
    fuel: u64,
    memory_bytes: u64,
    log: Vec<String>,
}

impl Case {
    fn new(name: &str, module: &Module, config: Vec<u8>, kind: &str, json: &str) -> Self {
        let data = Data::from_json(json.as_bytes()).unwrap();
        let head = EventHead {
            id: "01890a5d-ac96-774b-bcce-b302099a8057",
            source: "test",
            kind,
            subject: Some("octo/api"),
            time: "2026-01-01T00:00:00Z",
            headers: &[("x-github-event".to_owned(), "issues".to_owned())],
        };
        Self {
            name: format!("{name} on {kind}"),
            program: Program::new(module.clone(), config, limits()).unwrap(),
            event: head.encode(&data),
        }
    }

    /// In a new instance.
    fn run(&self) -> Shown {
        self.program.run(&self.event.0, &self.event.1).into()
    }

    /// In an instance that has served before, if there is one.
    fn run_in(&self, instances: &mut Instances) -> Shown {
        let (event, index) = &self.event;
        instances.run(&self.program, event, index).into()
    }
}

impl From<Run> for Shown {
    fn from(run: Run) -> Self {
        Self {
            outcome: run.outcome.map(|decision| decision.encode()),
            fuel: run.fuel,
            memory_bytes: run.memory_bytes,
            log: run.log,
        }
    }
}

/// Room for all of a test's instances.
const KEPT: Kept = Kept {
    count_max: 1_000,
    bytes_max: 1 << 30,
};

fn compile(wasm: &[u8]) -> Module {
    Sandbox::new(limits()).compile(wasm).unwrap()
}

/// Modules that were compiled afresh, with their events; policies with the configuration of their
/// own example.
fn cases() -> Vec<Case> {
    let issue = r#"{"action": "opened", "sender": {"login": "mona", "type": "User"},
        "repository": {"full_name": "octo/api"},
        "issue": {"title": "It burns", "body": "Hi @octocat, the disk is full. 💥", "html_url": "https://example.com/1",
                  "labels": [{"name": "bug"}, {"name": "incident"}]}}"#;
    let mention = r#"{"action": "created", "sender": {"login": "mona", "type": "User"},
        "repository": {"full_name": "octo/api"}, "issue": {"title": "Question"},
        "comment": {"body": "what do you think, @octocat?", "html_url": "https://example.com/2"}}"#;
    let bot = r#"{"action": "created", "sender": {"login": "x", "type": "Bot"}}"#;
    let order = r##"{"name": "#1001", "total_price": "1200.50", "currency": "EUR", "test": false,
        "customer": {"first_name": "Ada", "last_name": "L"}, "financial_status": "paid"}"##;
    let module = compile(PROBE);
    let probe = |json: &str| Case::new("probe", &module, vec![0x80], "test", json);
    let policy = |name: &str| {
        let policy = hooksieve_policies::get(name).unwrap();
        let example: toml::Value = toml::from_str(policy.example).unwrap();
        let config = encode_config(&example["rule"][0]["config"]).unwrap();
        let (name, module) = (name.to_owned(), compile(policy.wasm));
        move |kind: &str, json: &str| Case::new(&name, &module, config.clone(), kind, json)
    };
    let (triage, orders) = (policy("github-triage"), policy("shopify-orders"));
    vec![
        triage("issues.opened", issue),
        triage("issue_comment.created", mention),
        triage("issue_comment.created", bot),
        orders("orders.create", order),
        orders("other", "{}"),
        probe(r#"{"do": "drop"}"#),
        probe(r#"{"do": "error", "message": "as told"}"#),
        probe(r#"{"do": "panic", "code": 3}"#),
        probe(r#"{"do": "log", "lines": ["one", "two", 3]}"#),
        probe(
            r#"{"do": "typed", "name": "n", "count": 3, "tags": ["a", "b"], "nested": {"ratio": 0.1}}"#,
        ),
        probe(
            r#"{"do": "post", "payload": {"deep": [[[1.5, -1, 1e300, null, true, "x"]]], "b": {}}}"#,
        ),
        probe(r#"{"do": "many", "count": 16}"#),
        probe(r#"{"do": "many", "count": 17}"#),
        probe(r#"{"do": "allocate", "bytes": 1000000}"#),
        probe(r#"{"do": "allocate", "bytes": 100000000}"#),
        probe(r#"{"do": "remember"}"#),
    ]
}

#[test]
fn a_thousand_runs_are_one_run() {
    for case in cases() {
        let first = case.run();
        assert!(first.fuel > 0);
        let mut instances = Instances::new(KEPT);
        for _ in 1..RUNS {
            assert_eq!(case.run(), first, "{}", case.name);
            assert_eq!(case.run_in(&mut instances), first, "{}", case.name);
        }
    }
}

#[test]
fn a_compiled_module_is_like_another_of_the_same_bytes() {
    for (one, other) in cases().iter().zip(cases()) {
        assert_eq!(one.run(), other.run(), "{}", one.name);
        assert_eq!(one.program.module().hash(), other.program.module().hash());
        assert_eq!(one.program.config_hash(), other.program.config_hash());
    }
}

/// On several threads at once, each with all the cases in an order of its own, so that every module
/// follows every other on memory that it left behind.
#[test]
fn threads_and_neighbours_change_nothing() {
    let cases = cases();
    let firsts: Vec<_> = cases.iter().map(Case::run).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cases, firsts) = (&cases, &firsts);
            scope.spawn(move || {
                let mut instances = Instances::new(KEPT);
                let count = cases.len();
                // A step without a common divisor with the count visits every case.
                let step = [1, 3, 5, 7][thread];
                for turn in 0..RUNS / 4 {
                    for n in 0..count {
                        let at = (turn + n * step) % count;
                        assert_eq!(cases[at].run(), firsts[at], "{}", cases[at].name);
                        let warm = cases[at].run_in(&mut instances);
                        assert_eq!(warm, firsts[at], "{}", cases[at].name);
                    }
                }
            });
        }
    });
}

/// A rule keeps nothing from one event to the next.
#[test]
fn nothing_is_remembered() {
    let module = compile(PROBE);
    let case = Case::new(
        "probe",
        &module,
        vec![0x80],
        "test",
        r#"{"do": "remember"}"#,
    );
    let mut instances = Instances::new(KEPT);
    for _ in 0..3 {
        let (event, index) = &case.event;
        for run in [
            case.program.run(event, index),
            instances.run(&case.program, event, index),
        ] {
            assert_eq!(run.outcome.unwrap().reason, "seen 0 before");
        }
    }
}

/// The same JSON, written in two ways, costs the same where its meaning is the same; its order is
/// part of it.
#[test]
fn white_space_costs_nothing() {
    let module = compile(PROBE);
    let probe = |json: &str| Case::new("probe", &module, vec![0x80], "test", json);
    let bare = probe(r#"{"do":"post","payload":{"a":[1,2.5,"é"]}}"#);
    let spaced =
        probe("{ \"do\" : \"post\" ,\n\t\"payload\" : { \"a\" : [ 1 , 2.50 , \"\\u00e9\" ] } }");
    assert_eq!(bare.event, spaced.event);
    assert_eq!(bare.run(), spaced.run());
    // The helper for rule authors encodes as the engine does.
    let recorded = event("test", r#"{"do": "drop"}"#);
    assert_eq!(recorded.event().str("/do"), Some("drop"));
}
