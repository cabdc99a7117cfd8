//! Reference values outside the cluster.
//!
//! In the cluster a MeasuredImage publishes which launch digests are accepted
//! and an AttestationPolicy what else evidence must show. Here both become one
//! in-toto [`Statement`] that its issuer signs ([`Bundle`]); what other
//! verifiers read ([`rvps`], [`corim`]) is derived from it.
//!
//! Nothing here reads a clock or a file. A statement is believed only after
//! [`verify`], and read only in the one byte form that [`Statement::encode`]
//! gives it: a member that this version does not know is an error, never a rule
//! that goes unheeded.

mod bundle;
pub mod corim;
pub mod derived;
mod diff;
mod dsse;
mod key;
mod objects;
pub mod rvps;
mod statement;
mod tcb;

pub use bundle::{Bundle, BundleError, MEDIA_TYPE as BUNDLE_MEDIA_TYPE, VerifyError, verify};
pub use diff::{Accepts, DiffError, Difference, Side, differences};
pub use dsse::{PAYLOAD_TYPE, pre_authentication_encoding};
pub use key::{Curve, PublicKey, ReadKeyError, SignatureError, SigningKey};
pub use objects::{ObjectError, image_of, policy_of, to_measured_image, to_policy};
pub use statement::{
    Image, PREDICATE_TYPE, Part, PartKind, Policy, Predicate, Row, STATEMENT_TYPE, Statement,
    StatementError, Subject, SubjectDigest, Validity,
};
