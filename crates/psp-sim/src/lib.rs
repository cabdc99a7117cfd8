//! A simulated SEV-SNP secure processor: launch commands that compute the
//! launch digest, attestation reports in the real format, and a development
//! PKI of the vendor's shape.
//!
//! It lets everything that surrounds a processor run and be tested without
//! one. It protects nothing: whoever has the key can sign anything, and every
//! verifier refuses its evidence unless it was configured to trust this very
//! root and its policy names the simulated TEE.
//!
//! The launch digest is computed here from the commands, not by the code that
//! predicts it: the two check each other.
//!
//! Follows the SEV-SNP Firmware ABI (AMD 56860), versions of 1.55, and the VCEK
//! certificate specification (AMD 57230).

mod certificate;
mod error;
pub mod id_block;
pub mod kds;
pub mod pki;
pub mod processor;

pub use id_block::{IdBlockError, IdBlockInput};
pub use kds::KeyDistributionService;
pub use pki::{Authority, Endorsement, KeyTemplate, PkiError, RevocationListTemplate};
pub use processor::{Guest, LaunchError, Launching, Processor};
