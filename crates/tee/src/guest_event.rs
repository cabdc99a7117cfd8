//! What the guest agent tells its launcher: one JSON object per line on the
//! virtio-serial port [`EVENT_PORT`].
//!
//! The launcher must treat it as a convenience: a guest can say anything, and a
//! host can forge it. No security decision rests on it.

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port that carries the events.
pub const EVENT_PORT: &str = "dev.assay.events";

/// Name of the virtio-serial port of the simulated secure processor. A request
/// is a little-endian `u32` length and a MSG_REPORT_REQ; a response is a length,
/// a MSG_REPORT_RSP and the certificate table of an extended request.
pub const PSP_SIM_PORT: &str = "dev.assay.psp-sim";

/// Progress of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum GuestEvent {
    /// The agent runs as PID 1.
    Booted,
    /// The verifier accepted the guest's evidence.
    Attested,
    /// The verifier refused the evidence or could not be reached; the agent
    /// tries again.
    AttestationFailed {
        /// What happened, for a person.
        message: String,
    },
    /// The workload has been started.
    Running,
    /// The workload has ended; the guest powers off.
    Exited {
        /// Exit status, or 128 plus the signal's number.
        code: i32,
    },
    /// The agent cannot go on; the guest powers off.
    Failed {
        /// What happened, for a person.
        message: String,
    },
}
