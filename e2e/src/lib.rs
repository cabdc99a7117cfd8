//! Scenarios on a real cluster, told once: `cargo xtask demo` narrates them and
//! `cargo xtask test` asserts them.
//!
//! They use what a person would use: helm, kubectl and the `assay` command. Waiting is for conditions with generous deadlines, and a deadline
//! that passes prints what a person would look at.

pub mod builds;
pub mod environment;
pub mod install;
pub mod kubectl;
pub mod leaks;
pub mod phases;
pub mod private;
pub mod quickstart;
pub mod samples;
pub mod visitor;
pub mod wait;

pub use environment::Environment;
pub use kubectl::Kubectl;
