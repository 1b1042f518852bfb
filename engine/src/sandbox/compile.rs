//! From a checked module to machine code. [`engine`] holds every compiler setting.
//!
//! Fuel is counted by code that is compiled into the module: wasmer's metering charges every
//! operator, and [`Charge`] after it charges what one operator can do in bulk (`memory.fill` of
//! 16 MiB is a single operator). [`Charge`] also notes growth that was refused, because the guest
//! itself only sees -1 and what it does next would hide the cause.

use super::memory::Tunables;
use super::{Checked, Limits, Refused};
use crate::id::Hash;
use std::sync::Arc;
use wasmer::sys::wasmparser::{BlockType, Operator};
use wasmer::sys::{
    CompilerConfig, Cranelift, CraneliftOptLevel, EngineBuilder, Features, FunctionMiddleware,
    MiddlewareError, MiddlewareReaderState, ModuleMiddleware, NativeEngineExt,
};
use wasmer::{GlobalInit, GlobalType, LocalFunctionIndex, ModuleInfo, Mutability, Type};
use wasmer_middlewares::Metering;

/// A module that was found within the contract and compiled. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Module(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hash: Hash,
    size_bytes: usize,
    globals: OurGlobals,
    init: bool,
    keepable: bool,
    start_fuel: u64,
    code: Arc<Code>,
}

/// Machine code with the engine that owns it: it lives as long as both.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) module: wasmer::Module,
    pub(super) engine: wasmer::Engine,
}

impl Module {
    /// The SHA-256 of the wasm: the module's name.
    pub fn hash(&self) -> Hash {
        self.0.hash
    }

    /// The size of the wasm.
    pub fn size_bytes(&self) -> usize {
        self.0.size_bytes
    }

    /// Whether an instance can be put back and serve one event after another. A module that changes
    /// its tables or drops segments gets a new instance for every event.
    pub fn keepable(&self) -> bool {
        self.0.keepable
    }

    /// What a new instance costs an event of a module that cannot be put back.
    pub(super) fn start_fuel(&self) -> u64 {
        self.0.start_fuel
    }

    pub(super) fn has_init(&self) -> bool {
        self.0.init
    }

    pub(super) fn globals(&self) -> OurGlobals {
        self.0.globals
    }

    pub(super) fn code(&self) -> Result<Arc<Code>, super::Error> {
        Ok(self.0.code.clone())
    }
}

/// Where the globals that we add stand among the instance's: after the module's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct OurGlobals {
    pub(super) fuel: usize,
    pub(super) exhausted: usize,
    pub(super) refused_memory: usize,
    pub(super) refused_table: usize,
}

impl OurGlobals {
    fn after(declared: u32) -> Self {
        let first = declared as usize;
        Self {
            fuel: first,
            exhausted: first + 1,
            refused_memory: first + 4,
            refused_table: first + 5,
        }
    }
}

pub(super) fn compile(checked: &Checked<'_>, limits: &Limits) -> Result<Module, Refused> {
    let engine = engine(limits, checked.globals);
    let module = wasmer::Module::new(&engine, checked.wasm).map_err(|error| Refused::Compiler {
        message: error.to_string(),
    })?;
    Ok(Module(Arc::new(Inner {
        code: Arc::new(Code { module, engine }),
        globals: OurGlobals::after(checked.globals),
        init: checked.init,
        keepable: checked.keepable,
        start_fuel: checked.start_fuel,
        hash: Hash::of(checked.wasm),
        size_bytes: checked.wasm.len(),
    })))
}

/// An engine for one module: every setting of the compiler is here. Metering keeps state of the
/// module it is compiled into, and an engine frees code only when it is dropped: so, one each.
fn engine(limits: &Limits, declared_globals: u32) -> wasmer::Engine {
    let mut compiler = Cranelift::new();
    compiler.opt_level(CraneliftOptLevel::Speed);
    // NaN bit patterns are the one thing in which processors differ.
    compiler.canonicalize_nans(true);
    compiler.push_middleware(Arc::new(Metering::new(0, cost)));
    compiler.push_middleware(Arc::new(Charge {
        globals: ChargeGlobals::after(declared_globals),
        limits: (limits.memory_pages(), limits.table_elements),
    }));
    let mut features = Features::none();
    features.bulk_memory(true);
    features.multi_value(true);
    features.reference_types(true);
    let mut engine: wasmer::Engine = EngineBuilder::new(compiler)
        .set_features(Some(features))
        .engine()
        .into();
    engine.set_tunables(Tunables::new(limits));
    engine
}

/// What one operator costs: 1, or more where it calls into the engine.
fn cost(operator: &Operator<'_>) -> u64 {
    match operator {
        Operator::MemoryGrow { .. }
        | Operator::MemoryFill { .. }
        | Operator::MemoryCopy { .. }
        | Operator::MemoryInit { .. }
        | Operator::DataDrop { .. }
        | Operator::TableGrow { .. }
        | Operator::TableFill { .. }
        | Operator::TableCopy { .. }
        | Operator::TableInit { .. }
        | Operator::TableGet { .. }
        | Operator::TableSet { .. }
        | Operator::ElemDrop { .. }
        | Operator::RefFunc { .. }
        | Operator::MemorySize { .. } => 20,
        _ => 1,
    }
}

/// Fuel for a page of memory that is grown, or that an event starts with: about what the system needs
/// to hand it out again for each event.
pub(super) const PAGE_FUEL: u64 = 16_384;

/// Bytes that a bulk operation moves for 1 fuel.
const BULK_BYTES_PER_FUEL: u32 = 8;

/// Charges bulk operations and growth by their length, and notes refused growth. Pushed after
/// [`Metering`], whose globals it shares: its own operators are not metered again.
#[derive(Debug)]
struct Charge {
    globals: ChargeGlobals,
    /// The most pages and table elements that growth can be granted.
    limits: (u32, u32),
}

#[derive(Clone, Copy, Debug)]
struct ChargeGlobals {
    fuel: u32,
    exhausted: u32,
    /// The length of the operation that is being charged.
    length: u32,
    price: u32,
    refused_memory: u32,
    refused_table: u32,
}

impl ChargeGlobals {
    /// Metering adds two globals after the module's own; then come these four.
    fn after(declared: u32) -> Self {
        Self {
            fuel: declared,
            exhausted: declared + 1,
            length: declared + 2,
            price: declared + 3,
            refused_memory: declared + 4,
            refused_table: declared + 5,
        }
    }
}

impl ModuleMiddleware for Charge {
    fn generate_function_middleware<'a>(
        &self,
        _: LocalFunctionIndex,
    ) -> Box<dyn FunctionMiddleware<'a> + 'a> {
        Box::new(FunctionCharge {
            globals: self.globals,
            limits: self.limits,
        })
    }

    fn transform_module_info(&self, info: &mut ModuleInfo) -> Result<(), MiddlewareError> {
        let first = info.globals.len() as u32;
        if first != self.globals.length {
            return Err(MiddlewareError::new(
                "charge",
                format!(
                    "expected {} globals before its own, found {first}",
                    self.globals.length
                ),
            ));
        }
        for (ty, zero) in [
            (Type::I32, GlobalInit::I32Const(0)),
            (Type::I64, GlobalInit::I64Const(0)),
            (Type::I32, GlobalInit::I32Const(0)),
            (Type::I32, GlobalInit::I32Const(0)),
        ] {
            info.globals.push(GlobalType::new(ty, Mutability::Var));
            info.global_initializers.push(zero);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct FunctionCharge {
    globals: ChargeGlobals,
    limits: (u32, u32),
}

impl<'a> FunctionMiddleware<'a> for FunctionCharge {
    fn feed(
        &mut self,
        operator: Operator<'a>,
        state: &mut MiddlewareReaderState<'a>,
    ) -> Result<(), MiddlewareError> {
        match operator {
            Operator::MemoryFill { .. }
            | Operator::MemoryCopy { .. }
            | Operator::MemoryInit { .. } => {
                self.keep_length(state);
                state.extend(&[
                    Operator::I32Const {
                        value: BULK_BYTES_PER_FUEL as i32,
                    },
                    Operator::I32DivU,
                    Operator::I64ExtendI32U,
                ]);
                self.pay(state);
                state.push_operator(operator);
            }
            Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. } => {
                self.keep_length(state);
                state.push_operator(Operator::I64ExtendI32U);
                self.pay(state);
                state.push_operator(operator);
            }
            Operator::MemoryGrow { .. } => {
                self.grow(
                    state,
                    operator,
                    self.limits.0,
                    PAGE_FUEL as i64,
                    self.globals.refused_memory,
                );
            }
            Operator::TableGrow { .. } => {
                self.grow(
                    state,
                    operator,
                    self.limits.1,
                    1,
                    self.globals.refused_table,
                );
            }
            _ => state.push_operator(operator),
        }
        Ok(())
    }
}

impl FunctionCharge {
    /// `[.. length] -> [.. length]`, with the length kept in a global and put back on top by
    /// [`FunctionCharge::pay`].
    fn keep_length(&self, state: &mut MiddlewareReaderState<'_>) {
        let global_index = self.globals.length;
        state.extend(&[
            Operator::GlobalSet { global_index },
            Operator::GlobalGet { global_index },
        ]);
    }

    /// `[.. price] -> [.. length]`: traps as exhausted when the fuel does not reach.
    fn pay(&self, state: &mut MiddlewareReaderState<'_>) {
        let ChargeGlobals {
            fuel,
            exhausted,
            length,
            price,
            ..
        } = self.globals;
        state.extend(&[
            Operator::GlobalSet {
                global_index: price,
            },
            Operator::GlobalGet { global_index: fuel },
            Operator::GlobalGet {
                global_index: price,
            },
            Operator::I64LtU,
            Operator::If {
                blockty: BlockType::Empty,
            },
            Operator::I32Const { value: 1 },
            Operator::GlobalSet {
                global_index: exhausted,
            },
            Operator::Unreachable,
            Operator::End,
            Operator::GlobalGet { global_index: fuel },
            Operator::GlobalGet {
                global_index: price,
            },
            Operator::I64Sub,
            Operator::GlobalSet { global_index: fuel },
            Operator::GlobalGet {
                global_index: length,
            },
        ]);
    }

    /// `[.. delta] -> [.. previous or -1]`. A delta that no memory could be granted is free: it is
    /// refused without work, and the guest must get its -1.
    fn grow<'a>(
        &self,
        state: &mut MiddlewareReaderState<'a>,
        operator: Operator<'a>,
        limit: u32,
        unit_price: i64,
        refused: u32,
    ) {
        let length = self.globals.length;
        state.extend(&[
            Operator::GlobalSet {
                global_index: length,
            },
            Operator::I64Const { value: 0 },
            Operator::GlobalGet {
                global_index: length,
            },
            Operator::I64ExtendI32U,
            Operator::I64Const { value: unit_price },
            Operator::I64Mul,
            Operator::GlobalGet {
                global_index: length,
            },
            Operator::I32Const {
                value: limit as i32,
            },
            Operator::I32GtU,
            Operator::Select,
        ]);
        self.pay(state);
        state.push_operator(operator);
        // The previous size goes through the price global: the length must last until here.
        state.extend(&[
            Operator::I64ExtendI32S,
            Operator::GlobalSet {
                global_index: self.globals.price,
            },
            Operator::GlobalGet {
                global_index: self.globals.price,
            },
            Operator::I64Const { value: -1 },
            Operator::I64Eq,
            Operator::If {
                blockty: BlockType::Empty,
            },
            Operator::GlobalGet {
                global_index: length,
            },
            Operator::GlobalSet {
                global_index: refused,
            },
            Operator::End,
            Operator::GlobalGet {
                global_index: self.globals.price,
            },
            Operator::I32WrapI64,
        ]);
    }
}
