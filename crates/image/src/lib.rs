//! Reproducible measured images: OCI in, erofs, verity, initramfs and UKI out.
//!
//! Every writer here is pure and deterministic: the same inputs give the same
//! bytes on every machine, so an artifact's digest says what it was made of and
//! anyone can check that by building it again. Nothing in this crate reads a
//! file, a clock or the network; callers hand in bytes and take bytes away.

pub mod artifact;
pub mod authenticode;
pub mod boot_kit;
pub mod bzimage;
pub mod compare;
pub mod deb;
pub mod disk;
mod elf;
pub mod erofs;
pub mod flatten;
pub mod hardening;
pub mod igvm;
pub mod initramfs;
pub mod kernel_config;
pub mod kernel_loader;
pub mod manifest;
pub mod modules;
pub mod newc;
pub mod oci;
#[cfg(test)]
mod oracles;
pub mod packages;
pub mod pcr;
pub mod pcr_signature;
pub mod pe;
pub mod process;
pub mod provenance;
pub mod read;
pub mod recipe;
pub mod rope;
pub mod sbom;
pub mod tarball;
pub mod tree;
pub mod uki;
pub mod verity;
