//! The operator: controllers from observation to status.
//!
//! It turns `MeasuredImage`s into launch digests, `ConfidentialDeployment`s into
//! ordinary Deployments, and fresh attestations into the readiness of pods. It
//! decides nothing that releases a secret and never reads one of a workload:
//! that is the broker's part, on evidence alone.
//!
//! Every controller has the same shape: observe (all reads) → validate (a user's
//! mistakes are values) → plan (pure and infallible) → apply ([`apply`], the only
//! code that writes to the API server) → status.

pub mod apply;
pub mod artifact;
pub mod causes;
pub mod context;
pub mod controllers;
pub mod health;
pub mod lease;
pub mod manifest;
pub mod plan;
pub mod pods;
pub mod pull_secret;
pub mod queue;
pub mod restricted;
pub mod run;
pub mod settings;
pub mod simulation;
pub mod verifier;
pub mod watch;

#[cfg(test)]
mod fixtures;
