//! Standard output that may be closed from the other side.

use std::io::{self, ErrorKind, Write};

/// Once the reader is gone (`| head`), the rest is dropped: the work goes on, for the exit code still counts.
pub(crate) struct Out {
    inner: io::Stdout,
    gone: bool,
}

impl Out {
    pub(crate) fn new() -> Self {
        Self { inner: io::stdout(), gone: false }
    }

    fn unless_gone<T>(
        &mut self,
        otherwise: T,
        write: impl FnOnce(&mut io::Stdout) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.gone {
            return Ok(otherwise);
        }
        match write(&mut self.inner) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(otherwise)
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
        self.unless_gone((), Write::flush)
    }
}
