//! Whether a module is within the contract: read with wasmparser, before anything is compiled.
//!
//! Limits on what a module *declares* are checked here (size, initial memory and tables); limits on
//! what it *does* belong to the running instance.

use super::{Limits, PAGE_BYTES, Refused, command, prices};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wasmparser::{
    CompositeInnerType, ElementItems, ExternalKind, FuncType, Operator, Parser, Payload, TypeRef,
    ValType, Validator, WasmFeatures,
};

/// A module that [`super::Sandbox::check`] found within the contract: what the compiler and the instance take, so
/// that they need not ask again.
#[derive(Clone, Copy, Debug)]
pub struct Checked<'a> {
    pub(super) wasm: &'a [u8],
    pub form: Form,
    /// How many globals the module declares itself. It imports none.
    pub(super) globals: u32,
    /// How many functions it imports.
    pub(super) imported: u32,
    /// Whether it exports `hooksieve_init`.
    pub(super) init: bool,
    /// Whether an instance can be put back to what it was: nothing in the module changes a table or
    /// drops a segment.
    pub keepable: bool,
    /// What a new instance costs, for a module that needs one for every event.
    pub(super) start_fuel: u64,
    /// What an instance and its code hold in memory besides linear memory, about.
    pub(super) instance_bytes: usize,
    /// Pages of memory it starts with.
    pub memory_pages: u64,
}

impl Checked<'_> {
    /// The same of other code, which was made of this module.
    pub(super) fn with<'a>(&self, wasm: &'a [u8]) -> Checked<'a> {
        Checked { wasm, ..*self }
    }
}

/// How a module is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By its exports: `hooksieve_decide`.
    Reactor,
    /// As a WASI program: event on standard input, decision on standard output.
    Command,
}

/// What the contract allows: what rustc emits, and nothing whose cost or determinism is not settled.
const ALLOWED: WasmFeatures = WasmFeatures::WASM1
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::REFERENCE_TYPES);

/// What is off, by name, in the order in which a refusal names it.
const OFF: [(&str, WasmFeatures); 13] = [
    ("threads", WasmFeatures::THREADS),
    ("SIMD", WasmFeatures::SIMD),
    (
        "relaxed SIMD",
        WasmFeatures::SIMD.union(WasmFeatures::RELAXED_SIMD),
    ),
    ("exceptions", WasmFeatures::EXCEPTIONS),
    (
        "exceptions (legacy)",
        WasmFeatures::LEGACY_EXCEPTIONS.union(WasmFeatures::EXCEPTIONS),
    ),
    ("memory64", WasmFeatures::MEMORY64),
    ("multi-memory", WasmFeatures::MULTI_MEMORY),
    ("tail calls", WasmFeatures::TAIL_CALL),
    (
        "extended constant expressions",
        WasmFeatures::EXTENDED_CONST,
    ),
    (
        "typed function references",
        WasmFeatures::FUNCTION_REFERENCES,
    ),
    (
        "GC",
        WasmFeatures::GC.union(WasmFeatures::FUNCTION_REFERENCES),
    ),
    ("wide arithmetic", WasmFeatures::WIDE_ARITHMETIC),
    ("custom page sizes", WasmFeatures::CUSTOM_PAGE_SIZES),
];

/// Declarations that the size limit alone does not bound well enough: each of these costs the
/// engine memory for every instance.
const TYPES_MAX: u64 = 10_000;
/// Every name that a program may import, and a few of them twice.
const IMPORTS_MAX: u64 = 64;
const GLOBALS_MAX: u64 = 1_000;
const TABLES_MAX: u64 = 10;
const EXPORTS_MAX: u64 = 1_000;
const SEGMENTS_MAX: u64 = 10_000;
const SEGMENT_ELEMENTS_MAX: u64 = 100_000;
/// What the compiler needs grows with these faster than with the module: 8 kB that declare 50,000
/// locals in each function took 5 s, and one function of 700 kB took 3 minutes. What rustc makes of
/// a rule is far below. Beyond them the limits of the compiling process end it.
const FUNCTIONS_MAX: u64 = 20_000;
const LOCALS_MAX: u64 = 200_000;
const FUNCTION_BYTES_MAX: u64 = 1 << 20;
/// Parameters, and results, of one type.
const ARITY_MAX: usize = 64;
/// How long is looked for the feature that would make a module valid.
const NAMING_TIME: Duration = Duration::from_secs(1);

const INIT: &str = "hooksieve_init";

/// An export's name, its parameters and results, and these in words.
type Export = (
    &'static str,
    &'static [ValType],
    &'static [ValType],
    &'static str,
);

/// The export of a WASI program besides its memory.
const COMMAND_EXPORTS: [Export; 1] = [(
    "_start",
    &[],
    &[],
    "a function without parameters or results",
)];

/// The exports of a reactor.
const EXPORTS: [Export; 4] = {
    use ValType::{I32, I64};
    [
        (
            "hooksieve_abi_1",
            &[],
            &[],
            "a function without parameters or results",
        ),
        (
            "hooksieve_reserve",
            &[I32],
            &[I32],
            "a function (i32) -> i32",
        ),
        (INIT, &[I32, I32], &[I64], "a function (i32, i32) -> i64"),
        (
            "hooksieve_decide",
            &[I32, I32, I32, I32],
            &[I64],
            "a function (i32, i32, i32, i32) -> i64",
        ),
    ]
};

pub(super) fn check<'a>(wasm: &'a [u8], limits: &Limits) -> Result<Checked<'a>, Refused> {
    if wasm.len() > limits.module_bytes {
        return Err(Refused::Size {
            bytes: wasm.len(),
            limit: limits.module_bytes,
        });
    }
    match wasm.get(..8) {
        Some(b"\0asm\x01\0\0\0") => {}
        Some(b"\0asm\x0d\0\x01\0") => return Err(Refused::Component),
        _ => return Err(Refused::NotWasm),
    }
    validate(wasm)?;
    let outline = Outline::read(wasm)?;
    outline.check(wasm, limits)
}

/// Validates with the contract's features; where that fails and one feature more would do, names it.
fn validate(wasm: &[u8]) -> Result<(), Refused> {
    narrow(wasm)?;
    let with = |features| Validator::new_with_features(features).validate_all(wasm);
    let Err(error) = with(ALLOWED) else {
        return Ok(());
    };
    // What no feature makes valid is not tried with each.
    if with(WasmFeatures::all()).is_err() {
        return Err(invalid(error));
    }
    let began = Instant::now();
    let feature = (OFF.iter())
        .take_while(|_| began.elapsed() < NAMING_TIME)
        .find(|(_, feature)| with(ALLOWED.union(*feature)).is_ok())
        .map(|(name, _)| *name);
    Err(Refused::Feature {
        feature: feature.unwrap_or("one or several that are newer than the contract"),
    })
}

/// Refuses types that are so wide that validation takes long: each label of a `br_table`, a byte of the
/// module, costs as many steps as its block has results. What is wrong otherwise is not looked at here.
fn narrow(wasm: &[u8]) -> Result<(), Refused> {
    for payload in Parser::new(0).parse_all(wasm) {
        let Ok(Payload::TypeSection(section)) = payload else {
            match payload {
                Ok(_) => continue,
                Err(_) => break,
            }
        };
        for ty in section.into_iter_err_on_gc_types() {
            let Ok(ty) = ty else {
                break;
            };
            for (what, values) in [
                ("parameters of a function", ty.params()),
                ("results of a function", ty.results()),
            ] {
                if values.len() > ARITY_MAX {
                    return Err(Refused::Count {
                        what,
                        count: values.len() as u64,
                        limit: ARITY_MAX as u64,
                    });
                }
            }
        }
    }
    Ok(())
}

fn invalid(error: wasmparser::BinaryReaderError) -> Refused {
    Refused::Invalid {
        message: error.message().to_owned(),
        offset: error.offset(),
    }
}

/// What a valid module declares, as far as the contract asks.
#[derive(Default)]
struct Outline {
    types: Vec<Option<FuncType>>,
    functions: Vec<u32>,
    imports: Vec<(String, String, Option<u32>)>,
    exports: BTreeMap<String, (ExternalKind, u32)>,
    memories: Vec<u64>,
    tables: Vec<u64>,
    globals: u32,
    /// Segments, of data and of elements.
    segments: u64,
    /// Elements in all segments.
    segment_elements: u64,
    /// Locals of all functions together.
    locals: u64,
    /// Bytes of the largest function.
    function_bytes: u64,
    /// Whether any operator changes a table or drops a segment.
    changes_tables: bool,
    /// The functions whose address is taken: the lowest index, as imports come first.
    lowest_address: Option<u32>,
    start: bool,
}

impl Outline {
    fn read(wasm: &[u8]) -> Result<Self, Refused> {
        let mut outline = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            outline.add(payload.map_err(invalid)?).map_err(invalid)?;
        }
        Ok(outline)
    }

    fn add(&mut self, payload: Payload<'_>) -> Result<(), wasmparser::BinaryReaderError> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section {
                    for ty in group?.into_types() {
                        self.types.push(match ty.composite_type.inner {
                            CompositeInnerType::Func(ty) => Some(ty),
                            _ => None,
                        });
                    }
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    let ty = match import.ty {
                        TypeRef::Func(ty) => {
                            self.functions.push(ty);
                            Some(ty)
                        }
                        _ => None,
                    };
                    self.imports
                        .push((import.module.to_owned(), import.name.to_owned(), ty));
                }
            }
            Payload::FunctionSection(section) => {
                for ty in section {
                    self.functions.push(ty?);
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    self.tables.push(table?.ty.initial);
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    self.memories.push(memory?.initial);
                }
            }
            Payload::GlobalSection(section) => {
                self.globals = section.count();
                for global in section {
                    self.addresses(global?.init_expr)?;
                }
            }
            Payload::ElementSection(section) => {
                self.segments += u64::from(section.count());
                for element in section {
                    match element?.items {
                        ElementItems::Functions(functions) => {
                            self.segment_elements += u64::from(functions.count());
                            for function in functions {
                                self.address(function?);
                            }
                        }
                        ElementItems::Expressions(_, expressions) => {
                            self.segment_elements += u64::from(expressions.count());
                            for expression in expressions {
                                self.addresses(expression?)?;
                            }
                        }
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    self.exports
                        .insert(export.name.to_owned(), (export.kind, export.index));
                }
            }
            Payload::DataSection(section) => self.segments += u64::from(section.count()),
            Payload::StartSection { .. } => self.start = true,
            Payload::CodeSectionEntry(body) => {
                let range = body.range();
                self.function_bytes = self.function_bytes.max(range.end - range.start);
                for locals in body.get_locals_reader()? {
                    self.locals += u64::from(locals?.0);
                }
                for operator in body.get_operators_reader()? {
                    let operator = operator?;
                    if let Operator::RefFunc { function_index } = operator {
                        self.address(function_index);
                    }
                    self.changes_tables |= matches!(
                        operator,
                        Operator::TableSet { .. }
                            | Operator::TableGrow { .. }
                            | Operator::TableFill { .. }
                            | Operator::TableCopy { .. }
                            | Operator::TableInit { .. }
                            | Operator::ElemDrop { .. }
                            | Operator::DataDrop { .. }
                    );
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn address(&mut self, function: u32) {
        let lowest = self.lowest_address.unwrap_or(function);
        self.lowest_address = Some(lowest.min(function));
    }

    fn addresses(
        &mut self,
        expression: wasmparser::ConstExpr<'_>,
    ) -> Result<(), wasmparser::BinaryReaderError> {
        for operator in expression.get_operators_reader() {
            if let Operator::RefFunc { function_index } = operator? {
                self.address(function_index);
            }
        }
        Ok(())
    }

    fn check<'a>(&self, wasm: &'a [u8], limits: &Limits) -> Result<Checked<'a>, Refused> {
        if self.start {
            return Err(Refused::Start);
        }
        let form = self.form()?;
        let init = match form {
            Form::Reactor => {
                self.check_imports()?;
                self.check_exports(&EXPORTS)?;
                self.exports.contains_key(INIT)
            }
            Form::Command => {
                self.check_wasi_imports()?;
                self.check_exports(&COMMAND_EXPORTS)?;
                false
            }
        };
        let memory_pages = self.memories.first().copied().unwrap_or_default();
        if memory_pages > u64::from(limits.memory_pages()) {
            return Err(Refused::MemoryStart {
                pages: memory_pages,
                limit: limits.memory_pages(),
            });
        }
        for &elements in &self.tables {
            if elements > u64::from(limits.table_elements) {
                return Err(Refused::TableStart {
                    elements,
                    limit: limits.table_elements,
                });
            }
        }
        for (what, count, limit) in [
            ("types", self.types.len() as u64, TYPES_MAX),
            ("imports", self.imports.len() as u64, IMPORTS_MAX),
            ("globals", u64::from(self.globals), GLOBALS_MAX),
            ("tables", self.tables.len() as u64, TABLES_MAX),
            ("exports", self.exports.len() as u64, EXPORTS_MAX),
            ("segments", self.segments, SEGMENTS_MAX),
            (
                "elements in segments",
                self.segment_elements,
                SEGMENT_ELEMENTS_MAX,
            ),
            ("functions", self.functions.len() as u64, FUNCTIONS_MAX),
            ("locals", self.locals, LOCALS_MAX),
            (
                "bytes in one function",
                self.function_bytes,
                FUNCTION_BYTES_MAX,
            ),
        ] {
            if count > limit {
                return Err(Refused::Count { what, count, limit });
            }
        }
        Ok(Checked {
            wasm,
            form,
            globals: self.globals,
            imported: self.imports.len() as u32,
            init,
            keepable: form == Form::Reactor && !self.changes_tables,
            start_fuel: self.start_fuel(wasm.len() as u64),
            instance_bytes: self.instance_bytes(wasm.len()),
            memory_pages,
        })
    }

    /// About what wasmer does to make an instance, which runs outside of any guest.
    fn start_fuel(&self, wasm_bytes: u64) -> u64 {
        prices::INSTANCE
            + self.tables.iter().sum::<u64>() * prices::START_ELEMENT
            + self.tables.len() as u64 * prices::START_TABLE
            + self.segment_elements * prices::START_SEGMENT_ELEMENT
            + self.segments * prices::START_SEGMENT
            + self.functions.len() as u64 * prices::START_FUNCTION
            + self.imports.len() as u64 * prices::START_IMPORT
            + u64::from(self.globals) * prices::START_GLOBAL
            + self.exports.len() as u64 * prices::START_EXPORT
            + wasm_bytes.div_ceil(prices::BYTES_IN_BULK as u64)
    }

    /// Measured: a small rule's instance and the part of its code that is in memory, what larger ones
    /// add to that, and what wasmer keeps of each declaration for every instance.
    fn instance_bytes(&self, wasm_bytes: usize) -> usize {
        let declared = self.tables.iter().sum::<u64>() * 16
            + self.segment_elements * 8
            + self.segments * 64
            + self.functions.len() as u64 * 48
            + u64::from(self.globals) * 64
            + self.exports.len() as u64 * 256;
        (64 << 10) + 4 * wasm_bytes + declared as usize
    }

    /// Tells a reactor from a WASI program, and another version of the contract from either.
    fn form(&self) -> Result<Form, Refused> {
        if self.exports.contains_key("hooksieve_abi_1") {
            return Ok(Form::Reactor);
        }
        if let Some(name) = self
            .exports
            .keys()
            .find_map(|n| n.strip_prefix("hooksieve_abi_"))
        {
            return Err(Refused::Abi {
                found: name.to_owned(),
                known: hooksieve_sdk::wire::ABI_VERSION,
            });
        }
        if self.exports.contains_key("_start") {
            Ok(Form::Command)
        } else if self.exports.contains_key("_initialize") {
            Err(Refused::WasiLibrary)
        } else {
            Ok(Form::Reactor)
        }
    }

    /// A program may import what [`command::IMPORTS`] lists.
    fn check_wasi_imports(&self) -> Result<(), Refused> {
        for (module, name, ty) in &self.imports {
            let known = command::import_type(name);
            let Some((params, results)) = known.filter(|_| module == command::NAMESPACE) else {
                return Err(Refused::UnknownImport {
                    module: module.clone(),
                    name: name.clone(),
                    allowed: "only what ABI.md lists of `wasi_snapshot_preview1`",
                });
            };
            if !self.is_function(*ty, &params, &results) {
                return Err(Refused::ImportType {
                    name: format!("{module}.{name}"),
                    found: self.type_name(*ty),
                    expected: function_name(&params, &results),
                });
            }
        }
        match self.lowest_address {
            Some(address) if address < self.imports.len() as u32 => Err(Refused::ImportAddress),
            _ => Ok(()),
        }
    }

    fn check_imports(&self) -> Result<(), Refused> {
        for (module, name, ty) in &self.imports {
            if (module.as_str(), name.as_str()) != ("hooksieve", "log") {
                return Err(Refused::UnknownImport {
                    module: module.clone(),
                    name: name.clone(),
                    allowed: "`hooksieve.log` alone",
                });
            }
            let params = [ValType::I32; 3];
            if !self.is_function(*ty, &params, &[]) {
                return Err(Refused::ImportType {
                    name: format!("{module}.{name}"),
                    found: self.type_name(*ty),
                    expected: function_name(&params, &[]),
                });
            }
        }
        Ok(())
    }

    fn check_exports(&self, exports: &[Export]) -> Result<(), Refused> {
        for &(name, params, results, expected) in exports {
            let Some(&(kind, index)) = self.exports.get(name) else {
                if name == INIT {
                    continue;
                }
                return Err(self.missing(name));
            };
            let ty = self.functions.get(index as usize).copied();
            let fits = kind == ExternalKind::Func && self.is_function(ty, params, results);
            if !fits {
                return Err(Refused::ExportType {
                    name: name.to_owned(),
                    found: match kind {
                        ExternalKind::Func => self.type_name(ty),
                        other => format!("a {}", kind_name(other)),
                    },
                    expected,
                });
            }
        }
        match self.exports.get("memory") {
            Some((ExternalKind::Memory, _)) => {}
            Some((other, _)) => {
                return Err(Refused::ExportType {
                    name: "memory".to_owned(),
                    found: format!("a {}", kind_name(*other)),
                    expected: "a memory",
                });
            }
            None => return Err(self.missing("memory")),
        }
        // The whole prefix is the contract's, so that a misspelt export is not passed over.
        let ours =
            |name: &str| name == "memory" || exports.iter().any(|(known, ..)| *known == name);
        for name in self.exports.keys() {
            if name.starts_with("hooksieve") && !ours(name) {
                return Err(Refused::UnknownExport { name: name.clone() });
            }
        }
        Ok(())
    }

    fn missing(&self, name: &'static str) -> Refused {
        let nearest = self
            .exports
            .keys()
            .filter(|found| found.len() < 2 * name.len())
            .filter(|found| strsim::damerau_levenshtein(found, name) <= 3)
            .min_by_key(|found| strsim::damerau_levenshtein(found, name))
            .cloned();
        Refused::MissingExport { name, nearest }
    }

    fn type_name(&self, ty: Option<u32>) -> String {
        let Some(ty) = ty.and_then(|ty| self.types.get(ty as usize)?.as_ref()) else {
            return "not a function".to_owned();
        };
        function_name(ty.params(), ty.results())
    }

    fn is_function(&self, ty: Option<u32>, params: &[ValType], results: &[ValType]) -> bool {
        let ty = ty.and_then(|ty| self.types.get(ty as usize)?.as_ref());
        ty.is_some_and(|ty| ty.params() == params && ty.results() == results)
    }
}

fn function_name(params: &[ValType], results: &[ValType]) -> String {
    let list = |types: &[ValType]| {
        let names: Vec<_> = types.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    match results {
        [] => format!("a function ({})", list(params)),
        results => format!("a function ({}) -> {}", list(params), list(results)),
    }
}

fn kind_name(kind: ExternalKind) -> &'static str {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => "function",
        ExternalKind::Table => "table",
        ExternalKind::Memory => "memory",
        ExternalKind::Global => "global",
        ExternalKind::Tag => "tag",
    }
}

impl Checked<'_> {
    /// Bytes of memory it starts with.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_pages * PAGE_BYTES
    }
}
