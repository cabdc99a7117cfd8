//! Telling the launcher and the console what happens.
//!
//! Events are a convenience for the host's side, so no failure here matters to
//! the guest: what cannot be delivered in time is dropped. Nothing secret may
//! ever be passed to this module.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

use assay_tee::guest_event::{EVENT_PORT, GuestEvent};

use crate::devices;
use crate::failure::printable;
use crate::port::Port;

/// How long a host may take to read one event.
const DELIVERY: Duration = Duration::from_secs(2);
/// Events kept until the port exists.
const BACKLOG: usize = 16;

static OUTBOX: Mutex<Outbox> = Mutex::new(Outbox {
    port: None,
    backlog: VecDeque::new(),
});

struct Outbox {
    port: Option<Port>,
    backlog: VecDeque<GuestEvent>,
}

/// Reports an event on the console and the event port. Before the port exists
/// it is kept.
pub fn emit(event: GuestEvent) {
    say(&console_line(&event));
    let mut outbox = match OUTBOX.try_lock() {
        Ok(outbox) => outbox,
        Err(TryLockError::Poisoned(outbox)) => outbox.into_inner(),
        // A panic hook may run inside the lock, and must not wait for itself.
        Err(TryLockError::WouldBlock) if std::thread::panicking() => return,
        Err(TryLockError::WouldBlock) => OUTBOX.lock().unwrap_or_else(PoisonError::into_inner),
    };
    outbox.deliver(Some(event), Duration::ZERO);
}

/// Delivers what was kept, waiting up to `patience` for the port to appear.
pub fn flush(patience: Duration) {
    if let Ok(mut outbox) = OUTBOX.lock() {
        outbox.deliver(None, patience);
    }
}

/// Writes one line to the console.
pub fn say(line: &str) {
    // Without a console there is nobody to tell.
    let _ = io::stderr().write_all(format!("assay: {}\n", printable(line)).as_bytes());
}

fn console_line(event: &GuestEvent) -> String {
    match event {
        GuestEvent::Booted => "booted".to_owned(),
        GuestEvent::Attested => "attested".to_owned(),
        GuestEvent::AttestationFailed { message } => format!("attestation failed: {message}"),
        GuestEvent::Running => "the workload runs".to_owned(),
        GuestEvent::Exited { code } => format!("the workload ended with status {code}"),
        GuestEvent::Failed { message } => format!("failed: {message}"),
    }
}

impl Outbox {
    fn deliver(&mut self, event: Option<GuestEvent>, patience: Duration) {
        if self.backlog.len() == BACKLOG && event.is_some() {
            self.backlog.pop_front();
        }
        self.backlog.extend(event);
        if self.port.is_none() {
            let node = devices::serial_port(EVENT_PORT, patience).ok();
            self.port = node.and_then(|node| Port::open(&node).ok());
        }
        let Some(port) = &mut self.port else { return };
        while let Some(event) = self.backlog.pop_front() {
            let Ok(mut line) = serde_json::to_vec(&event) else {
                continue;
            };
            line.push(b'\n');
            let _ = port.write_all(&line, DELIVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_says_every_event_on_one_line() {
        for event in [
            GuestEvent::Booted,
            GuestEvent::Attested,
            GuestEvent::AttestationFailed {
                message: "refused".to_owned(),
            },
            GuestEvent::Running,
            GuestEvent::Exited { code: 3 },
            GuestEvent::Failed {
                message: "no disk".to_owned(),
            },
        ] {
            let line = console_line(&event);
            assert!(!line.is_empty() && !line.contains('\n'), "{line}");
        }
    }
}
