//! The API types of `assay.dev`, their defaults, their CEL rules and the names
//! that controllers agree on.
//!
//! The Rust types are the source: `cargo xtask crdgen` writes `crds/yaml/` from
//! them. Field documentation is the user's manual (`kubectl explain`). No client
//! and no I/O live here.

// The schema derive repeats every type in a private scope, which this lint then
// reports.
#![allow(unreachable_pub)]
// Printer columns repeat their keys; the lint takes them for one attribute.
#![allow(clippy::duplicated_attributes)]

pub mod conditions;
pub mod digest;
pub mod duration;
pub mod names;
pub mod v1alpha1;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// All definitions, in the order in which a person reads them.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![
        v1alpha1::MeasuredImage::crd(),
        v1alpha1::ConfidentialDeployment::crd(),
        v1alpha1::AttestationPolicy::crd(),
        v1alpha1::AttestationRecord::crd(),
        v1alpha1::NodeTrust::crd(),
    ]
}
