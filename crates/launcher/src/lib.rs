//! Plans and runs QEMU for one confidential guest.
//!
//! The library is pure: [`spec::LaunchSpec`] in, a plan of QEMU's arguments and
//! files out ([`plan::plan`]). The binary verifies the artifact, writes the
//! files, plays the secure processor of a simulated launch, and supervises QEMU.
//!
//! The launcher is part of the untrusted host: nothing that a verifier relies on
//! may depend on what it does right.

pub mod plan;
mod qemu;
pub mod spec;
