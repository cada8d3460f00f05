//! Entries: parameters, performance directives, and the statements of the body with their scopes.

use super::reader::Reader;
use super::{Module, Raw, Result, SharedVar};
use crate::decode::{self, Scope};
use crate::isa::{Entry, Param, Ty};
use crate::lex::Kind;
use crate::shared::START;

/// An entry that is being read.
struct Parser<'r, 'a> {
    r: &'r mut Reader<'a>,
    entry: Entry,
    scope: Scope,
    /// The variables in shared memory, of the module and of the entry.
    shared: Vec<SharedVar>,
    statements: Vec<Raw<'a>>,
}

/// Reads and decodes an entry.
pub(super) fn entry(r: &mut Reader<'_>, module: &Module, shared: &[SharedVar]) -> Result<Entry> {
    let entry = Entry { name: r.word()?.to_string(), ..Entry::default() };
    let mut p = Parser { r, entry, scope: Scope::default(), shared: shared.to_vec(), statements: Vec::new() };
    p.parameters()?;
    p.directives()?;
    p.body()?;
    for (name, buffer) in &module.globals {
        p.scope.names.insert(name.clone(), buffer.address());
    }
    p.place_shared();
    decode::entry(&mut p.entry, p.scope, &p.statements)?;
    Ok(p.entry)
}

impl<'a> Parser<'_, 'a> {
    fn parameters(&mut self) -> Result<()> {
        if !self.r.eat(b'(') {
            return Ok(());
        }
        let e = &mut self.entry;
        while !self.r.eat(b')') {
            if self.r.word()? != ".param" {
                return Err(format!("line {}: .param expected", self.r.line()));
            }
            let v = self.r.variable()?;
            let size = v.count.unwrap_or(0) as usize * v.ty.bits() as usize / 8;
            let offset = e.param_bytes.next_multiple_of(v.align.max(1) as usize);
            e.params.push(Param { offset, size });
            e.param_bytes = offset + size;
            self.scope.params.insert(v.name.to_string(), offset as u64);
            self.r.eat(b',');
        }
        Ok(())
    }

    /// Reads the directives between the parameters and the body.
    fn directives(&mut self) -> Result<()> {
        while !self.r.eat(b'{') {
            match self.r.word()? {
                ".maxntid" => self.entry.max_threads = self.dims()?.iter().product(),
                ".reqntid" => self.entry.required = self.dims()?,
                ".minnctapersm" | ".maxnreg" | ".maxnctapersm" => {
                    self.r.int()?;
                }
                ".pragma" => self.r.skip_to(b';')?,
                word => return Err(format!("line {}: {word} is not known here", self.r.line())),
            }
        }
        Ok(())
    }

    fn dims(&mut self) -> Result<[u32; 3]> {
        let mut out = [1; 3];
        for i in 0..3 {
            out[i] = self.r.int()? as u32;
            if !self.r.eat(b',') {
                break;
            }
        }
        Ok(out)
    }

    /// Reads everything up to the closing brace of the entry.
    fn body(&mut self) -> Result<()> {
        let mut here = self.scope.open(None);
        let mut open = vec![here];
        loop {
            if self.r.eat(b'{') {
                here = self.scope.open(Some(here));
                open.push(here);
            } else if self.r.eat(b'}') {
                open.pop();
                match open.last() {
                    Some(outer) => here = *outer,
                    None => return Ok(()),
                }
            } else if !self.r.eat(b';') {
                self.statement(here)?;
            }
        }
    }

    /// Reads a label, a declaration or an instruction.
    fn statement(&mut self, here: usize) -> Result<()> {
        let line = self.r.line();
        let mut guard = None;
        if self.r.eat(b'@') {
            let not = self.r.eat(b'!');
            guard = Some((self.r.word()?, not));
        }
        let word = self.r.word()?;
        if guard.is_none() && self.r.eat(b':') {
            return self.scope.label(here, word, self.statements.len(), line);
        }
        match word {
            ".reg" => self.registers(here)?,
            ".shared" => self.shared.push(SharedVar::read(self.r)?),
            ".local" => {
                let (v, e) = (self.r.variable()?, &mut self.entry);
                e.local_bytes = e.local_bytes.next_multiple_of(v.align.max(1));
                self.scope.locals.insert(v.name.to_string(), e.local_bytes.into());
                e.local_bytes += v.bytes();
            }
            ".loc" => {
                // No semicolon ends this directive; it ends with its line.
                self.r.skip_line(line);
                return Ok(());
            }
            ".pragma" => return self.r.skip_to(b';'),
            _ if word.starts_with('.') => return Err(format!("line {line}: {word} is not known here")),
            _ => {
                let mut args = Vec::new();
                while self.r.peek() != Some(Kind::Sign(b';')) {
                    args.push(self.r.operand()?);
                    if !self.r.eat(b',') {
                        break;
                    }
                }
                self.statements.push(Raw { guard, name: word, args, scope: here, line });
            }
        }
        self.r.expect(b';')
    }

    /// Reads the rest of `.reg .b32 %r<8>;` or of `.reg .pred p, q;`.
    fn registers(&mut self, here: usize) -> Result<()> {
        let (r, e) = (&mut *self.r, &mut self.entry);
        let word = r.word()?;
        let ty = Ty::parse(word.trim_start_matches('.'))
            .ok_or(format!("line {}: unknown type {word}", r.line()))?;
        loop {
            let name = r.word()?;
            if r.eat(b'<') {
                let n = r.int()?;
                r.expect(b'>')?;
                for i in 0..n {
                    self.scope.register(e, here, format!("{name}{i}"), ty);
                }
            } else {
                self.scope.register(e, here, name.to_string(), ty);
            }
            if !r.eat(b',') {
                return Ok(());
            }
        }
    }

    /// Assigns addresses in shared memory: static arrays come first, and then the dynamic part, which all `extern`
    /// arrays share.
    fn place_shared(&mut self) {
        let (mut at, names) = (START, &mut self.scope.names);
        for v in self.shared.iter().filter(|v| v.bytes > 0) {
            at = at.next_multiple_of(v.align.max(1));
            names.insert(v.name.clone(), at.into());
            at += v.bytes;
        }
        self.entry.shared_bytes = at - START;
        let dynamic = || self.shared.iter().filter(|v| v.bytes == 0);
        let align = dynamic().map(|v| v.align).max().unwrap_or(1).max(16);
        self.entry.dynamic_at = at.next_multiple_of(align);
        for v in dynamic() {
            names.insert(v.name.clone(), self.entry.dynamic_at.into());
        }
    }
}
