//! PTX text in, a [`Module`] of decoded entries out. Here is what surrounds instructions: directives, variables,
//! parameters, scopes and labels; `decode` has the instructions.

use crate::decode::{self, Scope};
use crate::isa::{Entry, Param, Ty};
use crate::lex::{Kind, Number, Token, number, tokens};
use crate::memory::Buffer;
use std::collections::HashMap;

/// A loaded text.
pub struct Module {
    /// `.version`, as 10 * major + minor.
    pub version: u32,
    /// `.target` without `sm_`: 80, and whether an `a` or `f` follows.
    pub target: (u32, Option<char>),
    /// Kernels, in order.
    pub entries: Vec<Entry>,
    /// Module-level `.global` and `.const` variables, which launches may access.
    pub globals: Vec<(String, Buffer)>,
}

/// An operand as it is written.
#[derive(Clone, Debug)]
pub enum Opd<'a> {
    /// A register, label, variable.
    Word(&'a str),
    /// A number, negated already.
    Imm(Number),
    /// `{a, b}`.
    Vec(Vec<Opd<'a>>),
    /// `[a+4]`.
    Mem(Option<&'a str>, i64),
    /// `!p`.
    Not(&'a str),
    /// `p|q`.
    Pair(&'a str, &'a str),
}

/// An instruction as it is written.
#[derive(Clone, Debug)]
pub struct Raw<'a> {
    /// Predicate, and whether negated.
    pub guard: Option<(&'a str, bool)>,
    /// With its suffixes.
    pub name: &'a str,
    /// Operands.
    pub args: Vec<Opd<'a>>,
    /// Scope, an index of the entry's.
    pub scope: usize,
    /// Line.
    pub line: u32,
}

/// A shared variable of the module.
#[derive(Clone)]
struct SharedVar {
    name: String,
    align: u32,
    /// 0 for `extern name[]`.
    bytes: u32,
}

struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

type Result<T> = std::result::Result<T, String>;

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<Kind<'a>> {
        self.tokens.get(self.at).map(|t| t.kind)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at.min(self.tokens.len().saturating_sub(1))).map_or(0, |t| t.line)
    }

    fn next(&mut self) -> Result<Kind<'a>> {
        let kind = self.peek().ok_or_else(|| format!("line {}: the text ends early", self.line()))?;
        self.at += 1;
        Ok(kind)
    }

    fn eat(&mut self, sign: u8) -> bool {
        let found = self.peek() == Some(Kind::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: u8) -> Result<()> {
        if self.eat(sign) { Ok(()) } else { Err(self.wrong(&format!("'{}'", sign as char))) }
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.next()? {
            Kind::Word(word) => Ok(word),
            _ => {
                self.at -= 1;
                Err(self.wrong("a name"))
            }
        }
    }

    fn wrong(&self, wanted: &str) -> String {
        let found = match self.peek() {
            Some(Kind::Word(w)) => w.to_string(),
            Some(Kind::Text(t)) => format!("{t:?}"),
            Some(Kind::Sign(s)) => format!("'{}'", s as char),
            None => "the end".to_string(),
        };
        format!("line {}: {wanted} expected, found {found}", self.line())
    }

    fn int(&mut self) -> Result<i64> {
        let negative = self.eat(b'-');
        let word = self.word()?;
        match number(word) {
            Some(Number::Int(v)) => Ok(if negative { (v as i64).wrapping_neg() } else { v as i64 }),
            _ => Err(format!("line {}: {word} is no integer", self.line())),
        }
    }

    fn skip_to(&mut self, sign: u8) -> Result<()> {
        while !self.eat(sign) {
            self.next()?;
        }
        Ok(())
    }

    /// `.align 4 .b8 name[16]`, `.u32 name`: type, alignment, name, elements (None: `[]`), whether an array.
    fn variable(&mut self) -> Result<(Ty, u32, &'a str, Option<u32>, bool)> {
        let (mut align, mut ty) = (None, None);
        let name = loop {
            match self.word()? {
                ".align" => align = Some(self.int()? as u32),
                ".v2" | ".v4" => return Err(self.wrong("a variable without .v")),
                ".ptr" => {}
                ".global" | ".const" | ".shared" | ".local" => {}
                word if word.starts_with('.') => {
                    ty = Some(
                        Ty::parse(&word[1..]).ok_or(format!("line {}: unknown type {word}", self.line()))?,
                    );
                }
                word => break word,
            }
        };
        let ty = ty.ok_or(format!("line {}: {name} has no type", self.line()))?;
        let (mut count, mut array) = (Some(1u32), false);
        while self.eat(b'[') {
            array = true;
            count = if self.eat(b']') {
                None
            } else {
                let n = self.int()? as u32;
                self.expect(b']')?;
                count.map(|c| c * n)
            };
        }
        Ok((ty, align.unwrap_or(ty.bits() / 8), name, count, array))
    }

    fn operand(&mut self) -> Result<Opd<'a>> {
        if self.eat(b'{') {
            let mut list = Vec::new();
            while !self.eat(b'}') {
                list.push(self.operand()?);
                self.eat(b',');
            }
            return Ok(Opd::Vec(list));
        }
        if self.eat(b'[') {
            let first = self.word()?;
            let (base, mut offset) = match number(first) {
                Some(Number::Int(v)) => (None, v as i64),
                _ => (Some(first), 0),
            };
            while !self.eat(b']') {
                let add = self.eat(b'+');
                offset += if add || self.peek() == Some(Kind::Sign(b'-')) {
                    self.int()?
                } else {
                    return Err(self.wrong("']'"));
                };
            }
            return Ok(Opd::Mem(base, offset));
        }
        if self.eat(b'!') {
            return Ok(Opd::Not(self.word()?));
        }
        let negative = self.eat(b'-');
        let word = self.word()?;
        if word.starts_with(|c: char| c.is_ascii_digit()) || negative {
            let value = number(word).ok_or(format!("line {}: {word} is no number", self.line()))?;
            return Ok(Opd::Imm(match value {
                Number::Int(v) if negative => Number::Int(v.wrapping_neg()),
                Number::F32(v) if negative => Number::F32(v ^ 1 << 31),
                Number::F64(v) if negative => Number::F64(v ^ 1 << 63),
                value => value,
            }));
        }
        if self.eat(b'|') {
            return Ok(Opd::Pair(word, self.word()?));
        }
        Ok(Opd::Word(word))
    }
}

/// Version and target alone: what a driver looks at first.
pub fn header(text: &str) -> Result<(u32, (u32, Option<char>))> {
    let mut r = Reader { tokens: tokens(text)?, at: 0 };
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

fn version(r: &mut Reader) -> Result<u32> {
    let word = r.word()?;
    let (major, minor) = word.split_once('.').ok_or(format!("line {}: version {word}", r.line()))?;
    let part = |t: &str| t.parse::<u32>().map_err(|_| format!("line {}: version {word}", r.line()));
    Ok(part(major)? * 10 + part(minor)?)
}

/// Reads a module. Errors name the line.
pub fn module(text: &str) -> Result<Module> {
    let mut r = Reader { tokens: tokens(text)?, at: 0 };
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
            ".file" => {
                r.int()?;
                while matches!(r.peek(), Some(Kind::Text(_) | Kind::Sign(b','))) {
                    r.next()?;
                    if matches!(r.peek(), Some(Kind::Word(w)) if number(w).is_some()) {
                        r.next()?;
                    }
                }
            }
            ".section" => {
                r.word()?;
                r.skip_to(b'}')?;
            }
            ".pragma" => r.skip_to(b';')?,
            ".entry" => {
                let entry = entry(&mut r, &module, &shared)?;
                module.entries.push(entry);
            }
            ".shared" => {
                let (ty, align, name, count, _) = r.variable()?;
                r.expect(b';')?;
                let bytes = count.map_or(0, |n| n * ty.bits() / 8);
                shared.push(SharedVar {
                    name: name.to_string(),
                    align,
                    bytes: if is_extern { 0 } else { bytes },
                });
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

fn target(word: &str) -> Option<(u32, Option<char>)> {
    let rest = word.strip_prefix("sm_").or_else(|| word.strip_prefix("compute_"))?;
    let digits = rest.trim_end_matches(['a', 'f']);
    Some((digits.parse().ok()?, rest[digits.len()..].chars().next()))
}

fn global(r: &mut Reader) -> Result<(String, Buffer)> {
    let (ty, align, name, count, _) = r.variable()?;
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

fn entry(r: &mut Reader<'_>, module: &Module, shared: &[SharedVar]) -> Result<Entry> {
    let mut e = Entry { name: r.word()?.to_string(), ..Entry::default() };
    let mut scope = Scope::default();
    let mut names: HashMap<String, u64> = HashMap::new();
    if r.eat(b'(') {
        while !r.eat(b')') {
            if r.word()? != ".param" {
                return Err(format!("line {}: .param expected", r.line()));
            }
            let (ty, align, name, count, _) = r.variable()?;
            let size = count.unwrap_or(0) as usize * ty.bits() as usize / 8;
            let offset = e.param_bytes.next_multiple_of(align.max(1) as usize);
            e.params.push(Param { offset, size });
            e.param_bytes = offset + size;
            scope.params.insert(name.to_string(), offset as u64);
            r.eat(b',');
        }
    }
    while !r.eat(b'{') {
        match r.word()? {
            ".maxntid" => e.max_threads = dims(r)?.iter().product(),
            ".reqntid" => e.required = dims(r)?,
            ".minnctapersm" | ".maxnreg" | ".maxnctapersm" => {
                r.int()?;
            }
            ".pragma" => r.skip_to(b';')?,
            word => return Err(format!("line {}: {word} is not known here", r.line())),
        }
    }
    for (name, buffer) in &module.globals {
        names.insert(name.clone(), buffer.address());
    }
    let mut variables = shared.to_vec();
    let raws = body(r, &mut e, &mut scope, &mut variables)?;
    // Static arrays first, then the dynamic part, which all `extern` arrays name.
    let mut at = crate::shared::START;
    for v in variables.iter().filter(|v| v.bytes > 0) {
        at = at.next_multiple_of(v.align.max(1));
        names.insert(v.name.clone(), at.into());
        at += v.bytes;
    }
    e.shared_bytes = at - crate::shared::START;
    let align = variables.iter().filter(|v| v.bytes == 0).map(|v| v.align).max().unwrap_or(1).max(16);
    e.dynamic_at = at.next_multiple_of(align);
    for v in variables.iter().filter(|v| v.bytes == 0) {
        names.insert(v.name.clone(), e.dynamic_at.into());
    }
    scope.names = names;
    decode::entry(&mut e, scope, &raws)?;
    Ok(e)
}

fn dims(r: &mut Reader) -> Result<[u32; 3]> {
    let mut out = [1; 3];
    for i in 0..3 {
        out[i] = r.int()? as u32;
        if !r.eat(b',') {
            break;
        }
    }
    Ok(out)
}

/// The statements up to the entry's closing brace; declarations go where they belong.
fn body<'a>(
    r: &mut Reader<'a>,
    e: &mut Entry,
    scope: &mut Scope,
    shared: &mut Vec<SharedVar>,
) -> Result<Vec<Raw<'a>>> {
    let mut raws: Vec<Raw> = Vec::new();
    let mut here = scope.open(None);
    let mut open = vec![here];
    loop {
        if r.eat(b'{') {
            here = scope.open(Some(here));
            open.push(here);
            continue;
        }
        if r.eat(b'}') {
            open.pop();
            match open.last() {
                Some(outer) => here = *outer,
                None => break,
            }
            continue;
        }
        if r.eat(b';') {
            continue;
        }
        let line = r.line();
        let mut guard = None;
        if r.eat(b'@') {
            let not = r.eat(b'!');
            guard = Some((r.word()?, not));
        }
        let word = r.word()?;
        if guard.is_none() && r.eat(b':') {
            scope.label(here, word, raws.len(), line)?;
            continue;
        }
        match word {
            ".reg" => registers(r, e, scope, here)?,
            ".shared" => {
                let (ty, align, name, count, _) = r.variable()?;
                shared.push(SharedVar {
                    name: name.to_string(),
                    align,
                    bytes: count.unwrap_or(0) * ty.bits() / 8,
                });
            }
            ".local" => {
                let (ty, align, name, count, _) = r.variable()?;
                e.local_bytes = e.local_bytes.next_multiple_of(align.max(1));
                scope.locals.insert(name.to_string(), e.local_bytes.into());
                e.local_bytes += count.unwrap_or(0) * ty.bits() / 8;
            }
            ".loc" => {
                // Three numbers, then perhaps words; no semicolon ends it, its line does.
                while r.tokens.get(r.at).is_some_and(|t| t.line == line) {
                    r.at += 1;
                }
                continue;
            }
            ".pragma" => {
                r.skip_to(b';')?;
                continue;
            }
            _ if word.starts_with('.') => return Err(format!("line {line}: {word} is not known here")),
            _ => {
                let mut args = Vec::new();
                while r.peek() != Some(Kind::Sign(b';')) {
                    args.push(r.operand()?);
                    if !r.eat(b',') {
                        break;
                    }
                }
                raws.push(Raw { guard, name: word, args, scope: here, line });
            }
        }
        r.expect(b';')?;
    }
    Ok(raws)
}

/// `.reg .b32 %r<8>;` and `.reg .pred p, q;`
fn registers(r: &mut Reader, e: &mut Entry, scope: &mut Scope, here: usize) -> Result<()> {
    let word = r.word()?;
    let ty =
        Ty::parse(word.trim_start_matches('.')).ok_or(format!("line {}: unknown type {word}", r.line()))?;
    loop {
        let name = r.word()?;
        if r.eat(b'<') {
            let n = r.int()?;
            r.expect(b'>')?;
            for i in 0..n {
                scope.register(e, here, format!("{name}{i}"), ty);
            }
        } else {
            scope.register(e, here, name.to_string(), ty);
        }
        if !r.eat(b',') {
            return Ok(());
        }
    }
}
