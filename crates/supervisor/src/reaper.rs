//! Waits for children: for QEMU, and, as PID 1 of the container, for every
//! orphan that the kernel hands over.

use std::io;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::debug;

/// QEMU as a child that leads its own process group. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    status: oneshot::Receiver<WaitStatus>,
    reaped: bool,
}

impl Child {
    /// Watches over `pid`, which leads a process group and is waited for by
    /// nobody else.
    pub(crate) fn watch(pid: Pid) -> io::Result<Self> {
        // Before the first look: a child that dies in between raises the signal.
        let mut child_signal = signal(SignalKind::child())?;
        let (sender, status) = oneshot::channel();
        tokio::spawn(async move {
            let mut sender = Some(sender);
            loop {
                while let Ok(Some((reaped, status))) = wait(WaitOptions::NOHANG) {
                    if reaped != pid {
                        debug!(pid = reaped.as_raw_nonzero(), "reaped an orphan");
                    } else if let Some(sender) = sender.take() {
                        // The receiver is gone only when the launcher ends.
                        let _ = sender.send(status);
                    }
                }
                if child_signal.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(Self {
            pid,
            status,
            reaped: false,
        })
    }

    /// Waits for the end. `None` when the child can no longer be waited for.
    pub(crate) async fn exited(&mut self) -> Option<WaitStatus> {
        let status = (&mut self.status).await.ok();
        self.reaped = true;
        status
    }

    /// Kills the whole process group.
    pub(crate) fn kill(&self) {
        if let Err(error) = kill_process_group(self.pid, Signal::KILL) {
            debug!(%error, "nothing left to kill");
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}
