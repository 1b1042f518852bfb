//! A guest in parts, each of which a test can make hostile.

use hooksieve::sandbox::{Error, Instances, Kept, Limits, Program, Run, Sandbox};
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{Decision, EventHead, pack};
use hooksieve_tests::PROBE;
use std::sync::OnceLock;

/// The default limits, but for the wall clock: a slow machine must not get a word in.
pub(crate) fn limits() -> Limits {
    Limits {
        wall_clock_ms: 60_000,
        ..Limits::default()
    }
}

/// What the guests below answer when nothing stopped them.
pub(crate) const OK: &[u8] = b"\x82\xa6reason\xa2ok\xa7actions\x90";
/// Where that answer stands in their memory.
pub(crate) const OK_AT: u32 = 16;

/// A module in parts, each of which a test can make hostile.
pub(crate) struct Guest {
    pub(crate) imports: String,
    pub(crate) memory: String,
    pub(crate) reserve: String,
    /// The body of `hooksieve_init`; there is none without.
    pub(crate) init: Option<String>,
    /// The body of `hooksieve_decide`; it leaves an i64.
    pub(crate) decide: String,
    /// Anything else at the top level.
    pub(crate) extra: String,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            imports: String::new(),
            memory: "(memory (export \"memory\") 1)".into(),
            reserve: "(i32.const 256)".into(),
            init: None,
            decide: ok(),
            extra: String::new(),
        }
    }
}

/// Leaves the place of [`OK`].
pub(crate) fn ok() -> String {
    format!("(i64.const {})", pack(OK_AT, OK.len() as u32))
}

pub(crate) fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

/// A guest that does this and then answers well.
pub(crate) fn doing(what: &str) -> Guest {
    Guest {
        decide: format!("{what} {}", ok()),
        ..Guest::default()
    }
}

impl Guest {
    pub(crate) fn wat(&self) -> String {
        let init = self.init.as_ref().map(|body| {
            format!(
                "(func (export \"hooksieve_init\") (param i32 i32) (result i64) (local $n i32) {body})"
            )
        });
        format!(
            "(module {imports} {memory}
               (func (export \"hooksieve_abi_1\"))
               (func (export \"hooksieve_reserve\") (param i32) (result i32) {reserve})
               {init}
               (func (export \"hooksieve_decide\") (param i32 i32 i32 i32) (result i64)
                 (local $n i32) {decide})
               {extra}
               (data (i32.const {OK_AT}) \"{answer}\"))",
            imports = self.imports,
            memory = self.memory,
            reserve = self.reserve,
            init = init.unwrap_or_default(),
            decide = self.decide,
            extra = self.extra,
            answer = escaped(OK),
        )
    }

    pub(crate) fn wasm(&self) -> Vec<u8> {
        wasm(&self.wat())
    }

    #[track_caller]
    pub(crate) fn program(&self, limits: &Limits) -> Program {
        match self.try_program(limits, vec![0x80]) {
            Ok(program) => program,
            Err(error) => panic!("{error}: {}", self.wat()),
        }
    }

    #[track_caller]
    pub(crate) fn try_program(&self, limits: &Limits, config: Vec<u8>) -> Result<Program, Error> {
        let sandbox = Sandbox::new(limits.clone());
        let module = match sandbox.compile(self.wasm()) {
            Ok(module) => module,
            Err(refused) => panic!("refused: {refused}: {}", self.wat()),
        };
        Program::new(module, config, limits.clone())
    }

    #[track_caller]
    pub(crate) fn run_within(&self, limits: &Limits) -> Run {
        let (event, index) = event();
        let program = self.program(limits);
        let run = program.run(&event, &index);
        // Whatever it did to its instance, the next event sees nothing of it.
        let mut instances = Instances::new(KEPT);
        for _ in 0..3 {
            let warm = instances.run(&program, &event, &index);
            assert_eq!(shown(&warm), shown(&run), "{}", self.wat());
        }
        run
    }

    #[track_caller]
    pub(crate) fn run(&self) -> Run {
        self.run_within(&limits())
    }

    #[track_caller]
    pub(crate) fn decides(&self) -> Run {
        self.decides_within(&limits())
    }

    #[track_caller]
    pub(crate) fn decides_within(&self, limits: &Limits) -> Run {
        let run = self.run_within(limits);
        assert_eq!(run.outcome, Ok(Decision::drop("ok")));
        run
    }

    #[track_caller]
    pub(crate) fn fails(&self) -> Error {
        self.fails_within(&limits())
    }

    #[track_caller]
    pub(crate) fn fails_within(&self, limits: &Limits) -> Error {
        match self.run_within(limits).outcome {
            Err(error) => error,
            Ok(decision) => panic!("it decided {decision:?}: {}", self.wat()),
        }
    }
}

#[track_caller]
pub(crate) fn wasm(wat: &str) -> Vec<u8> {
    match wat::parse_str(wat) {
        Ok(wasm) => wasm,
        Err(error) => panic!("{error}"),
    }
}

/// Room for all.
pub(crate) const KEPT: Kept = Kept {
    count_max: 10,
    bytes_max: 1 << 30,
};

/// All of a run but how long it took.
pub(crate) fn shown(run: &Run) -> (&Result<Decision, Error>, u64, u64, &[String]) {
    (&run.outcome, run.fuel, run.memory_bytes, &run.log)
}

/// The event that every guest here is given.
pub(crate) fn event() -> (Vec<u8>, Vec<u8>) {
    let data = Data::from_json(br#"{"do": "drop"}"#).unwrap();
    let head = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "test",
        kind: "test",
        subject: None,
        time: "2026-01-01T00:00:00Z",
        headers: &[],
    };
    head.encode(&data)
}

/// The process is as it was: a good rule decides, with the fuel that it always burnt.
#[track_caller]
pub(crate) fn all_is_well() {
    static GOOD: OnceLock<(Program, u64)> = OnceLock::new();
    let (event, index) = event();
    let (program, fuel) = GOOD.get_or_init(|| {
        let limits = self::limits();
        let module = Sandbox::new(limits.clone()).compile(PROBE).unwrap();
        let program = Program::new(module, vec![0x80], limits).unwrap();
        let fuel = program.run(&event, &index).fuel;
        (program, fuel)
    });
    let run = program.run(&event, &index);
    assert_eq!(run.outcome, Ok(Decision::drop("asked to drop")));
    assert_eq!(run.fuel, *fuel);
}

pub(crate) const FOREVER: &str = "(loop $l (br $l))";
pub(crate) const FUEL: Error = Error::Fuel { limit: 10_000_000 };
/// The import, for [`Guest::imports`].
pub(crate) const LOG: &str = "(import \"hooksieve\" \"log\" (func $log (param i32 i32 i32)))";
