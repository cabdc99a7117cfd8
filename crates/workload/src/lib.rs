//! What a MeasuredImage, an AttestationPolicy and a ConfidentialDeployment come
//! to: the recipe of a build, what an artifact's status says, the rows of launch
//! digests, and the specification of a launch.
//!
//! Pure: objects in, values out. The operator and `assay` call the same functions,
//! so that an object means the same in a cluster and on a person's machine. What
//! there is besides the objects is in [`validate::Surroundings`].

pub mod artifact;
pub mod launch;
pub mod recipe;
pub mod shapes;
pub mod simulation;
pub mod validate;
