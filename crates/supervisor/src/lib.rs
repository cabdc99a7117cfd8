//! Runs one planned guest: verifies the artifact, writes the plan's files, plays
//! the secure processor of a simulated launch, and stays with QEMU to its end.
//!
//! The program `assay-launcher` does so in a pod, and `assay run` on a person's
//! machine. Either is part of the untrusted host: no decision here protects a
//! guest.

mod artifact;
mod events;
mod fault;
pub mod launch;
mod lines;
mod qmp;
mod reaper;
mod simulation;
pub mod supervise;

pub use self::artifact::ArtifactError;
pub use self::events::{GuestEnd, Phase, Progress};
pub use self::fault::TamperError;
pub use self::qmp::{Qmp, QmpError};
pub use self::simulation::{IgvmError, SimulationError};
