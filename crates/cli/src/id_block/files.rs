//! Reading keys, signatures and blocks, and writing blocks. Every error names
//! the option and the file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assay_attest::id_block::{PrivateKey, read_public_key, read_signature};
use assay_tee::id_block::{
    EcdsaPublicKey, EcdsaSignature, ID_AUTH_LEN, ID_BLOCK_LEN, IdAuth, IdBlock,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Where and how results are written.
#[derive(Debug, clap::Args)]
pub(super) struct Destination {
    /// Directory for `id-block` and `id-auth` [default: print what QEMU's
    /// sev-snp-guest object takes]
    #[arg(long, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,
    /// Form of the files
    #[arg(long, value_enum, default_value_t, requires = "output")]
    pub(super) format: Format,
    /// Print blocks and key digests as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Form of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// As the processor reads it
    #[default]
    Binary,
    /// As QEMU takes it
    Base64,
}

pub(super) fn read(option: &str, path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{option} {}", path.display()))
}

pub(super) fn private_key(option: &str, path: &Path) -> Result<PrivateKey> {
    let bytes = Zeroizing::new(read(option, path)?);
    // What is not text is no PEM: the key reader says so.
    let text = str::from_utf8(&bytes).unwrap_or_default();
    PrivateKey::from_pem(text).with_context(|| format!("{option} {}", path.display()))
}

pub(super) fn public_key(option: &str, path: &Path) -> Result<EcdsaPublicKey> {
    let bytes = Zeroizing::new(read(option, path)?);
    read_public_key(&bytes).with_context(|| format!("{option} {}", path.display()))
}

pub(super) fn signature(option: &str, path: &Path) -> Result<EcdsaSignature> {
    read_signature(&read(option, path)?).with_context(|| format!("{option} {}", path.display()))
}

pub(super) fn id_block(path: &Path) -> Result<IdBlock> {
    IdBlock::parse(&binary("--id-block", path, ID_BLOCK_LEN)?)
        .with_context(|| format!("--id-block {}", path.display()))
}

pub(super) fn id_auth(path: &Path) -> Result<IdAuth> {
    IdAuth::parse(&binary("--id-auth", path, ID_AUTH_LEN)?)
        .with_context(|| format!("--id-auth {}", path.display()))
}

/// The content of a file that may be base64 of `length` bytes.
fn binary(option: &str, path: &Path, length: usize) -> Result<Vec<u8>> {
    let bytes = read(option, path)?;
    if bytes.len() == length {
        return Ok(bytes);
    }
    let decoded = STANDARD.decode(bytes.trim_ascii()).ok();
    Ok(decoded
        .filter(|decoded| decoded.len() == length)
        .unwrap_or(bytes))
}

pub(super) fn create_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("--output {}", path.display()))
}

/// Writes a file and says what it is.
pub(super) fn write(path: &Path, bytes: &[u8], format: Format) -> Result<String> {
    let content = match format {
        Format::Binary => bytes.to_vec(),
        Format::Base64 => STANDARD.encode(bytes).into_bytes(),
    };
    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    Ok(format!("{}  {} bytes", path.display(), bytes.len()))
}
