//! What fuel operators cost, as code that is compiled into the module.
//!
//! Every operator is counted. At the end of each stretch of operators that run one after another, its
//! count is taken off the fuel, which may fall below its floor there. That it did is looked for where a guest
//! can come again and again or deeper (at the head of a loop, before a call), after a long way without such
//! a place, and before a function returns, unless the way from its last look was short. So what a guest
//! can burn after its end is bounded whatever its shape, see [`burned_past_max`]. Whoever called the guest
//! looks once more: an event fails exactly if it burns more than it was given. A look at every stretch
//! would make a decision a fifth slower and compiling a third.
//!
//! What a single operator can do in bulk (`memory.fill` of 16 MiB is one operator) is charged by its
//! length before it is done, and done in pieces. And growth that was refused is noted: the guest itself
//! only sees -1, and what it does next would hide the cause.

use super::{Checked, Form, Limits, prices};
use std::sync::Arc;
use wasmer::sys::wasmparser::{BlockType, Operator};
use wasmer::sys::{FunctionMiddleware, MiddlewareError, MiddlewareReaderState, ModuleMiddleware};
use wasmer::{GlobalInit, GlobalType, LocalFunctionIndex, ModuleInfo, Mutability, Type};

/// How much a function can burn between two looks at the fuel, but for its last operator.
const STRETCH_FUEL: u64 = 1_000;

/// How much a function may burn after its last look at the fuel, before it returns. Two dozen operators,
/// so that most small functions need no look of their own.
const TAIL_FUEL: u64 = 32;

/// How much of memory a bulk operation goes through between two looks.
const PIECE_BYTES: i32 = 1 << 20;

/// The most that a guest can burn after its fuel is over, or after it was struck: one stretch, and on the
/// way up a tail for each frame, of which none takes less than 16 bytes of the stack.
pub(super) const fn burned_past_max(stack_bytes: usize) -> u64 {
    STRETCH_FUEL + prices::OPERATOR_MAX + stack_bytes as u64 / 16 * TAIL_FUEL
}

/// The globals that metering adds after a module's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct OurGlobals {
    /// What is left, an i64. Below the floor, the guest has burned more than it was given.
    pub(super) fuel: u32,
    /// Where fuel ends, an i64: 0, and more than there can be once the guest was struck. No guest writes
    /// it, so no strike is lost.
    pub(super) floor: u32,
    /// The length of the operation that is being charged, and its two places.
    length: u32,
    price: u32,
    to: u32,
    from: u32,
    /// How many pages, and table elements, were asked for and not granted at last.
    pub(super) refused_memory: u32,
    pub(super) refused_table: u32,
}

impl OurGlobals {
    const TYPES: [Type; 8] = {
        use Type::{I32, I64};
        [I64, I64, I32, I64, I32, I32, I32, I32]
    };

    /// For a module that declares so many globals itself.
    pub(super) fn after(declared: u32) -> Self {
        Self {
            fuel: declared,
            floor: declared + 1,
            length: declared + 2,
            price: declared + 3,
            to: declared + 4,
            from: declared + 5,
            refused_memory: declared + 6,
            refused_table: declared + 7,
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
            unchecked: 0,
            blocks: vec![Block {
                kind: Kind::Joined,
                unchecked: 0,
                otherwise: 0,
            }],
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

/// A block that is open, with the most that can have been burned unchecked where a branch to it leads.
#[derive(Clone, Copy, Debug)]
struct Block {
    kind: Kind,
    /// On the ways that leave by a branch to its end.
    unchecked: u64,
    /// Of an `if`: where it began, which is where its `else` begins, too.
    otherwise: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
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
    /// The most that this function can have burned here since the fuel was last looked at, on any way.
    unchecked: u64,
    /// The first is the function itself.
    blocks: Vec<Block>,
}

impl<'a> FunctionMiddleware<'a> for FunctionMetering {
    fn feed(
        &mut self,
        operator: Operator<'a>,
        state: &mut MiddlewareReaderState<'a>,
    ) -> Result<(), MiddlewareError> {
        if self.unchecked >= STRETCH_FUEL {
            self.take_due(state);
            self.check(state);
        }
        let price = match operator {
            Operator::Call { function_index } if function_index < self.charged_imports => {
                prices::CALL_OF_IMPORT
            }
            ref other => prices::operator(other),
        };
        self.due += price;
        self.unchecked += price;
        let globals = self.globals;
        match operator {
            Operator::Block { .. } => {
                self.open(Kind::Plain);
                state.push_operator(operator);
            }
            Operator::Loop { .. } => {
                self.take_due(state);
                state.push_operator(operator);
                self.check(state);
                self.open(Kind::Loop);
            }
            Operator::If { .. } => {
                self.take_due(state);
                self.open(Kind::Joined);
                state.push_operator(operator);
            }
            Operator::Else => {
                self.take_due(state);
                if let Some(block) = self.blocks.last_mut() {
                    block.unchecked = block.unchecked.max(self.unchecked);
                    self.unchecked = std::mem::take(&mut block.otherwise);
                }
                state.push_operator(operator);
            }
            Operator::End => {
                if self.blocks.len() == 1 {
                    self.leaves(state);
                }
                if let Some(block) = self.blocks.pop() {
                    if block.kind == Kind::Joined {
                        self.take_due(state);
                    }
                    self.unchecked = self.unchecked.max(block.unchecked).max(block.otherwise);
                }
                state.push_operator(operator);
            }
            Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => {
                self.take_due(state);
                self.branches_to(relative_depth, state);
                state.push_operator(operator);
            }
            Operator::BrTable { ref targets } => {
                self.take_due(state);
                for target in targets.targets() {
                    let target = target.map_err(|error| {
                        MiddlewareError::new("metering", error.message().to_owned())
                    })?;
                    self.branches_to(target, state);
                }
                self.branches_to(targets.default(), state);
                state.push_operator(operator);
            }
            Operator::Return => {
                self.take_due(state);
                self.leaves(state);
                state.push_operator(operator);
            }
            Operator::Call { .. } | Operator::CallIndirect { .. } => {
                self.take_due(state);
                self.check(state);
                state.push_operator(operator);
            }
            Operator::MemoryFill { .. } => self.in_pieces(state, operator, Order::Upwards),
            Operator::MemoryInit { .. } => self.in_pieces(state, operator, Order::UpwardsBoth),
            Operator::MemoryCopy { .. } => self.in_pieces(state, operator, Order::ByPlace),
            Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. } => {
                self.keep_length(state);
                state.extend(&[
                    Operator::I64ExtendI32U,
                    Operator::I64Const {
                        value: prices::TABLE_ELEMENT as i64,
                    },
                    Operator::I64Mul,
                ]);
                self.pay(state);
                state.push_operator(Operator::GlobalGet {
                    global_index: globals.length,
                });
                state.push_operator(operator);
            }
            Operator::MemoryGrow { .. } => {
                let (limit, _) = self.limits;
                let price = prices::GROWN_PAGE;
                self.grow(state, operator, limit, price, globals.refused_memory);
            }
            Operator::TableGrow { .. } => {
                let (_, limit) = self.limits;
                let price = prices::GROWN_ELEMENT;
                self.grow(state, operator, limit, price, globals.refused_table);
            }
            _ => state.push_operator(operator),
        }
        Ok(())
    }
}

/// Which way a bulk operation goes through memory, and what moves with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// From the first byte to the last; the value stays.
    Upwards,
    /// From the first byte to the last, at both places.
    UpwardsBoth,
    /// Upwards, or downwards where the source comes first: it may reach into the destination.
    ByPlace,
}

impl FunctionMetering {
    fn open(&mut self, kind: Kind) {
        let otherwise = if kind == Kind::Joined {
            self.unchecked
        } else {
            0
        };
        self.blocks.push(Block {
            kind,
            unchecked: 0,
            otherwise,
        });
    }

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

    /// Ends the guest if it has burned more than it was given, or was struck.
    fn check(&mut self, state: &mut MiddlewareReaderState<'_>) {
        // What was counted and not taken off is not seen here.
        self.unchecked = self.due;
        state.extend(&[
            Operator::GlobalGet {
                global_index: self.globals.fuel,
            },
            Operator::GlobalGet {
                global_index: self.globals.floor,
            },
            Operator::I64LtS,
            Operator::If {
                blockty: BlockType::Empty,
            },
            Operator::Unreachable,
            Operator::End,
        ]);
    }

    /// The function returns here. A short way from its last check is not looked at again: there are no
    /// more such ways, one after another, than frames on the stack.
    fn leaves(&mut self, state: &mut MiddlewareReaderState<'_>) {
        if self.unchecked > TAIL_FUEL {
            self.take_due(state);
            self.check(state);
        }
    }

    /// Notes that a block's end is reached by a branch.
    fn branches_to(&mut self, relative_depth: u32, state: &mut MiddlewareReaderState<'_>) {
        let Some(at) = self.blocks.len().checked_sub(1 + relative_depth as usize) else {
            return;
        };
        if at == 0 {
            self.leaves(state);
        }
        let unchecked = self.unchecked;
        if let Some(block) = self.blocks.get_mut(at) {
            block.unchecked = block.unchecked.max(unchecked);
            if block.kind == Kind::Plain {
                block.kind = Kind::Joined;
            }
        }
    }

    /// `[.. length] -> [.. length]`, with the length kept in a global.
    fn keep_length(&self, state: &mut MiddlewareReaderState<'_>) {
        let global_index = self.globals.length;
        state.extend(&[
            Operator::GlobalSet { global_index },
            Operator::GlobalGet { global_index },
        ]);
    }

    /// `[.. price] -> [..]`: ends the guest when the fuel does not reach, with less than none left.
    fn pay(&mut self, state: &mut MiddlewareReaderState<'_>) {
        let OurGlobals {
            fuel, floor, price, ..
        } = self.globals;
        let get = |global_index| Operator::GlobalGet { global_index };
        let set = |global_index| Operator::GlobalSet { global_index };
        self.unchecked = self.due;
        state.extend(&[
            set(price),
            get(fuel),
            get(price),
            Operator::I64Sub,
            get(floor),
            Operator::I64LtS,
            Operator::If {
                blockty: BlockType::Empty,
            },
            // What is not done is not burned.
            get(fuel),
            Operator::I64Const { value: -1 },
            get(fuel),
            Operator::I64Const { value: 0 },
            Operator::I64LtS,
            Operator::Select,
            set(fuel),
            Operator::Unreachable,
            Operator::End,
            get(fuel),
            get(price),
            Operator::I64Sub,
            set(fuel),
        ]);
    }

    /// `[.. to, from or value, length] -> [..]`: pays for all of it, and does it a piece at a time, so
    /// that a strike is seen between two of them. An operation that reaches outside of memory traps as it
    /// does in one go, though not before its first byte; nothing sees that, since its instance is put back
    /// then.
    fn in_pieces<'a>(
        &mut self,
        state: &mut MiddlewareReaderState<'a>,
        operator: Operator<'a>,
        order: Order,
    ) {
        let OurGlobals {
            length, to, from, ..
        } = self.globals;
        let get = |global_index| Operator::GlobalGet { global_index };
        let set = |global_index| Operator::GlobalSet { global_index };
        let piece = Operator::I32Const { value: PIECE_BYTES };
        let empty = BlockType::Empty;
        self.keep_length(state);
        state.extend(&[
            Operator::I32Const {
                value: prices::BYTES_IN_BULK,
            },
            Operator::I32DivU,
            Operator::I64ExtendI32U,
        ]);
        self.pay(state);
        state.extend(&[set(from), set(to)]);
        // block loop: until the rest is one piece.
        state.extend(&[
            Operator::Block { blockty: empty },
            Operator::Loop { blockty: empty },
            get(length),
            piece.clone(),
            Operator::I32LeU,
            Operator::BrIf { relative_depth: 1 },
            get(length),
            piece.clone(),
            Operator::I32Sub,
            set(length),
        ]);
        let forwards = |state: &mut MiddlewareReaderState<'a>| {
            state.extend(&[get(to), get(from), piece.clone()]);
            state.push_operator(operator.clone());
            state.extend(&[get(to), piece.clone(), Operator::I32Add, set(to)]);
            if order != Order::Upwards {
                state.extend(&[get(from), piece.clone(), Operator::I32Add, set(from)]);
            }
        };
        if order == Order::ByPlace {
            state.extend(&[
                get(from),
                get(to),
                Operator::I32LtU,
                Operator::If { blockty: empty },
                // Its last piece, which is not copied again.
                get(to),
                get(length),
                Operator::I32Add,
                get(from),
                get(length),
                Operator::I32Add,
                piece.clone(),
            ]);
            state.push_operator(operator.clone());
            state.push_operator(Operator::Else);
            forwards(state);
            state.push_operator(Operator::End);
        } else {
            forwards(state);
        }
        self.check(state);
        state.extend(&[
            Operator::Br { relative_depth: 0 },
            Operator::End,
            Operator::End,
            get(to),
            get(from),
            get(length),
        ]);
        state.push_operator(operator);
    }

    /// `[.. delta] -> [.. previous or -1]`. A delta that no memory could be granted is free: it is
    /// refused without work, and the guest must get its -1.
    fn grow<'a>(
        &mut self,
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
        state.push_operator(Operator::GlobalGet {
            global_index: length,
        });
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
