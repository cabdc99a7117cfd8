//! A virtio-serial port with time-outs: the other end is the host's.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

/// Pause when the host has nobody listening, which poll(2) reports at once.
const NOBODY: Duration = Duration::from_millis(50);

/// An open port.
#[derive(Debug)]
pub struct Port(File);

impl Port {
    /// Opens a port's node.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(node: &Path) -> io::Result<Self> {
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
        File::options()
            .read(true)
            .write(true)
            .custom_flags(nonblocking)
            .open(node)
            .map(Self)
    }

    /// Writes all bytes, or fails when that takes longer than `patience`.
    ///
    /// # Errors
    /// `TimedOut`, and those of write(2).
    pub fn write_all(&mut self, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        while !bytes.is_empty() {
            match self.0.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(e) => self.wait(e, PollFlags::OUT, deadline)?,
            }
        }
        Ok(())
    }

    /// Fills the buffer, or fails when that takes longer than `patience`.
    ///
    /// # Errors
    /// `TimedOut`, and those of read(2).
    pub fn read_exact(&mut self, mut buffer: &mut [u8], patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        while !buffer.is_empty() {
            match self.0.read(buffer) {
                // A port without a listener reads as ended until there is one.
                Ok(0) => self.wait(io::ErrorKind::WouldBlock.into(), PollFlags::IN, deadline)?,
                Ok(read) => buffer = buffer.get_mut(read..).unwrap_or_default(),
                Err(e) => self.wait(e, PollFlags::IN, deadline)?,
            }
        }
        Ok(())
    }

    fn wait(&self, error: io::Error, flags: PollFlags, deadline: Instant) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Interrupted => return Ok(()),
            io::ErrorKind::WouldBlock => {}
            _ => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = left.try_into().map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.0, flags)];
        poll(&mut fds, Some(&timeout))?;
        if fds.iter().all(|fd| fd.revents().contains(PollFlags::HUP)) {
            thread::sleep(left.min(NOBODY));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A port and the host's end of it.
    pub(crate) fn pair() -> (Port, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("nonblocking");
        (Port(File::from(OwnedFd::from(ours))), theirs)
    }

    #[test]
    fn a_host_that_neither_reads_nor_writes_cannot_hold_the_guest() {
        let (mut port, _host) = pair();
        let patience = Duration::from_millis(50);
        let written = port
            .write_all(&vec![0; 16 << 20], patience)
            .expect_err("nobody reads");
        assert_eq!(written.kind(), io::ErrorKind::TimedOut);
        let read = port
            .read_exact(&mut [0; 4], patience)
            .expect_err("nobody writes");
        assert_eq!(read.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn bytes_arrive_in_pieces() {
        let (mut port, mut host) = pair();
        let writer = thread::spawn(move || {
            for piece in [b"as".as_slice(), b"say"] {
                host.write_all(piece).expect("written");
                thread::sleep(Duration::from_millis(5));
            }
            host
        });
        let mut buffer = [0; 5];
        port.read_exact(&mut buffer, Duration::from_secs(5))
            .expect("read");
        assert_eq!(&buffer, b"assay");
        drop(writer.join().expect("host"));
    }
}
