//! Options of `assay build` for PCR values that are signed.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use assay_image::pcr_signature::{PcrKey, PcrSignedBy, PcrSigner};

use crate::sign_uki::{read, read_key};

#[derive(Debug, clap::Args)]
pub(crate) struct PcrSignatureArgs {
    /// Sign the values of PCR 11 for TPM policies: private key, PEM, RSA with 2048 to
    /// 4096 bits, not encrypted. Its public key becomes section .pcrpkey
    #[arg(
        long = "pcr-private-key",
        value_name = "FILE",
        conflicts_with = "public_key"
    )]
    private_key: Option<PathBuf>,
    /// Public key of a private key that is elsewhere, PEM: it becomes section .pcrpkey
    #[arg(long = "pcr-public-key", value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// Signature made elsewhere of what `assay pcrs --policy-digest` wrote for the UKI
    /// of the same recipe and public key; one for each --pcr-phase, in order
    #[arg(long = "pcr-signature", value_name = "FILE", requires = "public_key")]
    signatures: Vec<PathBuf>,
    /// Phase of the boot to sign for, as systemd-pcrphase measures it; may be given
    /// more than once [default: before any phase, as Assay's agent measures none]
    #[arg(long = "pcr-phase", value_name = "WORD:WORD")]
    phases: Vec<String>,
}

impl PcrSignatureArgs {
    /// What signs the PCR values, where something does.
    pub(crate) fn signer(&self) -> Result<Option<PcrSigner>> {
        let phases = if self.phases.is_empty() {
            vec![String::new()]
        } else {
            self.phases.clone()
        };
        if let Some(path) = &self.private_key {
            let option = "--pcr-private-key";
            let signer = PcrSigner::with_key(read_key(option, path)?, phases);
            return signer.map(Some).context(option);
        }
        let Some(path) = &self.public_key else {
            return Ok(None);
        };
        let option = "--pcr-public-key";
        let key = PcrKey::from_pem(&read(option, path)?)
            .with_context(|| format!("{option} {}", path.display()))?;
        let made = self.signatures.iter();
        let made = made
            .map(|path| read("--pcr-signature", path))
            .collect::<Result<Vec<_>>>()?;
        let by = if made.is_empty() {
            PcrSignedBy::Nobody
        } else {
            PcrSignedBy::Signatures(made)
        };
        Ok(Some(PcrSigner { key, phases, by }))
    }
}
