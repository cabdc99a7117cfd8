//! Verifier and key broker: appraises a guest's evidence, records the verdict,
//! and releases what the policy names to guests whose verdict is in force.
//!
//! Release depends on this service alone. It believes no condition of a pod and
//! no status of a deployment, except the launch digests that a MeasuredImage
//! publishes. It writes AttestationRecords, and never a secret: values leave it
//! only encrypted to the key that the evidence binds.
//!
//! Decisions are pure and in [`appraisal`], [`record`] and [`release`]; why a
//! launch digest is unknown is [`diagnosis`], which no decision reads; the
//! order of reads and writes around them is [`service`]; what the processor's
//! vendor publishes is kept by [`collateral`], and for each node by [`node_trust`]; HTTP is [`server`], the
//! [`inventory`] is the API server's ([`kubernetes`]) or a [`directory`] of
//! [`manifests`], values come from one of the stores of [`secrets`], and what was
//! released is kept by [`audit`]. Keys that the broker makes itself are [`volume`]'s.
//! [`standalone`] makes a broker of them that needs no Kubernetes, and [`publication`]
//! tells a cluster what that one found.

pub mod appraisal;
pub mod audit;
pub mod collateral;
pub mod config;
pub mod diagnosis;
pub mod directory;
#[cfg(test)]
mod fixtures;
pub mod identity;
pub mod inventory;
pub mod keys;
pub mod kubernetes;
pub mod manifests;
pub mod metrics;
pub mod node_trust;
pub mod policy;
pub mod publication;
pub mod record;
pub mod release;
pub mod secrets;
pub mod server;
pub mod service;
pub mod standalone;
pub mod startup;
pub mod state;
pub mod submission;
pub mod token;
pub mod volume;
