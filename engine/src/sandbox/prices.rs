//! What everything costs in fuel: each operator by its class, and what the engine does for a guest.
//!
//! A unit of fuel is about a third of a nanosecond of the machine that the prices were measured on. The
//! classes are priced by what their operators take one after another, each waiting for the one before;
//! `tests/examples/prices.rs` measures that, and prints each price beside its time. What does not run (a
//! constant, `local.get`, `block`, `end`) costs 1 all the same: a module's length bounds nothing
//! otherwise. What misses the processor's caches is not in the prices: it would tax every load for what
//! few do. Measured time stands behind fuel for that (the wall clock, and the quotas).
//!
//! Prices are part of what a recording and an expectation say, so they have a version.

use wasmer::sys::wasmparser::Operator;

/// The version of the prices: it changes whenever the same work costs another fuel.
pub const VERSION: u32 = 2;

/// A call of a function: it saves, jumps and comes back.
pub(super) const CALL: u64 = 12;
/// No operator costs more, but for what it moves in bulk, which is paid before it is done.
pub(super) const OPERATOR_MAX: u64 = 250;

/// Bytes that a bulk operation, a read or a write moves for 1.
pub(super) const BYTES_IN_BULK: i32 = 8;
/// An element that a bulk operation on tables moves.
pub(super) const TABLE_ELEMENT: u64 = 14;
/// A page of memory that is grown: about what the system needs to hand it out again for each event.
pub(super) const GROWN_PAGE: u64 = 16_384;
/// An element that a table is grown by.
pub(super) const GROWN_ELEMENT: u64 = 4;

/// Bytes of input for 1, rounded up.
pub(super) const INPUT_BYTES: u64 = 16;
/// Pages of memory that an event may start with for nothing: putting back so little takes about as long as
/// a call.
pub(super) const FREE_PAGES: u64 = 4;
/// Each page beyond: what it is to look through it and put it back, or to get it zeroed from the system.
pub(super) const START_PAGE: u64 = 8_192;
/// A call of `hooksieve.log`, besides 1 for each byte.
pub(super) const LOG: u64 = 450;

/// A new instance, and for each that it declares: what wasmer makes of it, outside of any guest.
pub(super) const INSTANCE: u64 = 20_000;
pub(super) const START_ELEMENT: u64 = 2;
pub(super) const START_SEGMENT_ELEMENT: u64 = 25;
pub(super) const START_SEGMENT: u64 = 500;
pub(super) const START_FUNCTION: u64 = 50;
pub(super) const START_IMPORT: u64 = 1_800;
pub(super) const START_GLOBAL: u64 = 120;
pub(super) const START_EXPORT: u64 = 1_800;
pub(super) const START_TABLE: u64 = 800;

/// The process that an event of a WASI program gets, besides its instance.
pub(super) const PROCESS: u64 = 600_000;
/// A call of one of a WASI program's imports, compiled in where it is called.
pub(super) const CALL_OF_IMPORT: u64 = 500;
/// Each buffer of a read or a write.
pub(super) const BUFFER: u64 = 20;
/// Each random byte: a hash for every 32.
pub(super) const RANDOM_BYTE: u64 = 8;

/// What one operator costs by itself. What it moves in bulk is charged besides, by its length.
pub(super) fn operator(operator: &Operator<'_>) -> u64 {
    use Operator as O;
    match operator {
        O::Call { .. } => CALL,
        // It also looks up the place in a table and compares types.
        O::CallIndirect { .. } => 36,
        // The processor has to guess where it goes on.
        O::BrTable { .. } => 16,
        O::If { .. } | O::BrIf { .. } => 4,
        O::I32DivS | O::I32DivU | O::I32RemS | O::I32RemU => 24,
        O::I64DivS | O::I64DivU | O::I64RemS | O::I64RemU => 40,
        O::F32Sqrt | O::F64Sqrt | O::F32Div | O::F64Div => 16,
        O::F32Ceil
        | O::F32Floor
        | O::F32Trunc
        | O::F32Nearest
        | O::F64Ceil
        | O::F64Floor
        | O::F64Trunc
        | O::F64Nearest
        | O::F32DemoteF64
        | O::F64PromoteF32 => 12,
        // Each looks whether what came out is a NaN.
        O::F32Add
        | O::F32Sub
        | O::F32Mul
        | O::F32Min
        | O::F32Max
        | O::F64Add
        | O::F64Sub
        | O::F64Mul
        | O::F64Min
        | O::F64Max => 8,
        O::I32TruncF32S
        | O::I32TruncF32U
        | O::I32TruncF64S
        | O::I32TruncF64U
        | O::I64TruncF32S
        | O::I64TruncF32U
        | O::I64TruncF64S
        | O::I64TruncF64U
        | O::I32TruncSatF32S
        | O::I32TruncSatF32U
        | O::I32TruncSatF64S
        | O::I32TruncSatF64U
        | O::I64TruncSatF32S
        | O::I64TruncSatF32U
        | O::I64TruncSatF64S
        | O::I64TruncSatF64U => 12,
        O::F32ConvertI32S
        | O::F32ConvertI32U
        | O::F32ConvertI64S
        | O::F32ConvertI64U
        | O::F64ConvertI32S
        | O::F64ConvertI32U
        | O::F64ConvertI64S
        | O::F64ConvertI64U => 4,
        O::F32Eq
        | O::F32Ne
        | O::F32Lt
        | O::F32Gt
        | O::F32Le
        | O::F32Ge
        | O::F64Eq
        | O::F64Ne
        | O::F64Lt
        | O::F64Gt
        | O::F64Le
        | O::F64Ge => 4,
        // Within the bounds of memory, which is looked at first.
        O::I32Load { .. }
        | O::I64Load { .. }
        | O::F32Load { .. }
        | O::F64Load { .. }
        | O::I32Load8S { .. }
        | O::I32Load8U { .. }
        | O::I32Load16S { .. }
        | O::I32Load16U { .. }
        | O::I64Load8S { .. }
        | O::I64Load8U { .. }
        | O::I64Load16S { .. }
        | O::I64Load16U { .. }
        | O::I64Load32S { .. }
        | O::I64Load32U { .. } => 3,
        O::I32Store { .. }
        | O::I64Store { .. }
        | O::F32Store { .. }
        | O::F64Store { .. }
        | O::I32Store8 { .. }
        | O::I32Store16 { .. }
        | O::I64Store8 { .. }
        | O::I64Store16 { .. }
        | O::I64Store32 { .. } => 2,
        // Compiled code calls the engine for these.
        O::MemorySize { .. } => 35,
        O::TableGet { .. } => 40,
        O::MemoryFill { .. } => 50,
        O::TableSize { .. } => 75,
        O::MemoryCopy { .. } | O::MemoryGrow { .. } => 100,
        O::RefFunc { .. } => 110,
        O::TableSet { .. } => 140,
        O::DataDrop { .. } | O::ElemDrop { .. } => 150,
        O::TableFill { .. } | O::TableCopy { .. } | O::TableGrow { .. } => 200,
        O::MemoryInit { .. } | O::TableInit { .. } => OPERATOR_MAX,
        _ => 1,
    }
}
