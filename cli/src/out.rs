//! The program's output: results on standard output, whose reader may close it, and errors and warnings on
//! standard error.

use std::io::{self, ErrorKind, Write};

/// Once the reader has closed standard output (`| head`), the remaining results are dropped. The work
/// continues, because the exit code still matters.
pub struct Out {
    results: Box<dyn Write>,
    complaints: Box<dyn Write>,
    gone: bool,
}

impl Out {
    /// An output that writes results to one writer, and errors and warnings to the other.
    pub fn new(results: impl Write + 'static, complaints: impl Write + 'static) -> Self {
        Self { results: Box::new(results), complaints: Box::new(complaints), gone: false }
    }

    /// Writes an error or a warning as one line: control characters in names and files that it quotes are
    /// replaced. Errors of writing are ignored, because standard error may be closed.
    pub(crate) fn complain(&mut self, what: &str) {
        let line: String = what.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(self.complaints, "chunkwise: {line}");
    }

    fn unless_gone<T>(
        &mut self,
        otherwise: T,
        write: impl FnOnce(&mut dyn Write) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.gone {
            return Ok(otherwise);
        }
        match write(&mut self.results) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(otherwise)
            }
            // Callers repeat interrupted writes.
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                Err(io::Error::new(error.kind(), format!("standard output: {error}")))
            }
            result => result,
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unless_gone(bytes.len(), |out| out.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_gone((), |out| out.flush())
    }
}
