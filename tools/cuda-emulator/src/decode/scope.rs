//! The scopes of an entry, and the names that are declared in them.

use super::Result;
use crate::isa::{Entry, Reg, Ty};
use std::collections::HashMap;

/// The names that the statements of an entry use.
#[derive(Default)]
pub struct Scope {
    tables: Vec<Table>,
    /// The offsets of parameters.
    pub params: HashMap<String, u64>,
    /// The offsets of local variables.
    pub locals: HashMap<String, u64>,
    /// The addresses of shared and global variables.
    pub names: HashMap<String, u64>,
}

/// The registers and labels of one scope.
#[derive(Default)]
struct Table {
    parent: Option<usize>,
    regs: HashMap<String, Reg>,
    labels: HashMap<String, usize>,
}

impl Scope {
    /// Opens a scope inside `parent`.
    pub fn open(&mut self, parent: Option<usize>) -> usize {
        self.tables.push(Table { parent, ..Table::default() });
        self.tables.len() - 1
    }

    /// Declares a label that stands before the statement `at`.
    pub fn label(&mut self, scope: usize, name: &str, at: usize, line: u32) -> Result<()> {
        match self.tables[scope].labels.insert(name.to_string(), at) {
            None => Ok(()),
            Some(_) => Err(format!("line {line}: label {name} is there twice")),
        }
    }

    /// Declares a register.
    pub fn register(&mut self, e: &mut Entry, scope: usize, name: String, ty: Ty) {
        e.registers += 1;
        let reg = fresh(e, ty);
        self.tables[scope].regs.insert(name, reg);
    }

    /// Returns the register that a name stands for in a scope.
    pub fn find_register(&self, scope: usize, name: &str) -> Option<Reg> {
        self.find(scope, |t| t.regs.get(name).copied())
    }

    /// Returns the index of the statement that a label stands before.
    pub fn find_label(&self, scope: usize, name: &str) -> Option<usize> {
        self.find(scope, |t| t.labels.get(name).copied())
    }

    /// Returns the value of a variable's name: an address or an offset.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        [&self.params, &self.locals, &self.names].iter().find_map(|m| m.get(name)).copied()
    }

    /// Searches a scope and those around it.
    fn find<T: Copy>(&self, scope: usize, get: impl Fn(&Table) -> Option<T>) -> Option<T> {
        let mut at = Some(scope);
        while let Some(i) = at {
            if let Some(found) = get(&self.tables[i]) {
                return Some(found);
            }
            at = self.tables[i].parent;
        }
        None
    }
}

/// Allocates a register for a type.
pub(super) fn fresh(e: &mut Entry, ty: Ty) -> Reg {
    let (count, make): (&mut u32, fn(u32) -> Reg) = match ty.bits() {
        1 => (&mut e.p, Reg::P),
        64 => (&mut e.x, Reg::X),
        _ => (&mut e.w, Reg::W),
    };
    *count += 1;
    make(*count - 1)
}
