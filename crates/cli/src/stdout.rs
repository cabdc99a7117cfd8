//! Results on standard output, where a script may stop reading early.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};

/// Writes a result. A reader that went away has what it wanted.
pub(crate) fn write(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = write!(stdout, "{text}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes a result and ends the line.
pub(crate) fn write_line(text: impl Display) -> io::Result<()> {
    write(format_args!("{text}\n"))
}

/// Writes a result that is no text.
pub(crate) fn write_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
