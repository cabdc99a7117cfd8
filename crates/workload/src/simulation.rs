//! The development PKI that simulated guests attest under. It guards nothing:
//! whoever can read a launch specification has the key. Evidence under it is
//! refused wherever a policy does not name the simulated TEE.

use assay_psp_sim::pki::{Endorsement, PkiError};
use assay_tee::TcbVersion;
use jiff::Timestamp;

/// Name of the one chip that all simulated guests run on.
const CHIP_NAME: &str = "assay simulated chip";
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// The development PKI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulationPki {
    /// PEM of the VCEK's private key, PKCS#8.
    pub vcek_key: String,
    /// PEM of VCEK, ASK and ARK, in this order.
    pub vcek_chain: String,
    /// PEM of the ARK, the root.
    pub ark: String,
}

/// The TCB of the simulated chip: that of a Genoa with the firmware of 2025, so
/// that policies written for real machines are exercised too.
fn tcb() -> TcbVersion {
    TcbVersion {
        fmc: None,
        bootloader: 10,
        tee: 0,
        snp: 25,
        microcode: 84,
    }
}

impl SimulationPki {
    /// Makes a new one that is valid from `now`.
    ///
    /// # Errors
    /// When the random number generator fails.
    pub fn generate(now: Timestamp) -> Result<Self, PkiError> {
        let endorsement = Endorsement::generate(CHIP_NAME, tcb(), now)?;
        Self::from_pem(endorsement.key_pem()?, endorsement.chain_pem()?)
    }

    /// From its PEM.
    ///
    /// # Errors
    /// When key and chain cannot be read or do not belong together.
    pub fn from_pem(vcek_key: String, vcek_chain: String) -> Result<Self, PkiError> {
        Endorsement::from_pem(&vcek_key, &vcek_chain)?;
        let ark = vcek_chain
            .rfind(PEM_BEGIN)
            .and_then(|start| vcek_chain.get(start..));
        let ark = ark.unwrap_or_default().to_owned();
        Ok(Self {
            vcek_key,
            vcek_chain,
            ark,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_last_certificate() {
        let pki = SimulationPki::generate(Timestamp::from_second(1_760_000_000).unwrap()).unwrap();
        assert_eq!(pki.ark.matches(PEM_BEGIN).count(), 1);
        assert!(pki.vcek_chain.ends_with(&pki.ark));
    }
}
