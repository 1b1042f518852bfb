//! Random modules within the contract, and what is random about their events and limits.
//!
//! wasm-smith makes the functions, globals, tables and segments. Around them stands what a rule has
//! to have, written so that the random part runs and shows what it did:
//!
//! - `hooksieve_decide` reads from the event which functions to call and with what, how much to grow,
//!   how deep to call itself, what to log and what to answer.
//! - Everything that a function gives goes into a running hash, which is never cleared; and the state
//!   of an instance (globals, tables, memory) goes into the log before the first and after the last
//!   call. So whatever an event leaves behind changes what the next one shows.

use arbitrary::{Result, Unstructured};
use std::fmt::Write as _;
use wasm_smith::{Config, InstructionKind, InstructionKinds, MemoryOffsetChoices};
use wasmparser::{CompositeInnerType, FuncType, Parser, Payload, RefType, ValType};

/// How many of the random functions an event can call.
const CALLED_MAX: usize = 8;

/// The most pages that a memory starts with. From 17 on an image is kept as a file.
pub const PAGES_MAX: u64 = 40;

/// Where things stand in the first page of memory.
const DECISION_AT: u32 = 16;
const ERROR_AT: u32 = 48;
const STATE_AT: u32 = 80;
const INPUT_AT: u32 = 1_024;

/// Bytes that a log line of an instance's state has: the running hash, one of globals and tables, and
/// one of memory, 8 bytes each.
pub const STATE_BYTES: usize = 24;

const DECISION: &[u8] = b"\x82\xa6reason\xa2ok\xa7actions\x90";
const ERROR: &[u8] = b"\x81\xa5error\xa2no";

/// A module within the contract. Of as many bytes as it is given, the same module each time.
///
/// # Errors
/// When the bytes run out at a place where nothing can be made of none.
pub fn module(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let shape = Shape::random(u)?;
    let body = wasm_smith::Module::new(shape.config(), u)?.to_bytes();
    Ok(assembled(&shape.around(&body, u)?))
}

/// A module within the contract that is quick to compile: one to three short functions, each called
/// for every event, and nothing around them that shows what state they leave.
///
/// # Errors
/// As [`module`].
pub fn small(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let shape = Shape {
        instructions: u.int_in_range(3..=12)?,
        ..Shape::random(u)?
    };
    let config = Config {
        max_funcs: 3,
        max_globals: 2,
        max_tables: 1,
        max_types: 4,
        min_funcs: 1,
        min_globals: 1,
        min_tables: 0,
        min_types: 2,
        ..shape.config()
    };
    let body = wasm_smith::Module::new(config, u)?.to_bytes();
    Ok(assembled(&shape.thinly_around(&body)))
}

fn assembled(wat: &str) -> Vec<u8> {
    wat::parse_str(wat).unwrap_or_else(|error| panic!("{error}:\n{wat}"))
}

/// An event: which functions it calls is in its first bytes.
///
/// # Errors
/// As [`module`].
pub fn event(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let bytes = match u.int_in_range(0..=20)? {
        0 => 0,
        1 => u.int_in_range(0..=40)?,
        2 => u.int_in_range(20_000..=70_000)?,
        3 => u.int_in_range(100_000..=200_000)?,
        _ => u.int_in_range(40..=600)?,
    };
    // A pattern fills what the generator's bytes do not reach.
    let fill: u8 = u.arbitrary()?;
    let mut event: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(fill)).collect();
    let given = event.len().min(64);
    u.fill_buffer(&mut event[..given])?;
    // Fewer functions at a time: of eight that might trap, few reach the end.
    let mask: u32 = u.arbitrary::<u32>()? | 0xff;
    for (byte, mask) in event.iter_mut().zip(mask.to_le_bytes()) {
        *byte &= mask;
    }
    Ok(event)
}

/// What is decided about a module before its functions are made.
struct Shape {
    pages: u64,
    pages_max: Option<u64>,
    bulk: bool,
    /// Whether its tables can be changed: then it gets a new instance for every event.
    tables_change: bool,
    traps: bool,
    floats: bool,
    instructions: usize,
    init: bool,
    /// How much is done in a straight line on the way up from deep calls, and at their bottom.
    tail: usize,
    line: usize,
    /// The import a second time, as some linkers write it.
    twice: bool,
}

impl Shape {
    fn random(u: &mut Unstructured<'_>) -> Result<Self> {
        let pages = match u.int_in_range(0..=9)? {
            0..=4 => 1,
            5..=7 => u.int_in_range(2..=4)?,
            8 => u.int_in_range(5..=16)?,
            _ => u.int_in_range(17..=PAGES_MAX)?,
        };
        let pages_max = match u.ratio(1, 3)? {
            true => Some(pages + u.int_in_range(0..=8)?),
            false => None,
        };
        Ok(Self {
            pages,
            pages_max,
            bulk: u.ratio(2, 3)?,
            tables_change: u.ratio(1, 3)?,
            traps: u.ratio(1, 2)?,
            floats: u.ratio(2, 3)?,
            instructions: u.int_in_range(5..=40)?,
            init: u.ratio(1, 2)?,
            tail: *u.choose(&[0, 0, 1, 3, 12, 60, 400])?,
            line: *u.choose(&[0, 0, 0, 300, 5_000])?,
            twice: u.ratio(1, 4)?,
        })
    }

    fn config(&self) -> Config {
        use InstructionKind::{Control, Memory, Numeric, Parametric, Reference, Table, Variable};
        let mut kinds = vec![Numeric, Parametric, Variable, Memory, Control];
        if self.tables_change {
            kinds.extend([Reference, Table]);
        }
        Config {
            allowed_instructions: InstructionKinds::new(&kinds),
            allow_floats: self.floats,
            allow_start_export: false,
            bulk_memory_enabled: self.bulk,
            custom_page_sizes_enabled: false,
            disallow_traps: !self.traps,
            exceptions_enabled: false,
            extended_const_enabled: false,
            gc_enabled: false,
            max_data_segments: if self.tables_change { 4 } else { 0 },
            max_element_segments: 4,
            max_elements: 12,
            max_exports: 0,
            max_funcs: CALLED_MAX,
            max_globals: 10,
            max_imports: 0,
            max_instructions: self.instructions,
            max_memories: 1,
            max_memory32_bytes: self.pages << 16,
            max_table_elements: 150,
            max_tables: 3,
            max_tags: 0,
            max_type_size: 200,
            max_types: 12,
            memory64_enabled: false,
            memory_offset_choices: MemoryOffsetChoices(90, 9, 1),
            min_element_segments: 1,
            min_funcs: 4,
            min_globals: 4,
            min_memories: 1,
            min_tables: 1,
            min_types: 6,
            relaxed_simd_enabled: false,
            shared_everything_threads_enabled: false,
            simd_enabled: false,
            tail_call_enabled: false,
            threads_enabled: false,
            wide_arithmetic_enabled: false,
            ..Config::default()
        }
    }

    /// The random module as text, within what the contract asks of a rule.
    fn around(&self, body: &[u8], u: &mut Unstructured<'_>) -> Result<String> {
        let found = Found::read(body);
        let inner = inner_text(body);
        let memory = match self.pages_max {
            Some(most) => format!("{} {most}", self.pages),
            None => self.pages.to_string(),
        };
        let twice = match self.twice {
            true => "(import \"hooksieve\" \"log\" (func $again (param i32 i32 i32)))",
            false => "",
        };
        let deep = deep(self.tail, self.line);
        let mut wat = format!(
            "(module
               (import \"hooksieve\" \"log\" (func $log (param i32 i32 i32)))
               {twice}
               (memory $memory (export \"memory\") {memory})
               {inner}
               (global $hash (mut i64) (i64.const 0))
               (func (export \"hooksieve_abi_1\"))
               (data (i32.const {DECISION_AT}) \"{}\")
               (data (i32.const {ERROR_AT}) \"{}\")
               {MIX} {deep}",
            escaped(DECISION),
            escaped(ERROR),
        );
        found.write_state(&mut wat);
        write_reserve(&mut wat, &found, u)?;
        if self.init {
            write_init(&mut wat, &found, u)?;
        }
        let grown_table =
            (self.tables_change && self.bulk && !found.tables.is_empty()).then_some(0);
        write_decide(&mut wat, &found, grown_table);
        wat.push(')');
        Ok(wat)
    }

    /// The random module with no more than a rule has to have.
    fn thinly_around(&self, body: &[u8]) -> String {
        let found = Found::read(body);
        let calls: String = (0..found.functions.len())
            .map(|n| {
                let drops = "drop ".repeat(found.functions[n].results().len());
                format!("{} {drops}", found.bare_call(n))
            })
            .collect();
        format!(
            "(module
               (memory $memory (export \"memory\") {})
               {}
               (func (export \"hooksieve_abi_1\"))
               (data (i32.const {DECISION_AT}) \"{}\")
               (func (export \"hooksieve_reserve\") (param i32) (result i32)
                 (i32.const {INPUT_AT}))
               (func (export \"hooksieve_decide\")
                   (param $from i32) (param i32 i32 i32) (result i64)
                 {calls}
                 (i64.const {})))",
            self.pages,
            inner_text(body),
            escaped(DECISION),
            place(DECISION_AT, DECISION),
        )
    }
}

/// Where an answer stands, as a rule says it.
fn place(at: u32, bytes: &[u8]) -> u64 {
    u64::from(at) << 32 | bytes.len() as u64
}

/// `$mix` takes a value into the running hash.
const MIX: &str = "
    (func $mix (param i64)
      (global.set $hash
        (i64.xor
          (i64.mul (i64.rotl (global.get $hash) (i64.const 29)) (i64.const 0x9e3779b97f4a7c15))
          (local.get 0))))";

/// `$deep` calls itself as often as it is told, and works on the way up.
fn deep(tail: usize, line: usize) -> String {
    let work = "(local.set 1 (i64.add (i64.mul (local.get 1) (i64.const 31)) (i64.const 7)))";
    format!(
        "(func $deep (param i32) (result i32) (local i64 i64)
           (local.set 1 (global.get $hash))
           (if (result i32) (local.get 0)
             (then
               (local.set 0 (call $deep (i32.sub (local.get 0) (i32.const 1))))
               {}
               (i32.add (local.get 0) (i32.wrap_i64 (local.get 1))))
             (else {} (i32.const 7))))",
        work.repeat(tail),
        work.repeat(line),
    )
}

/// What stands inside of the random module's text, without its memory.
fn inner_text(body: &[u8]) -> String {
    let mut printed = String::new();
    wasmprinter::Config::new()
        .name_unnamed(true)
        .print(body, &mut wasmprinter::PrintFmtWrite(&mut printed))
        .unwrap_or_else(|error| panic!("wasm-smith's module cannot be printed: {error}"));
    let lines: Vec<&str> = printed
        .lines()
        .filter(|line| !line.trim_start().starts_with("(memory "))
        .collect();
    let [first, inner @ .., last] = lines.as_slice() else {
        return String::new();
    };
    assert!(first.starts_with("(module") && *last == ")", "{printed}");
    inner.join("\n").replace("$#memory0", "$memory")
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

/// What the random module holds, as far as the text around it names it.
#[derive(Default)]
struct Found {
    types: Vec<FuncType>,
    functions: Vec<FuncType>,
    globals: Vec<(ValType, bool)>,
    tables: Vec<RefType>,
}

impl Found {
    fn read(body: &[u8]) -> Self {
        let mut found = Self::default();
        for payload in Parser::new(0).parse_all(body) {
            let read = payload.and_then(|payload| found.add(payload));
            read.unwrap_or_else(|error| panic!("wasm-smith's module cannot be read: {error}"));
        }
        found
    }

    fn add(
        &mut self,
        payload: Payload<'_>,
    ) -> std::result::Result<(), wasmparser::BinaryReaderError> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section {
                    for ty in group?.into_types() {
                        if let CompositeInnerType::Func(ty) = ty.composite_type.inner {
                            self.types.push(ty);
                        }
                    }
                }
            }
            Payload::FunctionSection(section) => {
                for ty in section {
                    self.functions.push(self.types[ty? as usize].clone());
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    self.tables.push(table?.ty.element_type);
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    let ty = global?.ty;
                    self.globals.push((ty.content_type, ty.mutable));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// `$state` logs what the instance is like.
    fn write_state(&self, wat: &mut String) {
        let _ = write!(
            wat,
            "(func $state (param $from i32) (local $n i32) (local $running i64)
               (local.set $running (global.get $hash))
               {}
               (global.set $hash (i64.const 0))",
            stored(0)
        );
        for (n, (ty, mutable)) in self.globals.iter().enumerate() {
            if *mutable {
                let _ = write!(wat, "(global.get $#global{n}) {}", mixed(*ty));
            }
        }
        for n in 0..self.tables.len() {
            let _ = write!(
                wat,
                "(call $mix (i64.extend_i32_u (table.size $#table{n})))
                 (local.set $n (i32.const 0))
                 (block $end (loop $next
                   (br_if $end (i32.ge_u (local.get $n) (table.size $#table{n})))
                   (call $mix (i64.extend_i32_u (ref.is_null (table.get $#table{n} (local.get $n)))))
                   (local.set $n (i32.add (local.get $n) (i32.const 1)))
                   (br $next)))"
            );
        }
        let _ = write!(
            wat,
            "{}
             (global.set $hash (i64.extend_i32_u (memory.size)))
             ;; Every 64th word, and not always the same.
             (local.set $n (i32.and (local.get $from) (i32.const 0x1f8)))
             (block $end (loop $next
               (br_if $end (i32.ge_u (local.get $n) (i32.shl (memory.size) (i32.const 16))))
               (call $mix (i64.load (local.get $n)))
               (local.set $n (i32.add (local.get $n) (i32.const 512)))
               (br $next)))
             {}
             (global.set $hash (local.get $running))
             (call $log (i32.const 0) (i32.const {STATE_AT}) (i32.const {STATE_BYTES})))",
            stored(8),
            stored(16),
        );
    }

    /// A call of one of the random functions, with arguments from the place in `$from`.
    fn bare_call(&self, n: usize) -> String {
        let mut call = String::new();
        for (at, ty) in self.functions[n].params().iter().enumerate() {
            let at = 16 + 4 * ((n + at) % 8);
            let _ = match ty {
                ValType::Ref(ty) => write!(call, "(ref.null {})", heap(*ty)),
                ty => write!(call, "({ty}.load offset={at} (local.get $from))"),
            };
        }
        let _ = write!(call, "(call $#func{n})");
        call
    }

    /// The same, and what it gives goes into the running hash.
    fn call(&self, n: usize) -> String {
        let mut call = self.bare_call(n);
        for ty in self.functions[n].results().iter().rev() {
            call.push_str(&mixed(*ty));
        }
        call
    }

    /// One of the functions with this type.
    fn of_type(&self, params: &[ValType], results: &[ValType]) -> Option<usize> {
        self.functions
            .iter()
            .position(|ty| ty.params() == params && ty.results() == results)
    }
}

/// Keeps the hash for the log: 7 bits of every byte, so that it is text.
fn stored(offset: u32) -> String {
    format!(
        "(i64.store offset={offset} (i32.const {STATE_AT})
           (i64.and (global.get $hash) (i64.const 0x7f7f7f7f7f7f7f7f)))"
    )
}

/// Takes the value on the stack into the hash, as an i64.
fn mixed(ty: ValType) -> String {
    let as_i64 = match ty {
        ValType::I32 => "i64.extend_i32_u",
        ValType::I64 => "",
        ValType::F32 => "i32.reinterpret_f32 i64.extend_i32_u",
        ValType::F64 => "i64.reinterpret_f64",
        ValType::V128 => "the contract has no vectors",
        ValType::Ref(_) => "ref.is_null i64.extend_i32_u",
    };
    format!("{as_i64} call $mix ")
}

fn heap(ty: RefType) -> &'static str {
    if ty.is_func_ref() { "func" } else { "extern" }
}

/// Room for the input: at a fixed place, in a page of its own, or wherever a random function says.
fn write_reserve(wat: &mut String, found: &Found, u: &mut Unstructured<'_>) -> Result<()> {
    let random = found.of_type(&[ValType::I32], &[ValType::I32]);
    let body = match (u.int_in_range(0..=9)?, random) {
        (0, Some(n)) => format!("(call $#func{n} (local.get 0))"),
        (1 | 2, _) => "
            (i32.shl
              (memory.grow (i32.shr_u (i32.add (local.get 0) (i32.const 65535)) (i32.const 16)))
              (i32.const 16))"
            .to_owned(),
        _ => format!("(i32.const {INPUT_AT})"),
    };
    let _ = write!(
        wat,
        "(func (export \"hooksieve_reserve\") (param i32) (result i32)
           (global.set $hash (i64.add (global.get $hash) (i64.const 1))) {body})"
    );
    Ok(())
}

fn write_init(wat: &mut String, found: &Found, u: &mut Unstructured<'_>) -> Result<()> {
    wat.push_str(
        "(func (export \"hooksieve_init\") (param $from i32) (param $len i32) (result i64)",
    );
    if u.ratio(1, 4)? {
        wat.push_str(&found.call(u.choose_index(found.functions.len())?));
    }
    if u.ratio(1, 4)? {
        // The grown memory is part of the image then.
        let pages = u.int_in_range(1..=24)?;
        let _ = write!(
            wat,
            "(if (i32.ne (memory.grow (i32.const {pages})) (i32.const -1))
               (then (i64.store (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 8))
                 (i64.load (local.get $from)))))"
        );
    }
    if u.ratio(1, 2)? {
        wat.push_str("(call $state (i32.const 0))");
    }
    wat.push_str("(call $mix (i64.load (local.get $from))) (i64.const 0))");
    Ok(())
}

/// The event's first four bytes say what happens, the next twelve with what figures; arguments of
/// the random functions begin at its 16th.
fn write_decide(wat: &mut String, found: &Found, grown_table: Option<usize>) {
    wat.push_str(
        "(func (export \"hooksieve_decide\")
             (param $from i32) (param $len i32) (param $index i32) (param $index_len i32) (result i64)
           (local $what i32)
           (local.set $what (i32.load (local.get $from)))
           (call $mix (i64.extend_i32_u (local.get $len)))
           (if (i32.and (local.get $what) (i32.const 1))
             (then (call $state (i32.load offset=4 (local.get $from)))))
           (if (i32.eqz (i32.and (local.get $what) (i32.const 0x0e)))
             (then (call $mix (i64.extend_i32_u
               (memory.grow (i32.and (i32.load8_u offset=8 (local.get $from)) (i32.const 7)))))
               (i64.store (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 8))
                 (i64.const 0x6e6f7420636c6561))))
           (if (i32.eqz (i32.and (local.get $what) (i32.const 0x70)))
             (then (call $mix (i64.extend_i32_u
               (call $deep (i32.load16_u offset=10 (local.get $from)))))))
           (if (i32.eqz (i32.and (local.get $what) (i32.const 0x8c)))
             (then (call $log
               (i32.and (i32.load8_u offset=9 (local.get $from)) (i32.const 1))
               (i32.load16_u offset=12 (local.get $from))
               (i32.load8_u offset=14 (local.get $from)))))",
    );
    if let Some(n) = grown_table {
        let _ = write!(
            wat,
            "(if (i32.eqz (i32.and (local.get $what) (i32.const 0x60)))
               (then (drop (table.grow $#table{n} (ref.null {})
                 (i32.load16_u offset=10 (local.get $from))))))",
            heap(found.tables[n])
        );
    }
    for n in 0..found.functions.len() {
        let _ = write!(
            wat,
            "(if (i32.and (local.get $what) (i32.const {})) (then {}))",
            1 << (8 + n),
            found.call(n)
        );
    }
    let decision = place(DECISION_AT, DECISION);
    let error = place(ERROR_AT, ERROR);
    let random = match found.of_type(&[], &[ValType::I64]) {
        Some(n) => format!("(call $#func{n})"),
        None => "(i64.load offset=16 (local.get $from))".to_owned(),
    };
    let _ = write!(
        wat,
        "(if (i32.and (local.get $what) (i32.const 1))
           (then (call $state (i32.load offset=4 (local.get $from)))))
         (local.set $what (i32.and (i32.load8_u offset=15 (local.get $from)) (i32.const 15)))
         (if (result i64) (i32.lt_u (local.get $what) (i32.const 10))
           (then (i64.const {decision}))
           (else (if (result i64) (i32.lt_u (local.get $what) (i32.const 12))
             (then (i64.const {error}))
             (else (if (result i64) (i32.eq (local.get $what) (i32.const 12))
               (then {random})
               (else (if (result i64) (i32.eq (local.get $what) (i32.const 13))
                 (then (i64.or (i64.shl (i64.extend_i32_u (local.get $from)) (i64.const 32))
                   (i64.extend_i32_u (local.get $len))))
                 (else
                   (if (i32.eq (local.get $what) (i32.const 15)) (then unreachable))
                   (i64.const -3)))))))))"
    );
    wat.push(')');
}
