//! Appraisal of SEV-SNP and TDX evidence: evidence, trust anchors, reference values
//! and a policy in, a verdict with every check out.
//!
//! The entries are [`appraise()`] for SNP and [`tdx::appraise_quote()`] for TDX. They
//! are pure: they read no clock, no file and no network, so that the same inputs give
//! the same verdict anywhere, and a stored piece of evidence can be appraised again
//! by anyone. They fail closed: a verdict is `Accepted` only when every check of
//! [`CheckName::SNP`] or [`CheckName::TDX`] was made and passed, or is one that the
//! policy visibly does without.
//!
//! It must never take a trust anchor from evidence, pad or cut an expected
//! value, or leave out a check because something to compare with is missing.
//!
//! Vocabulary: RFC 9334. Layouts and rules: SEV-SNP Firmware ABI (AMD 56860)
//! and the VCEK certificate specification (AMD 57230).

pub mod anchors;
mod appraise;
mod certificate;
mod chain;
pub mod collateral;
pub mod crypto;
pub mod describe;
mod domain;
pub mod evidence;
mod extensions;
pub mod id_block;
mod ledger;
pub mod memory;
mod platform;
pub mod policy;
mod published;
pub mod reference;
mod signing_key;
mod td_claims;
pub mod tdx;
pub mod verdict;

pub use anchors::TrustAnchors;
pub use appraise::{appraise, appraise_with};
pub use domain::TrustDomain;
pub use evidence::{Binding, Endorsements, Evidence};
pub use memory::{ChainMemory, NoMemory, VerifiedChains};
pub use policy::AppraisalPolicy;
pub use reference::{ReferenceState, ReferenceValue, ReferenceValues};
pub use verdict::{Check, CheckName, CheckResult, Claims, Outcome, ReasonCode, TcbClaims, Verdict};
