//! What fuel operators cost, as code that is compiled into the module.
//!
//! Every operator is counted. At the end of each stretch of operators that run one after another, its
//! count is taken off the fuel, which may fall below zero there. That it did is looked for only where a
//! guest can come again and again or deeper, at the head of a loop and before a call; in between it can
//! do no more than one pass through a function. Whoever called the guest looks once more. So an event
//! fails exactly if it burns more than it was given. A check at every stretch makes a decision a fifth
//! slower and compiling a third.
//!
//! What a single operator can do in bulk (`memory.fill` of 16 MiB is one operator) is charged by its
//! length before it is done. And growth that was refused is noted: the guest itself only sees -1, and
//! what it does next would hide the cause.

use super::{Checked, Form, Limits};
use std::sync::Arc;
use wasmer::sys::wasmparser::{BlockType, Operator};
use wasmer::sys::{FunctionMiddleware, MiddlewareError, MiddlewareReaderState, ModuleMiddleware};
use wasmer::{GlobalInit, GlobalType, LocalFunctionIndex, ModuleInfo, Mutability, Type};

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
const BULK_BYTES_PER_FUEL: i32 = 8;

/// The globals that metering adds after a module's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct OurGlobals {
    /// What is left, an i64. Below zero, the guest has burned more than it was given.
    pub(super) fuel: u32,
    /// The length of the operation that is being charged.
    length: u32,
    price: u32,
    /// How many pages, and table elements, were asked for and not granted at last.
    pub(super) refused_memory: u32,
    pub(super) refused_table: u32,
}

impl OurGlobals {
    const TYPES: [Type; 5] = [Type::I64, Type::I32, Type::I64, Type::I32, Type::I32];

    /// For a module that declares so many globals itself.
    pub(super) fn after(declared: u32) -> Self {
        Self {
            fuel: declared,
            length: declared + 1,
            price: declared + 2,
            refused_memory: declared + 3,
            refused_table: declared + 4,
        }
    }
}

/// Compiles the charging into a module.
#[derive(Debug)]
pub(super) struct Metering {
    globals: OurGlobals,
    /// The most pages and table elements that growth can be granted.
    limits: (u32, u32),
    /// Functions below this number are imports whose calls are charged here.
    charged_imports: u32,
}

impl Metering {
    pub(super) fn new(checked: &Checked<'_>, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            globals: OurGlobals::after(checked.globals),
            limits: (limits.memory_pages(), limits.table_elements),
            charged_imports: match checked.form {
                // Its one import charges itself.
                Form::Reactor => 0,
                Form::Command => checked.imported,
            },
        })
    }
}

impl ModuleMiddleware for Metering {
    fn generate_function_middleware<'a>(
        &self,
        _: LocalFunctionIndex,
    ) -> Box<dyn FunctionMiddleware<'a> + 'a> {
        Box::new(FunctionMetering {
            globals: self.globals,
            limits: self.limits,
            charged_imports: self.charged_imports,
            due: 0,
            blocks: vec![Block::Joined],
        })
    }

    fn transform_module_info(&self, info: &mut ModuleInfo) -> Result<(), MiddlewareError> {
        let first = info.globals.len() as u32;
        if first != self.globals.fuel {
            return Err(MiddlewareError::new(
                "metering",
                format!(
                    "expected {} globals before its own, found {first}",
                    self.globals.fuel
                ),
            ));
        }
        for ty in OurGlobals::TYPES {
            info.globals.push(GlobalType::new(ty, Mutability::Var));
            info.global_initializers.push(match ty {
                Type::I64 => GlobalInit::I64Const(0),
                _ => GlobalInit::I32Const(0),
            });
        }
        Ok(())
    }
}

/// A block that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// Its end is reached from one place so far: by running on.
    Plain,
    /// Its end is reached from several places, each of which has paid for itself.
    Joined,
    /// Branches to it lead to its head.
    Loop,
}

#[derive(Debug)]
struct FunctionMetering {
    globals: OurGlobals,
    limits: (u32, u32),
    charged_imports: u32,
    /// What has been counted and not yet been taken off the fuel.
    due: u64,
    blocks: Vec<Block>,
}

impl<'a> FunctionMiddleware<'a> for FunctionMetering {
    fn feed(
        &mut self,
        operator: Operator<'a>,
        state: &mut MiddlewareReaderState<'a>,
    ) -> Result<(), MiddlewareError> {
        self.due += match operator {
            Operator::Call { function_index } if function_index < self.charged_imports => {
                super::command::CALL_FUEL
            }
            ref other => cost(other),
        };
        let globals = self.globals;
        match operator {
            Operator::Block { .. } => {
                self.blocks.push(Block::Plain);
                state.push_operator(operator);
            }
            Operator::Loop { .. } => {
                self.take_due(state);
                self.blocks.push(Block::Loop);
                state.push_operator(operator);
                self.check(state);
            }
            Operator::If { .. } => {
                self.take_due(state);
                self.blocks.push(Block::Joined);
                state.push_operator(operator);
            }
            Operator::End => {
                if self.blocks.pop() == Some(Block::Joined) {
                    self.take_due(state);
                }
                state.push_operator(operator);
            }
            Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => {
                self.take_due(state);
                self.branches_to(relative_depth);
                state.push_operator(operator);
            }
            Operator::BrTable { ref targets } => {
                self.take_due(state);
                for target in targets.targets() {
                    let target = target.map_err(|error| {
                        MiddlewareError::new("metering", error.message().to_owned())
                    })?;
                    self.branches_to(target);
                }
                self.branches_to(targets.default());
                state.push_operator(operator);
            }
            Operator::Else | Operator::Return => {
                self.take_due(state);
                state.push_operator(operator);
            }
            Operator::Call { .. } | Operator::CallIndirect { .. } => {
                self.take_due(state);
                self.check(state);
                state.push_operator(operator);
            }
            Operator::MemoryFill { .. }
            | Operator::MemoryCopy { .. }
            | Operator::MemoryInit { .. } => {
                self.keep_length(state);
                state.extend(&[
                    Operator::I32Const {
                        value: BULK_BYTES_PER_FUEL,
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
                let (limit, _) = self.limits;
                self.grow(state, operator, limit, PAGE_FUEL, globals.refused_memory);
            }
            Operator::TableGrow { .. } => {
                let (_, limit) = self.limits;
                self.grow(state, operator, limit, 1, globals.refused_table);
            }
            _ => state.push_operator(operator),
        }
        Ok(())
    }
}

impl FunctionMetering {
    /// Takes what was counted off the fuel.
    fn take_due(&mut self, state: &mut MiddlewareReaderState<'_>) {
        let due = std::mem::take(&mut self.due);
        if due == 0 {
            return;
        }
        let global_index = self.globals.fuel;
        state.extend(&[
            Operator::GlobalGet { global_index },
            Operator::I64Const { value: due as i64 },
            Operator::I64Sub,
            Operator::GlobalSet { global_index },
        ]);
    }

    /// Ends the guest if it has burned more than it was given.
    fn check(&self, state: &mut MiddlewareReaderState<'_>) {
        state.extend(&[
            Operator::GlobalGet {
                global_index: self.globals.fuel,
            },
            Operator::I64Const { value: 0 },
            Operator::I64LtS,
            Operator::If {
                blockty: BlockType::Empty,
            },
            Operator::Unreachable,
            Operator::End,
        ]);
    }

    /// Notes that a block's end is reached by a branch.
    fn branches_to(&mut self, relative_depth: u32) {
        let mut outward = self.blocks.iter_mut().rev();
        if let Some(block @ Block::Plain) = outward.nth(relative_depth as usize) {
            *block = Block::Joined;
        }
    }

    /// `[.. length] -> [.. length]`, with the length kept in a global and put back on top by
    /// [`FunctionMetering::pay`].
    fn keep_length(&self, state: &mut MiddlewareReaderState<'_>) {
        let global_index = self.globals.length;
        state.extend(&[
            Operator::GlobalSet { global_index },
            Operator::GlobalGet { global_index },
        ]);
    }

    /// `[.. price] -> [.. length]`: ends the guest when the fuel does not reach.
    fn pay(&self, state: &mut MiddlewareReaderState<'_>) {
        let OurGlobals {
            fuel,
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
            Operator::I64Sub,
            Operator::GlobalSet { global_index: fuel },
        ]);
        self.check(state);
        state.push_operator(Operator::GlobalGet {
            global_index: length,
        });
    }

    /// `[.. delta] -> [.. previous or -1]`. A delta that no memory could be granted is free: it is
    /// refused without work, and the guest must get its -1.
    fn grow<'a>(
        &self,
        state: &mut MiddlewareReaderState<'a>,
        operator: Operator<'a>,
        limit: u32,
        unit_price: u64,
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
            Operator::I64Const {
                value: unit_price as i64,
            },
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
