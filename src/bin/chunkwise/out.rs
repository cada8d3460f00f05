//! What the program says: results on standard output, which may be closed from the other side, complaints on stderr.

use std::io::{self, ErrorKind, Write};

/// Once the reader is gone (`| head`), the rest is dropped: the work goes on, for the exit code still counts.
pub(crate) struct Out {
    results: Box<dyn Write>,
    complaints: Box<dyn Write>,
    gone: bool,
}

impl Out {
    pub(crate) fn new(results: impl Write + 'static, complaints: impl Write + 'static) -> Self {
        Self { results: Box::new(results), complaints: Box::new(complaints), gone: false }
    }

    /// One line on stderr, whatever names and files it quotes. Nobody may be listening.
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
            // Interrupted writes are repeated by who asked for them.
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
