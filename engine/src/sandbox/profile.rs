//! Where a rule's fuel goes, function by function, and where it was when it failed: for its author.
//!
//! The module is written anew with two imports more: each function tells when it begins, and whoever called
//! it when it is back. What that costs is given back, so that an event burns what it burns in `serve`.
//! Metering takes fuel off before each call, so what a function burned is exact.
//!
//! Architecture invariant: only a module of [`Profiler`] has these imports; the check refuses them in any other.

use super::{Module, Program, Refused, Run, prices};
use std::collections::BTreeMap;
use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{
    CodeSection, EntityType, ImportSection, Instruction, RawSection, SectionId, TypeSection,
    ValType,
};
use wasmparser::{BinaryReaderError, KnownCustom, Name, Parser, Payload};

pub(super) const ENTER: &str = "enter";
pub(super) const LEAVE: &str = "leave";
/// What metering takes for each of the two: the operators that were added.
pub(super) const ENTER_FUEL: i64 = 1 + LEAVE_FUEL;
pub(super) const LEAVE_FUEL: i64 = prices::CALL as i64;
/// Frames that are told apart, and places in all; what is deeper or beyond counts for what called it.
const DEPTH_MAX: u32 = 200;
const PLACES_MAX: usize = 100_000;

/// A rule whose every call is followed. Slow: for some events, not for all of them.
pub struct Profiler {
    program: Program,
    names: BTreeMap<u32, String>,
    tree: Tree,
}

impl Profiler {
    /// For the module that a program runs, or one that differs from it only in having names.
    ///
    /// # Errors
    /// When it cannot be compiled, or is a WASI program, which is not followed.
    pub fn new(program: &Program, wasm: &[u8]) -> Result<Self, String> {
        if program.module().is_command() {
            return Err("a WASI program is not followed, only a reactor is".to_owned());
        }
        let limits = &program.inner().limits;
        let told = |refused: Refused| refused.to_string();
        let module = Module::followed(wasm, limits).map_err(told)?;
        let config = program.inner().config.to_vec();
        let program = Program::new(module, config, limits.clone());
        Ok(Self {
            program: program.map_err(|error| error.to_string())?,
            names: names(wasm).unwrap_or_default(),
            tree: Tree::default(),
        })
    }

    /// Decides an event; gives what it did, and where it was when it failed, the innermost function first.
    pub fn run(&mut self, event: &[u8], index: &[u8]) -> (Run, Vec<String>) {
        let tree = std::mem::take(&mut self.tree);
        let (run, tree) = self.program.followed(tree, event, index);
        self.tree = tree;
        let frames = match run.outcome {
            Ok(_) => Vec::new(),
            Err(_) => self.tree.frames(&self.names),
        };
        (run, frames)
    }

    /// The fuel of all events so far, as flame graphs are made of it: functions from the outermost on with
    /// `;` in between, and the fuel that the last of them burned itself.
    pub fn folded(&self) -> Vec<String> {
        self.tree.folded(&self.names)
    }
}

/// Fuel by who called whom.
#[derive(Default)]
pub(super) struct Tree {
    places: Vec<Place>,
    at: usize,
    /// Calls that are not told apart, on top of the place.
    deeper: u32,
    left: i64,
}

/// A function as it is called from a place.
struct Place {
    function: u32,
    caller: usize,
    depth: u32,
    fuel: u64,
    calls: BTreeMap<u32, usize>,
}

/// What the engine does for an event: the first place.
const OUTSIDE: usize = 0;

impl Tree {
    /// An event begins with so much fuel.
    pub(super) fn begin(&mut self, fuel: u64) {
        if self.places.is_empty() {
            self.places.push(Place {
                function: u32::MAX,
                caller: OUTSIDE,
                depth: 0,
                fuel: 0,
                calls: BTreeMap::new(),
            });
        }
        self.left = i64::try_from(fuel).unwrap_or(i64::MAX);
        (self.at, self.deeper) = (OUTSIDE, 0);
    }

    /// The engine calls.
    pub(super) fn outside(&mut self, left: i64) {
        self.burned(left);
        (self.at, self.deeper) = (OUTSIDE, 0);
    }

    pub(super) fn enter(&mut self, function: u32, left: i64) {
        self.burned(left);
        let (at, room) = (self.at, self.places.len() < PLACES_MAX);
        let Some(place) = self.places.get(at) else {
            return;
        };
        let depth = place.depth + 1;
        match place.calls.get(&function) {
            Some(&known) if self.deeper == 0 => self.at = known,
            None if self.deeper == 0 && room && depth <= DEPTH_MAX => {
                self.at = self.places.len();
                self.places[at].calls.insert(function, self.at);
                self.places.push(Place {
                    function,
                    caller: at,
                    depth,
                    fuel: 0,
                    calls: BTreeMap::new(),
                });
            }
            _ => self.deeper += 1,
        }
    }

    pub(super) fn leave(&mut self, left: i64) {
        self.burned(left);
        match self.deeper {
            0 => self.at = self.places.get(self.at).map_or(OUTSIDE, |it| it.caller),
            _ => self.deeper -= 1,
        }
    }

    /// Counts what was burned since the last time for where it is.
    pub(super) fn burned(&mut self, left: i64) {
        let burned = u64::try_from(self.left.saturating_sub(left)).unwrap_or(0);
        self.left = left;
        if let Some(place) = self.places.get_mut(self.at) {
            place.fuel += burned;
        }
    }

    fn path(&self, mut at: usize) -> Vec<u32> {
        let mut path = Vec::new();
        while at != OUTSIDE {
            path.push(self.places[at].function);
            at = self.places[at].caller;
        }
        path
    }

    fn frames(&self, names: &BTreeMap<u32, String>) -> Vec<String> {
        let path = self.path(self.at);
        let deeper = (self.deeper > 0).then(|| format!("{} more calls", self.deeper));
        let named = path.into_iter().map(|function| name(function, names));
        deeper.into_iter().chain(named).collect()
    }

    fn folded(&self, names: &BTreeMap<u32, String>) -> Vec<String> {
        let all = self.places.iter().enumerate();
        let burned = all.filter(|(_, place)| place.fuel > 0);
        let line = |(at, place): (usize, &Place)| {
            let mut path = self.path(at);
            path.reverse();
            let path = path.into_iter().map(|it| name(it, names).replace(';', ","));
            let whole: Vec<_> = std::iter::once("event".to_owned()).chain(path).collect();
            format!("{} {}", whole.join(";"), place.fuel)
        };
        burned.map(line).collect()
    }
}

fn name(function: u32, names: &BTreeMap<u32, String>) -> String {
    let known = names.get(&function);
    // No control character is a part of an SVG.
    let shown = |name: &String| name.replace(char::is_control, " ");
    known
        .map(shown)
        .unwrap_or_else(|| format!("function {function}"))
}

/// What functions are called: as the compiler named them, or as they are exported.
fn names(wasm: &[u8]) -> Result<BTreeMap<u32, String>, BinaryReaderError> {
    let mut names = BTreeMap::new();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    if export.kind == wasmparser::ExternalKind::Func {
                        names.insert(export.index, export.name.to_owned());
                    }
                }
            }
            Payload::CustomSection(custom) => {
                let KnownCustom::Name(sections) = custom.as_known() else {
                    continue;
                };
                for section in sections {
                    let Name::Function(map) = section? else {
                        continue;
                    };
                    for naming in map {
                        let naming = naming?;
                        let plain = rustc_demangle::demangle(naming.name);
                        // An export's name is the contract's.
                        let named = names.entry(naming.index);
                        named.or_insert_with(|| format!("{plain:#}"));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

/// A module without what is not run: names, and how it was made.
///
/// # Errors
/// Where it is no module.
pub fn strip(wasm: &[u8]) -> Result<Vec<u8>, String> {
    let mut stripped = wasm_encoder::Module::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload.map_err(|error| error.to_string())?;
        let Some((id, range)) = payload.as_section().filter(|(id, _)| *id != 0) else {
            continue;
        };
        let bytes = |at: u64| usize::try_from(at).ok();
        let data = bytes(range.start).zip(bytes(range.end));
        let data = data.and_then(|(start, end)| wasm.get(start..end));
        let data = data.ok_or("a section is cut off")?;
        stripped.section(&RawSection { id, data });
    }
    Ok(stripped.finish())
}

/// The module with its calls followed.
pub(super) fn follow(wasm: &[u8]) -> Result<Vec<u8>, Refused> {
    let outline = outline(wasm).map_err(|error| failed(&error))?;
    let mut followed = Followed {
        outline,
        function: outline.imported,
    };
    let mut module = wasm_encoder::Module::new();
    let done = followed.parse_core_module(&mut module, Parser::new(0), wasm);
    done.map_err(|error| failed(&error))?;
    Ok(module.finish())
}

fn failed(error: &dyn std::fmt::Display) -> Refused {
    Refused::Compiler {
        message: format!("its calls cannot be followed: {error}"),
    }
}

/// What of a module has to be known before it is written anew.
#[derive(Clone, Copy, Default)]
struct Outline {
    types: u32,
    imported: u32,
    has_imports: bool,
}

fn outline(wasm: &[u8]) -> Result<Outline, BinaryReaderError> {
    let mut outline = Outline::default();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            // The contract has no types but functions', each a group of its own.
            Payload::TypeSection(types) => outline.types = types.count(),
            Payload::ImportSection(imports) => {
                outline.has_imports = true;
                for import in imports.into_imports() {
                    import?;
                    // The contract has no imports but functions.
                    outline.imported += 1;
                }
            }
            _ => {}
        }
    }
    Ok(outline)
}

struct Followed {
    outline: Outline,
    /// The number of the function whose body comes next, as it was.
    function: u32,
}

impl Followed {
    fn enter(&self) -> u32 {
        self.outline.imported
    }

    fn leave(&self) -> u32 {
        self.outline.imported + 1
    }

    fn import(&self, imports: &mut ImportSection) {
        let types = self.outline.types;
        imports.import("hooksieve", ENTER, EntityType::Function(types));
        imports.import("hooksieve", LEAVE, EntityType::Function(types + 1));
    }
}

impl Reencode for Followed {
    type Error = std::convert::Infallible;

    /// Two imports come before what the module defines.
    fn function_index(&mut self, function: u32) -> Result<u32, reencode::Error> {
        Ok(match function < self.outline.imported {
            true => function,
            false => function + 2,
        })
    }

    fn parse_type_section(
        &mut self,
        types: &mut TypeSection,
        section: wasmparser::TypeSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        reencode::utils::parse_type_section(self, types, section)?;
        types.ty().function([ValType::I32], []);
        types.ty().function([], []);
        Ok(())
    }

    fn parse_import_section(
        &mut self,
        imports: &mut ImportSection,
        section: wasmparser::ImportSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        reencode::utils::parse_import_section(self, imports, section)?;
        self.import(imports);
        Ok(())
    }

    fn intersperse_section_hook(
        &mut self,
        module: &mut wasm_encoder::Module,
        after: Option<SectionId>,
        _: Option<SectionId>,
    ) -> Result<(), reencode::Error> {
        if after == Some(SectionId::Type) && !self.outline.has_imports {
            let mut imports = ImportSection::new();
            self.import(&mut imports);
            module.section(&imports);
        }
        Ok(())
    }

    /// Names would be of other numbers.
    fn parse_custom_section(
        &mut self,
        _: &mut wasm_encoder::Module,
        _: wasmparser::CustomSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        Ok(())
    }

    fn parse_function_body(
        &mut self,
        code: &mut CodeSection,
        body: wasmparser::FunctionBody<'_>,
    ) -> Result<(), reencode::Error> {
        let mut function = self.new_function_with_parsed_locals(&body)?;
        function.instruction(&Instruction::I32Const(self.function as i32));
        function.instruction(&Instruction::Call(self.enter()));
        let mut operators = body.get_operators_reader()?;
        while !operators.eof() {
            let operator = operators.read()?;
            // An import does not tell that it begins.
            let followed = match operator {
                wasmparser::Operator::Call { function_index } => {
                    function_index >= self.outline.imported
                }
                wasmparser::Operator::CallIndirect { .. } => true,
                _ => false,
            };
            function.instruction(&self.instruction(operator)?);
            if followed {
                function.instruction(&Instruction::Call(self.leave()));
            }
        }
        code.function(&function);
        self.function += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{Defaults, payload};
    use crate::sandbox::{Limits, Sandbox};

    fn program(wasm: &[u8], limits: Limits) -> Program {
        let module = Sandbox::new(limits.clone()).compile(wasm).unwrap();
        Program::new(module, vec![0x80], limits).unwrap()
    }

    fn burned(folded: &[String]) -> u64 {
        let burned = folded.iter().map(|line| line.rsplit(' ').next().unwrap());
        burned.map(|fuel| fuel.parse::<u64>().unwrap()).sum()
    }

    #[test]
    fn a_followed_rule_decides_and_burns_the_same_and_all_of_it_is_somewhere() {
        let defaults = Defaults {
            tenant: "acme".parse().unwrap(),
            source: "hub".parse().unwrap(),
            kind: Some("issues".to_owned()),
        };
        let json = br#"{"action":"opened","issue":{"title":"T","labels":[{"name":"bug"}]},"sender":{"login":"a","type":"User"}}"#;
        let event = payload(json, &defaults).unwrap().event;
        let (event, index) = (event.encoded, event.index);
        for policy in hooksieve_policies::ALL {
            let program = program(policy.wasm, Limits::default());
            let mut profiler = Profiler::new(&program, policy.wasm).unwrap();
            let plain = program.run(&event, &index);
            for n in 1..3 {
                let (run, frames) = profiler.run(&event, &index);
                assert_eq!(run.outcome, plain.outcome, "{}", policy.name);
                assert_eq!((run.fuel, frames), (plain.fuel, Vec::new()));
                assert_eq!(burned(&profiler.folded()), n * plain.fuel);
            }
        }
    }

    #[test]
    fn where_a_rule_was_when_it_failed_is_known() {
        let wat = r#"(module
            (memory (export "memory") 1)
            (func (export "hooksieve_abi_1"))
            (func (export "hooksieve_reserve") (param i32) (result i32) i32.const 1024)
            (func $deep (param i32)
                (if (local.get 0) (then (call $deep (i32.sub (local.get 0) (i32.const 1)))) (else unreachable)))
            (func $fine)
            (func (export "hooksieve_decide") (param i32 i32 i32 i32) (result i64)
                call $fine
                (call $deep (local.get 1))
                i64.const 0))"#;
        let wasm = wat::parse_str(wat).unwrap();
        let program = program(&wasm, Limits::default());
        let mut profiler = Profiler::new(&program, &wasm).unwrap();
        let (run, frames) = profiler.run(&[0xc0; 2], &[]);
        assert_eq!(run.outcome.unwrap_err().kind(), "trapped");
        assert_eq!(frames, ["deep", "deep", "deep", "hooksieve_decide"]);
        // Deeper than is told apart, it is counted.
        let (_, frames) = profiler.run(&[0xc0; 1_000], &[]);
        assert_eq!(frames.len(), DEPTH_MAX as usize + 1);
        assert_eq!(frames[0], "802 more calls");
        assert_eq!(profiler.folded().len() as u64, {
            let places = profiler.tree.places.iter();
            places.filter(|place| place.fuel > 0).count() as u64
        });
        // What runs is the same without its names.
        let stripped = strip(&wasm).unwrap();
        assert!(stripped.len() < wasm.len());
        assert_eq!(strip(&stripped).unwrap(), stripped);
        let mut nameless = Profiler::new(&program, &stripped).unwrap();
        let (_, frames) = nameless.run(&[0xc0; 2], &[]);
        assert_eq!(frames[0], "function 2");
    }
}
