//! Why a module is refused, and what its author can do about it.

/// Why a module is not accepted. Says what is wrong; [`Refused::fix`] says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the module is {bytes} bytes, the limit is {limit}")]
    Size { bytes: usize, limit: usize },
    #[error("it is not a WebAssembly module: it does not begin with `\\0asm` and version 1")]
    NotWasm,
    #[error("it is a WebAssembly component, and rules are core modules")]
    Component,
    #[error("it uses the WebAssembly feature `{feature}`, which is off")]
    Feature { feature: &'static str },
    #[error("it is not valid WebAssembly: {message} (byte {offset:#x})")]
    Invalid { message: String, offset: u64 },
    #[error("it has a start function")]
    Start,
    #[error("it is a WASI library (it exports `_initialize`), neither a program nor a reactor")]
    WasiLibrary,
    #[error("it takes the address of an imported function, whose calls could not be charged then")]
    ImportAddress,
    #[error("it speaks version {found} of the contract, this engine speaks {known}")]
    Abi { found: String, known: u32 },
    #[error("it does not export `{name}`{}", near(.nearest))]
    MissingExport {
        name: &'static str,
        nearest: Option<String>,
    },
    #[error("its export `{name}` is {found}, not {expected}")]
    ExportType {
        name: String,
        found: String,
        expected: &'static str,
    },
    #[error("it exports `{name}`, and the contract has no such export")]
    UnknownExport { name: String },
    #[error("it imports `{module}.{name}`, and a rule may import {allowed}")]
    UnknownImport {
        module: String,
        name: String,
        allowed: &'static str,
    },
    #[error("its import `{name}` is {found}, not {expected}")]
    ImportType {
        name: String,
        found: String,
        expected: String,
    },
    #[error("it starts with {pages} pages of memory, the limit is {limit}")]
    MemoryStart { pages: u64, limit: u32 },
    #[error("it has a table of {elements} elements, the limit is {limit}")]
    TableStart { elements: u64, limit: u32 },
    #[error("it has {count} {what}, the limit is {limit}")]
    Count {
        what: &'static str,
        count: u64,
        limit: u64,
    },
    #[error("no instance of it can be made: {message}")]
    Link { message: String },
    #[error("compiling it took more than the {limit_s} s of processor time that it may take")]
    CompileCpu { limit_s: u64 },
    #[error("compiling it took more than the {limit_ms} ms that it may take")]
    CompileTime { limit_ms: u64 },
    #[error("compiling it took more than the {limit_bytes} bytes of memory that it may take")]
    CompileMemory { limit_bytes: u64 },
    #[error("it becomes {bytes} bytes of machine code, the limit for its size is {limit}")]
    Code { bytes: u64, limit: u64 },
    #[error("the compiler refused it: {message}")]
    Compiler { message: String },
}

fn near(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("; is `{name}` meant to be it?"),
        None => String::new(),
    }
}

impl Refused {
    /// What the author can do about it.
    pub fn fix(&self) -> &'static str {
        match self {
            Refused::Size { .. } => {
                "build in release mode with opt-level = \"s\", lto = true and strip = true, and avoid large tables of data"
            }
            Refused::NotWasm => {
                "pass the .wasm file that cargo left in target/wasm32-unknown-unknown/release"
            }
            Refused::Component => "build for wasm32-unknown-unknown, without a component adapter",
            Refused::Feature { .. } => {
                "build for wasm32-unknown-unknown without extra target features (no -C target-feature, no -C target-cpu)"
            }
            Refused::Invalid { .. } => {
                "rebuild it: the file is damaged, or was made by a tool that writes newer WebAssembly"
            }
            Refused::Start => "move what runs at start into `hooksieve_init`",
            Refused::WasiLibrary => {
                "build a program with `_start` for wasm32-wasip1, or a library (crate-type = [\"cdylib\"]) for wasm32-unknown-unknown with #[rule]"
            }
            Refused::ImportAddress => {
                "call imported functions directly, or through a function of your own"
            }
            Refused::Abi { .. } => "rebuild it with the hooksieve-sdk of this engine's version",
            Refused::MissingExport { .. } => {
                "mark the rule's function with #[rule], and set crate-type = [\"cdylib\"]; other languages find the exports in ABI.md"
            }
            Refused::ExportType { .. } | Refused::ImportType { .. } => {
                "ABI.md lists the exports and the import with their types"
            }
            Refused::UnknownExport { .. } => {
                "names that begin with `hooksieve` belong to the contract: rename the export"
            }
            Refused::UnknownImport { .. } => {
                "build a reactor for wasm32-unknown-unknown without wasm-bindgen, or a program for WASI preview 1 (wasm32-wasip1) without sockets and threads; ABI.md lists what may be imported"
            }
            Refused::MemoryStart { .. } => {
                "ask for a smaller stack (-C link-arg=-zstack-size=65536) and smaller statics"
            }
            Refused::TableStart { .. }
            | Refused::Count { .. }
            | Refused::CompileCpu { .. }
            | Refused::CompileTime { .. }
            | Refused::CompileMemory { .. } => "split the rule, or drop unused dependencies",
            Refused::Code { .. } => {
                "look for code that is written out many times (macros, generics, unrolled loops) and call a function instead; opt-level = \"s\" does much of it"
            }
            Refused::Link { .. } => {
                "give its memory and tables room for the segments that it declares, and its imports the types that ABI.md and WASI give them"
            }
            Refused::Compiler { .. } => {
                "report it with the module: the check should have found this"
            }
        }
    }

    /// A stable word for the kind of refusal, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Refused::Size { .. } => "size",
            Refused::NotWasm => "not_wasm",
            Refused::Component => "component",
            Refused::Feature { .. } => "feature",
            Refused::Invalid { .. } => "invalid",
            Refused::Start => "start",
            Refused::WasiLibrary => "wasi_library",
            Refused::ImportAddress => "import_address",
            Refused::Abi { .. } => "abi",
            Refused::MissingExport { .. } => "missing_export",
            Refused::ExportType { .. } => "export_type",
            Refused::UnknownExport { .. } => "unknown_export",
            Refused::UnknownImport { .. } => "unknown_import",
            Refused::ImportType { .. } => "import_type",
            Refused::MemoryStart { .. } => "memory_start",
            Refused::TableStart { .. } => "table_start",
            Refused::Count { .. } => "count",
            Refused::Link { .. } => "link",
            Refused::CompileCpu { .. } => "compile_cpu",
            Refused::CompileTime { .. } => "compile_time",
            Refused::CompileMemory { .. } => "compile_memory",
            Refused::Code { .. } => "code",
            Refused::Compiler { .. } => "compiler",
        }
    }
}
