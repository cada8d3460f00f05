//! The reader: it takes tokens one after the other and combines them into numbers, operands and variables.

use super::{Opd, Result};
use crate::isa::Ty;
use crate::lex::{Kind, Number, Token, number, tokens};

pub(super) struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

/// A declaration such as `.align 4 .b8 name[16]` or `.u32 name`.
pub(super) struct Variable<'a> {
    pub ty: Ty,
    pub align: u32,
    pub name: &'a str,
    /// The number of elements, or `None` for an array of unknown size.
    pub count: Option<u32>,
}

impl Variable<'_> {
    /// Returns the size in bytes, which is 0 for an array of unknown size.
    pub fn bytes(&self) -> u32 {
        self.count.unwrap_or(0) * self.ty.bits() / 8
    }
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a str) -> Result<Reader<'a>> {
        Ok(Reader { tokens: tokens(text)?, at: 0 })
    }

    pub fn peek(&self) -> Option<Kind<'a>> {
        self.tokens.get(self.at).map(|t| t.kind)
    }

    pub fn line(&self) -> u32 {
        self.tokens.get(self.at.min(self.tokens.len().saturating_sub(1))).map_or(0, |t| t.line)
    }

    pub fn next(&mut self) -> Result<Kind<'a>> {
        let kind = self.peek().ok_or_else(|| format!("line {}: the text ends early", self.line()))?;
        self.at += 1;
        Ok(kind)
    }

    pub fn eat(&mut self, sign: u8) -> bool {
        let found = self.peek() == Some(Kind::Sign(sign));
        self.at += usize::from(found);
        found
    }

    pub fn expect(&mut self, sign: u8) -> Result<()> {
        if self.eat(sign) { Ok(()) } else { Err(self.wrong(&format!("'{}'", sign as char))) }
    }

    pub fn word(&mut self) -> Result<&'a str> {
        match self.next()? {
            Kind::Word(word) => Ok(word),
            _ => {
                self.at -= 1;
                Err(self.wrong("a name"))
            }
        }
    }

    /// Returns the error for a token that is not the one that the text must have here.
    fn wrong(&self, wanted: &str) -> String {
        let found = match self.peek() {
            Some(Kind::Word(w)) => w.to_string(),
            Some(Kind::Text(t)) => format!("{t:?}"),
            Some(Kind::Sign(s)) => format!("'{}'", s as char),
            None => "the end".to_string(),
        };
        format!("line {}: {wanted} expected, found {found}", self.line())
    }

    pub fn int(&mut self) -> Result<i64> {
        let negative = self.eat(b'-');
        let word = self.word()?;
        match number(word) {
            Some(Number::Int(v)) => Ok(if negative { (v as i64).wrapping_neg() } else { v as i64 }),
            _ => Err(format!("line {}: {word} is no integer", self.line())),
        }
    }

    pub fn skip_to(&mut self, sign: u8) -> Result<()> {
        while !self.eat(sign) {
            self.next()?;
        }
        Ok(())
    }

    /// Skips the tokens that are on a line.
    pub fn skip_line(&mut self, line: u32) {
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    pub fn variable(&mut self) -> Result<Variable<'a>> {
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
        let mut count = Some(1u32);
        while self.eat(b'[') {
            count = if self.eat(b']') {
                None
            } else {
                let n = self.int()? as u32;
                self.expect(b']')?;
                count.map(|c| c * n)
            };
        }
        Ok(Variable { ty, align: align.unwrap_or(ty.bits() / 8), name, count })
    }

    pub fn operand(&mut self) -> Result<Opd<'a>> {
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
