//! What fuel one operator costs when it does work in bulk, as code that is compiled into the module.
//!
//! Wasmer's metering charges every operator; this middleware after it charges what a single one can
//! do (`memory.fill` of 16 MiB is one operator). It also notes growth that was refused, because the
//! guest itself only sees -1 and what it does next would hide the cause.

use super::Limits;
use std::sync::Arc;
use wasmer::sys::wasmparser::{BlockType, Operator};
use wasmer::sys::{FunctionMiddleware, MiddlewareError, MiddlewareReaderState, ModuleMiddleware};
use wasmer::{GlobalInit, GlobalType, LocalFunctionIndex, ModuleInfo, Mutability, Type};

/// What one operator costs: 1, or more where it calls into the engine.
pub(super) fn cost(operator: &Operator<'_>) -> u64 {
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
pub(super) struct Charge {
    globals: ChargeGlobals,
    /// The most pages and table elements that growth can be granted.
    limits: (u32, u32),
}

impl Charge {
    /// For a module that declares so many globals itself.
    pub(super) fn new(declared_globals: u32, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            globals: ChargeGlobals::after(declared_globals),
            limits: (limits.memory_pages(), limits.table_elements),
        })
    }
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
