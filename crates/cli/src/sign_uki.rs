//! `assay sign-uki`: signatures of UKIs for Secure Boot.
//!
//! `create` signs with a key in a file. With a key in a hardware security module
//! `prepare` writes the bytes to sign and `assemble` takes the signature.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use assay_image::authenticode::{
    ImageSigner, SignedBy, SigningCertificate, SigningKey, signed_attributes,
};
use assay_tee::Sha256Digest;
use zeroize::Zeroizing;

use crate::{output_file, stdout};

/// What a person may type.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Sign with a key in a file
    Create(CreateArgs),
    /// Write the bytes to sign, for a key that is not in a file
    Prepare(PrepareArgs),
    /// Put a signature that was made elsewhere into a UKI
    Assemble(AssembleArgs),
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// The unified kernel image, or any EFI executable
    uki: PathBuf,
    /// Private key, PEM (PKCS#8 or PKCS#1), RSA with 2048 to 4096 bits, not encrypted
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Certificate of the key, PEM or DER
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// The signed image
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
struct PrepareArgs {
    /// The unified kernel image, or any EFI executable
    uki: PathBuf,
    /// File for the bytes to sign
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
struct AssembleArgs {
    /// The image that the bytes to sign were made from
    uki: PathBuf,
    /// Certificate of the key, PEM or DER
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// RSA signature (PKCS#1 v1.5, SHA-256) of what `prepare` wrote
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
    /// The signed image
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Options of `assay build` for a UKI that is signed.
#[derive(Debug, clap::Args)]
pub(crate) struct SecureBootArgs {
    /// Sign the UKI for Secure Boot: certificate, PEM or DER
    #[arg(
        long = "secure-boot-certificate",
        value_name = "FILE",
        requires = "secure_boot_by"
    )]
    certificate: Option<PathBuf>,
    /// Private key of the certificate, PEM, RSA with 2048 to 4096 bits, not encrypted
    #[arg(
        long = "secure-boot-key",
        value_name = "FILE",
        group = "secure_boot_by",
        requires = "certificate"
    )]
    key: Option<PathBuf>,
    /// Signature made elsewhere of what `assay sign-uki prepare` wrote for the
    /// UKI of the same recipe
    #[arg(
        long = "secure-boot-signature",
        value_name = "FILE",
        group = "secure_boot_by",
        requires = "certificate"
    )]
    signature: Option<PathBuf>,
}

impl SecureBootArgs {
    /// What signs the UKI, where something does.
    pub(crate) fn signer(&self) -> Result<Option<ImageSigner>> {
        let Some(path) = &self.certificate else {
            return Ok(None);
        };
        let by = match (&self.key, &self.signature) {
            (Some(key), _) => SignedBy::Key(read_key("--secure-boot-key", key)?),
            (None, Some(path)) => SignedBy::Signature(read("--secure-boot-signature", path)?),
            // The parser demands one of them.
            (None, None) => bail!("give --secure-boot-key or --secure-boot-signature"),
        };
        let certificate = read_certificate("--secure-boot-certificate", path)?;
        Ok(Some(ImageSigner { certificate, by }))
    }
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Create(args) => {
            let signer = ImageSigner {
                certificate: read_certificate("--certificate", &args.certificate)?,
                by: SignedBy::Key(read_key("--key", &args.key)?),
            };
            sign(&args.uki, &signer, &args.output)
        }
        Command::Prepare(args) => prepare(args),
        Command::Assemble(args) => {
            let signer = ImageSigner {
                certificate: read_certificate("--certificate", &args.certificate)?,
                by: SignedBy::Signature(read("--signature", &args.signature)?),
            };
            sign(&args.uki, &signer, &args.output)
        }
    }
}

fn prepare(args: &PrepareArgs) -> Result<()> {
    let path = args.uki.display();
    let attributes = signed_attributes(&read("UKI", &args.uki)?)
        .with_context(|| format!("cannot tell what to sign of {path}"))?;
    let len = attributes.len();
    write(&args.output, attributes)?;
    stdout::write_line(format_args!("{}  {len} bytes", args.output.display()))?;
    eprintln!(
        "note: sign these bytes with RSA (PKCS #1 v1.5) and SHA-256, then run `assemble`, or \
         `assay build` again with --secure-boot-signature"
    );
    Ok(())
}

fn sign(uki: &Path, signer: &ImageSigner, output: &Path) -> Result<()> {
    let signed = signer
        .sign(&read("UKI", uki)?)
        .with_context(|| format!("cannot sign {}", uki.display()))?;
    let (len, digest) = (signed.len(), Sha256Digest::of(&signed));
    write(output, signed)?;
    stdout::write_line(format_args!(
        "{}  {len} bytes\ndigest              {digest}\ncertificate digest  {}",
        output.display(),
        signer.certificate.digest()
    ))?;
    Ok(())
}

pub(crate) fn read(what: &str, path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{what} {}", path.display()))
}

fn write(path: &Path, bytes: Vec<u8>) -> Result<()> {
    output_file::write(path, &bytes.into()).context("--output")
}

fn read_certificate(option: &str, path: &Path) -> Result<SigningCertificate> {
    SigningCertificate::parse(&read(option, path)?)
        .with_context(|| format!("{option} {}", path.display()))
}

pub(crate) fn read_key(option: &str, path: &Path) -> Result<SigningKey> {
    let text = Zeroizing::new(read(option, path)?);
    SigningKey::from_pem(&text).with_context(|| format!("{option} {}", path.display()))
}
