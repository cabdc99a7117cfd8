//! PID 1 of a confidential guest.
//!
//! The agent sets up the guest from its measured configuration, proves to the
//! verifier what it is, places the resources that the proof releases, and only
//! then starts the workload. It trusts nothing that the host hands over: the
//! command line must be the measured one, the instance data must be bound by
//! the processor's own report, and the root file system is read through
//! dm-verity.
//!
//! Decisions are pure and live in [`validate`] and [`plan`]; [`exec`] carries out [`step::Step`]s without deciding anything. Whatever
//! fails before the workload runs ends in a powered-off guest, never in a
//! workload that was not attested.

pub mod attest;
pub mod backoff;
pub mod devices;
pub mod events;
pub mod evidence;
pub mod exec;
pub mod failure;
pub mod http;
pub mod init;
pub mod netlink;
pub mod plan;
pub mod port;
pub mod power;
pub mod resource;
pub mod step;
mod sys;
pub mod validate;
pub mod verity;
pub mod workload;
