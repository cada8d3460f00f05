//! The lexer: it splits PTX text into tokens and drops comments.

/// A token with its position.
#[derive(Clone, Debug, PartialEq)]
pub struct Token<'a> {
    /// The kind of the token, with its text.
    pub kind: Kind<'a>,
    /// The line, counted from 1.
    pub line: u32,
}

/// The kind of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind<'a> {
    /// A name, an opcode, a directive or a number: letters, digits, `_ $ % .`, and `::` between them.
    Word(&'a str),
    /// A text in quotes.
    Text(&'a str),
    /// Any other character.
    Sign(u8),
}

/// Splits a text into tokens.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let bytes = text.as_bytes();
    let (mut out, mut at, mut line) = (Vec::with_capacity(bytes.len() / 4), 0, 1);
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%' | b'.');
    while at < bytes.len() {
        let from = at;
        match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b if b.is_ascii_whitespace() || b == 0 => at += 1,
            b'/' if bytes[at..].starts_with(b"//") => {
                at += bytes[at..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - at);
            }
            b'/' if bytes[at..].starts_with(b"/*") => {
                let end = text[at..].find("*/").ok_or(format!("line {line}: comment without end"))?;
                line += text[at..at + end].matches('\n').count() as u32;
                at += end + 2;
            }
            b'"' => {
                let end = text[at + 1..].find('"').ok_or(format!("line {line}: text without end"))?;
                at += end + 2;
                out.push(Token { kind: Kind::Text(&text[from + 1..at - 1]), line });
            }
            b if word(b) => {
                while at < bytes.len() && (word(bytes[at]) || scope(bytes, at)) {
                    at += if bytes[at] == b':' { 2 } else { 1 };
                }
                out.push(Token { kind: Kind::Word(&text[from..at]), line });
            }
            b if b.is_ascii() => {
                at += 1;
                out.push(Token { kind: Kind::Sign(b), line });
            }
            b => return Err(format!("line {line}: byte {b:#x} outside of a comment")),
        }
    }
    Ok(out)
}

/// Returns whether a `::` as in `.shared::cta` follows, and not the colon of a label.
fn scope(bytes: &[u8], at: usize) -> bool {
    bytes[at..].starts_with(b"::") && bytes.get(at + 2).is_some_and(u8::is_ascii_alphabetic)
}

/// A number with the type that its notation gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// An integer, which is decimal, hexadecimal, octal or binary.
    Int(u64),
    /// The bits of an f32, which are written as `0f` and eight digits.
    F32(u32),
    /// The bits of an f64, which are written as `0d` and sixteen digits or as a decimal fraction.
    F64(u64),
}

/// Reads a number, without a sign.
pub fn number(text: &str) -> Option<Number> {
    let lower = text.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0f") {
        return u32::from_str_radix(hex, 16).ok().map(Number::F32);
    }
    if let Some(hex) = lower.strip_prefix("0d") {
        return u64::from_str_radix(hex, 16).ok().map(Number::F64);
    }
    let int = lower.strip_suffix('u').unwrap_or(&lower);
    let parsed = if let Some(hex) = int.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(binary) = int.strip_prefix("0b") {
        u64::from_str_radix(binary, 2)
    } else if int.len() > 1 && int.starts_with('0') && !int.contains('.') {
        u64::from_str_radix(int, 8)
    } else {
        int.parse()
    };
    match parsed {
        Ok(v) => Some(Number::Int(v)),
        Err(_) if lower.starts_with(|c: char| c.is_ascii_digit()) => {
            lower.parse::<f64>().ok().map(|v| Number::F64(v.to_bits()))
        }
        Err(_) => None,
    }
}
