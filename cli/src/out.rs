//! The program's output: results on standard output, which its reader may close, and complaints on stderr.

use std::io::{self, ErrorKind, Write};

/// Once the reader is gone (`| head`), the remaining results are dropped. The work continues, because the
/// exit code still counts.
pub struct Out {
    results: Box<dyn Write>,
    complaints: Box<dyn Write>,
    gone: bool,
}

impl Out {
    /// Where results and complaints go.
    pub fn new(results: impl Write + 'static, complaints: impl Write + 'static) -> Self {
        Self { results: Box::new(results), complaints: Box::new(complaints), gone: false }
    }

    /// Writes one line to stderr, whatever names and files it quotes. Errors are ignored, because stderr may
    /// be closed.
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
