//! The suffixes of an opcode.

use super::Result;
use crate::isa::{Round, Space, Ty};

/// The suffixes that the decoder has not taken yet. A suffix that is left in the end is an unknown one.
pub(super) struct Suffixes<'a> {
    /// The opcode without suffixes.
    pub base: &'a str,
    pub list: Vec<&'a str>,
}

impl<'a> Suffixes<'a> {
    pub fn new(name: &'a str) -> Suffixes<'a> {
        let mut parts = name.split('.');
        Suffixes { base: parts.next().unwrap_or(""), list: parts.collect() }
    }

    /// Takes a suffix, and returns whether it is there.
    pub fn take(&mut self, name: &str) -> bool {
        let at = self.list.iter().position(|m| *m == name);
        at.map(|i| self.list.remove(i)).is_some()
    }

    /// Takes the first suffix that is one of `names`.
    pub fn take_any(&mut self, names: &[&str]) -> Option<&'a str> {
        let at = self.list.iter().position(|m| names.contains(m))?;
        Some(self.list.remove(at))
    }

    /// Takes the last type.
    pub fn ty(&mut self) -> Result<Ty> {
        let at = self.list.iter().rposition(|m| Ty::parse(m).is_some()).ok_or("no type")?;
        Ok(Ty::parse(self.list.remove(at)).expect("its position was found by parsing it"))
    }

    pub fn round(&mut self) -> Option<Round> {
        const ALL: [(&str, Round); 9] = [
            ("rn", Round::Rn),
            ("rz", Round::Rz),
            ("rm", Round::Rm),
            ("rp", Round::Rp),
            ("rna", Round::Rna),
            ("rni", Round::Rni),
            ("rzi", Round::Rzi),
            ("rmi", Round::Rmi),
            ("rpi", Round::Rpi),
        ];
        ALL.iter().find(|(name, _)| self.take(name)).map(|(_, round)| *round)
    }

    pub fn space(&mut self) -> Space {
        let found =
            self.take_any(&["global", "const", "shared", "shared::cta", "local", "param", "param::entry"]);
        match found {
            Some("global" | "const") => Space::Global,
            Some("shared" | "shared::cta") => Space::Shared,
            Some("local") => Space::Local,
            Some(_) => Space::Param,
            None => Space::Generic,
        }
    }

    /// Takes hints about caches and memory orders. They have no effect, because lanes access memory in turn.
    pub fn hints(&mut self) {
        self.list.retain(|m| {
            let known = [
                "nc", "relaxed", "volatile", "weak", "acquire", "release", "acq_rel", "cta", "gpu", "sys",
                "cluster", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "noftz",
            ];
            !(known.contains(m)
                || m.starts_with("L1::")
                || *m == "L2::64B"
                || *m == "L2::128B"
                || *m == "L2::256B")
        });
    }

    /// Checks that all suffixes are taken.
    pub fn done(&self) -> Result<()> {
        match self.list.first() {
            None => Ok(()),
            Some(m) => Err(format!("unknown suffix .{m}")),
        }
    }
}
