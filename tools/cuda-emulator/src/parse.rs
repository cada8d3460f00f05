//! The parser: it turns PTX text into a [`Module`] of decoded entries.
//!
//! This file handles the directives and variables of a text, `entry` the parameters and statements of a kernel, and
//! `reader` the tokens, numbers and operands of both. `decode` decodes the statements.

mod entry;
mod reader;

use crate::isa::Entry;
use crate::lex::{Kind, Number, number};
use crate::memory::Buffer;
use reader::{Reader, Variable};

type Result<T> = std::result::Result<T, String>;

/// A loaded text.
pub struct Module {
    /// The `.version`, as ten times the major number plus the minor one.
    pub version: u32,
    /// The `.target`: its number, such as 80 for `sm_80`, and the letter `a` or `f` if one follows.
    pub target: (u32, Option<char>),
    /// The kernels, in the order of the text.
    pub entries: Vec<Entry>,
    /// The `.global` and `.const` variables of the module, which launches may access.
    pub globals: Vec<(String, Buffer)>,
}

/// An operand as the text has it.
#[derive(Clone, Debug)]
pub enum Opd<'a> {
    /// The name of a register, a label or a variable.
    Word(&'a str),
    /// A number; a minus sign is already applied.
    Imm(Number),
    /// A list such as `{a, b}`.
    Vec(Vec<Opd<'a>>),
    /// An address such as `[a+4]`.
    Mem(Option<&'a str>, i64),
    /// A negated predicate such as `!p`.
    Not(&'a str),
    /// A pair of destinations such as `p|q`.
    Pair(&'a str, &'a str),
}

/// An instruction as the text has it.
#[derive(Clone, Debug)]
pub struct Raw<'a> {
    /// The guard predicate, and whether it is negated.
    pub guard: Option<(&'a str, bool)>,
    /// The opcode with its suffixes.
    pub name: &'a str,
    /// The operands.
    pub args: Vec<Opd<'a>>,
    /// The scope, as an index in the scopes of the entry.
    pub scope: usize,
    /// The line.
    pub line: u32,
}

/// A variable in shared memory.
#[derive(Clone)]
struct SharedVar {
    name: String,
    align: u32,
    /// The size, which is 0 for `extern name[]`.
    bytes: u32,
}

impl SharedVar {
    fn read(r: &mut Reader) -> Result<SharedVar> {
        let v = r.variable()?;
        Ok(SharedVar { name: v.name.to_string(), align: v.align, bytes: v.bytes() })
    }
}

/// Reads the version and the target alone, which a driver checks first.
pub fn header(text: &str) -> Result<(u32, (u32, Option<char>))> {
    let mut r = Reader::new(text)?;
    let (mut found, mut aim) = (None, None);
    while (found.is_none() || aim.is_none()) && r.peek().is_some() {
        match r.next()? {
            Kind::Word(".version") => found = Some(version(&mut r)?),
            Kind::Word(".target") => aim = target(r.word()?),
            _ => {}
        }
    }
    found.zip(aim).ok_or_else(|| "line 1: .version and .target are missing".to_string())
}

/// Reads a module. Errors name the line.
pub fn module(text: &str) -> Result<Module> {
    let mut r = Reader::new(text)?;
    let mut module = Module { version: 0, target: (0, None), entries: Vec::new(), globals: Vec::new() };
    let mut shared: Vec<SharedVar> = Vec::new();
    let mut is_extern = false;
    while r.peek().is_some() {
        match r.word()? {
            ".version" => module.version = version(&mut r)?,
            ".target" => {
                let word = r.word()?;
                module.target = target(word).ok_or(format!("line {}: unknown target {word}", r.line()))?;
                while r.eat(b',') {
                    r.word()?;
                }
            }
            ".address_size" => {
                if r.int()? != 64 {
                    return Err(format!("line {}: only 64-bit addresses", r.line()));
                }
            }
            ".visible" | ".weak" | ".common" => {}
            ".extern" => is_extern = true,
            ".file" => file(&mut r)?,
            ".section" => {
                r.word()?;
                r.skip_to(b'}')?;
            }
            ".pragma" => r.skip_to(b';')?,
            ".entry" => {
                let entry = entry::entry(&mut r, &module, &shared)?;
                module.entries.push(entry);
            }
            ".shared" => {
                let mut variable = SharedVar::read(&mut r)?;
                r.expect(b';')?;
                if is_extern {
                    variable.bytes = 0;
                }
                shared.push(variable);
                is_extern = false;
            }
            ".global" | ".const" if !is_extern => {
                let global = global(&mut r)?;
                module.globals.push(global);
            }
            word => return Err(format!("line {}: {word} is not known here", r.line())),
        }
    }
    if module.version == 0 || module.target.0 == 0 {
        return Err("line 1: .version and .target are missing".to_string());
    }
    Ok(module)
}

fn version(r: &mut Reader) -> Result<u32> {
    let word = r.word()?;
    let (major, minor) = word.split_once('.').ok_or(format!("line {}: version {word}", r.line()))?;
    let part = |t: &str| t.parse::<u32>().map_err(|_| format!("line {}: version {word}", r.line()));
    Ok(part(major)? * 10 + part(minor)?)
}

fn target(word: &str) -> Option<(u32, Option<char>)> {
    let rest = word.strip_prefix("sm_").or_else(|| word.strip_prefix("compute_"))?;
    let digits = rest.trim_end_matches(['a', 'f']);
    Some((digits.parse().ok()?, rest[digits.len()..].chars().next()))
}

/// Skips the operands of `.file`: a number, a text in quotes, and perhaps two more numbers.
fn file(r: &mut Reader) -> Result<()> {
    r.int()?;
    while matches!(r.peek(), Some(Kind::Text(_) | Kind::Sign(b','))) {
        r.next()?;
        if matches!(r.peek(), Some(Kind::Word(w)) if number(w).is_some()) {
            r.next()?;
        }
    }
    Ok(())
}

/// Reads a variable in global memory with its initialiser.
fn global(r: &mut Reader) -> Result<(String, Buffer)> {
    let Variable { ty, align, name, count } = r.variable()?;
    let count = count.ok_or(format!("line {}: {name} has no size", r.line()))?;
    let width = ty.bits() as usize / 8;
    let mut bytes = vec![0u8; count as usize * width];
    if r.eat(b'=') {
        let list = r.eat(b'{');
        let mut at = 0;
        loop {
            let value = match r.operand()? {
                Opd::Imm(Number::Int(v)) => v,
                Opd::Imm(Number::F32(v)) => v.into(),
                Opd::Imm(Number::F64(v)) if width == 8 => v,
                Opd::Imm(Number::F64(v)) => (f64::from_bits(v) as f32).to_bits().into(),
                _ => return Err(format!("line {}: {name} has an initialiser that is no number", r.line())),
            };
            let to =
                bytes.get_mut(at..at + width).ok_or(format!("line {}: {name} has more values", r.line()))?;
            to.copy_from_slice(&value.to_le_bytes()[..width]);
            at += width;
            if !list || r.eat(b'}') {
                break;
            }
            r.expect(b',')?;
        }
    }
    r.expect(b';')?;
    let buffer = Buffer::new(bytes.len(), align as usize, 0xff);
    buffer.copy_from(&bytes);
    Ok((name.to_string(), buffer))
}
