//! Plans QEMU for one confidential guest.
//!
//! Pure: [`spec::LaunchSpec`] in, a plan of QEMU's arguments and files out
//! ([`plan::plan`]). `assay-supervisor` carries plans out.
//!
//! Whoever does that is part of the untrusted host: nothing that a verifier relies
//! on may depend on what it does right.

pub mod plan;
mod qemu;
pub mod spec;
