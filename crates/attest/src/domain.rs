//! What a chain that ends in a trust anchor proves.

use std::fmt;

use assay_tee::{Sha256Digest, Tee};
use serde::{Deserialize, Serialize};

/// Whose word the evidence rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum TrustDomain {
    /// AMD vouches for the processor.
    #[serde(rename = "AMD")]
    Amd,
    /// Intel vouches for the processor.
    Intel,
    /// A development root vouches for a simulation. It proves that the logic
    /// works and protects nothing.
    Simulated {
        /// SHA-256 of the root's DER.
        anchor: Sha256Digest,
    },
}

impl TrustDomain {
    /// The TEE that evidence of this domain comes from, if it is one that guests
    /// are launched in: TDs are appraised, and not launched.
    pub const fn tee(self) -> Option<Tee> {
        match self {
            Self::Amd => Some(Tee::Snp),
            Self::Intel => None,
            Self::Simulated { .. } => Some(Tee::SimulatedSnp),
        }
    }

    /// Whether real hardware protects the guest.
    pub const fn is_hardware(self) -> bool {
        match self {
            Self::Amd | Self::Intel => true,
            Self::Simulated { .. } => false,
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amd => f.write_str("AMD"),
            Self::Intel => f.write_str("Intel"),
            Self::Simulated { anchor } => write!(f, "Simulated {anchor}"),
        }
    }
}
