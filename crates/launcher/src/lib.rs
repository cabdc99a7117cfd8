//! Plans and runs QEMU for one confidential guest.
//!
//! The library is pure: [`spec::LaunchSpec`] in, a plan of QEMU's arguments and
//! files out. The binary supervises.

pub mod spec;
