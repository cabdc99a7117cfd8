//! What the guest says about itself. A convenience: it gates nothing that
//! protects the guest or its secrets.

use std::fmt;

use assay_tee::guest_event::GuestEvent;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::lines::Lines;

/// How far the guest says it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The last event's phase.
    pub phase: Phase,
    /// Whether the workload was started and has not ended.
    pub running: bool,
    /// What the guest last said of an attestation that failed.
    pub attestation_failure: Option<String>,
    /// How the guest ended, once it said so.
    pub end: Option<GuestEnd>,
}

/// The last thing that the guest said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Nothing yet.
    #[default]
    Starting,
    /// The agent runs.
    Booted,
    /// The verifier accepted the evidence.
    Attested,
    /// The verifier refused the evidence or could not be reached.
    AttestationFailed,
    /// The workload was started.
    Running,
    /// The workload ended.
    Exited,
    /// The agent gave up.
    Failed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How the guest said that it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEnd {
    /// The workload ended with a status.
    Exited(i32),
    /// The agent gave up.
    Failed(String),
}

impl Progress {
    /// Takes note of an event.
    pub(crate) fn observe(&mut self, event: &GuestEvent) {
        match event {
            GuestEvent::Booted => self.phase = Phase::Booted,
            GuestEvent::Attested => self.phase = Phase::Attested,
            GuestEvent::AttestationFailed { message } => {
                self.phase = Phase::AttestationFailed;
                self.attestation_failure = Some(message.clone());
            }
            GuestEvent::Running => {
                self.phase = Phase::Running;
                self.running = true;
            }
            GuestEvent::Exited { code } => {
                self.phase = Phase::Exited;
                self.running = false;
                self.end = Some(GuestEnd::Exited(*code));
            }
            GuestEvent::Failed { message } => {
                self.phase = Phase::Failed;
                self.running = false;
                self.end = Some(GuestEnd::Failed(message.clone()));
            }
        }
    }
}

/// Accepts QEMU's connection and follows the guest's events to their end.
pub(crate) async fn follow(
    listener: UnixListener,
    progress: watch::Sender<Progress>,
) -> std::io::Result<()> {
    let (stream, _) = listener.accept().await?;
    let mut lines = Lines::new(stream);
    while let Some(line) = lines.next().await? {
        match serde_json::from_slice::<GuestEvent>(&line) {
            Ok(event) => {
                // Debug form: a guest's text cannot forge lines of this log.
                info!(event = ?event, "guest");
                progress.send_modify(|progress| progress.observe(&event));
            }
            Err(error) => {
                warn!(line = ?String::from_utf8_lossy(&line), %error, "guest sent no event");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_lasts_from_the_event_to_the_end() {
        let mut progress = Progress::default();
        let steps = [
            (GuestEvent::Booted, Phase::Booted, false),
            (GuestEvent::Attested, Phase::Attested, false),
            (GuestEvent::Running, Phase::Running, true),
            (
                GuestEvent::AttestationFailed {
                    message: String::new(),
                },
                Phase::AttestationFailed,
                true,
            ),
            (GuestEvent::Exited { code: 3 }, Phase::Exited, false),
        ];
        for (event, phase, running) in steps {
            progress.observe(&event);
            assert_eq!(
                (progress.phase, progress.running),
                (phase, running),
                "{event:?}"
            );
        }
        assert_eq!(progress.end, Some(GuestEnd::Exited(3)));
    }
}
