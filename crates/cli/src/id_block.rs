//! `assay id-block`: what a guest's owner signs so that the processor launches
//! nothing else.
//!
//! `create` signs with keys in files. With a key in a hardware security module
//! `prepare` writes the bytes to sign and `assemble` takes the signatures.

mod fields;
mod files;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use assay_attest::id_block::{Signers, assemble, differences, sign, verify};
use assay_tee::AttestationReport;
use assay_tee::id_block::{IdAuth, IdBlock, KeyAndSignature};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::stdout;

use fields::BlockArgs;
use files::{Destination, Format};

/// What a person may type.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make and sign an ID block with keys in files
    Create(CreateArgs),
    /// Write the bytes to sign, for a key that is not in a file
    Prepare(PrepareArgs),
    /// Put signatures that were made elsewhere into an ID authentication
    Assemble(AssembleArgs),
    /// Verify the signatures of an ID block, and compare it with a report
    Verify(VerifyArgs),
    /// Print the digest of a key as reports carry it
    KeyDigest(KeyDigestArgs),
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    #[command(flatten)]
    block: BlockArgs,
    /// Private ID key, PEM (PKCS#8 or SEC 1), P-384, not encrypted
    #[arg(long, value_name = "FILE")]
    id_key: PathBuf,
    /// Private author key, PEM; signs the ID key
    #[arg(long, value_name = "FILE")]
    author_key: Option<PathBuf>,
    #[command(flatten)]
    output: Destination,
}

#[derive(Debug, clap::Args)]
struct PrepareArgs {
    #[command(flatten)]
    block: BlockArgs,
    /// Public ID key, PEM or DER; gives the bytes for the author key to sign
    #[arg(long, value_name = "FILE")]
    id_public_key: Option<PathBuf>,
    /// Directory for `id-block`, and for `id-key` where --id-public-key is given
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
struct AssembleArgs {
    /// ID block that was signed, as `prepare` wrote it
    #[arg(long, value_name = "FILE")]
    id_block: PathBuf,
    /// Public ID key, PEM or DER
    #[arg(long, value_name = "FILE")]
    id_public_key: PathBuf,
    /// Signature of `id-block` by the ID key, DER or r and s of 48 bytes
    #[arg(long, value_name = "FILE")]
    id_signature: PathBuf,
    /// Public author key, PEM or DER
    #[arg(long, value_name = "FILE", requires = "author_signature")]
    author_public_key: Option<PathBuf>,
    /// Signature of `id-key` by the author key, DER or r and s of 48 bytes
    #[arg(long, value_name = "FILE", requires = "author_public_key")]
    author_signature: Option<PathBuf>,
    #[command(flatten)]
    output: Destination,
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// ID block, binary or base64
    #[arg(long, value_name = "FILE")]
    id_block: PathBuf,
    /// ID authentication, binary or base64
    #[arg(long, value_name = "FILE")]
    id_auth: PathBuf,
    /// Attestation report that must show a launch with this ID block. Its own
    /// signature is the business of `assay verify`
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct KeyDigestArgs {
    /// Public or private key, PEM, or public key, DER
    #[arg(value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// Print base64, as sev-snp-measure does, instead of hexadecimal
    #[arg(long)]
    base64: bool,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Create(args) => create(args),
        Command::Prepare(args) => prepare(args),
        Command::Assemble(args) => assemble_parts(args),
        Command::Verify(args) => verify_files(args),
        Command::KeyDigest(args) => key_digest(args),
    }
}

fn create(args: &CreateArgs) -> Result<()> {
    let block = args.block.to_block()?;
    let id_key = files::private_key("--id-key", &args.id_key)?;
    let author_key = args
        .author_key
        .as_deref()
        .map(|path| files::private_key("--author-key", path))
        .transpose()?;
    let auth = sign(&block, &id_key, author_key.as_ref());
    finish(&block, &auth, &args.output)
}

fn prepare(args: &PrepareArgs) -> Result<()> {
    let block = args.block.to_block()?;
    files::create_directory(&args.output)?;
    let mut lines = vec![files::write(
        &args.output.join("id-block"),
        &block.encode(),
        Format::Binary,
    )?];
    if let Some(path) = &args.id_public_key {
        let key = files::public_key("--id-public-key", path)?;
        lines.push(files::write(
            &args.output.join("id-key"),
            &key.encode(),
            Format::Binary,
        )?);
    }
    stdout::write_line(lines.join("\n"))?;
    eprintln!("note: sign these bytes with ECDSA on P-384 and SHA-384, then run `assemble`");
    Ok(())
}

fn assemble_parts(args: &AssembleArgs) -> Result<()> {
    let block = files::id_block(&args.id_block)?;
    let id = KeyAndSignature {
        key: files::public_key("--id-public-key", &args.id_public_key)?,
        signature: files::signature("--id-signature", &args.id_signature)?,
    };
    let author = match (&args.author_public_key, &args.author_signature) {
        (Some(key), Some(signature)) => Some(KeyAndSignature {
            key: files::public_key("--author-public-key", key)?,
            signature: files::signature("--author-signature", signature)?,
        }),
        _ => None,
    };
    let auth = assemble(&block, &id, author.as_ref()).context("put the parts together")?;
    finish(&block, &auth, &args.output)
}

/// Writes the files, or prints what QEMU's object takes.
fn finish(block: &IdBlock, auth: &IdAuth, output: &Destination) -> Result<()> {
    let signers = Signers::claimed_by(auth);
    let (block, auth) = (block.encode(), auth.encode());
    let encoded = (STANDARD.encode(block), STANDARD.encode(auth));
    let mut qemu = format!("id-block={},id-auth={}", encoded.0, encoded.1);
    if signers.author_key_digest.is_some() {
        qemu.push_str(",author-key-enabled=on");
    }
    let written = match &output.output {
        Some(directory) => {
            files::create_directory(directory)?;
            vec![
                files::write(&directory.join("id-block"), &block, output.format)?,
                files::write(&directory.join("id-auth"), &auth, output.format)?,
            ]
        }
        None => Vec::new(),
    };
    if output.json {
        let mut document = json!({
            "idBlock": encoded.0,
            "idAuth": encoded.1,
            "qemu": qemu,
        });
        merge(&mut document, serde_json::to_value(signers)?);
        stdout::write_line(serde_json::to_string_pretty(&document)?)?;
    } else if written.is_empty() {
        stdout::write_line(qemu)?;
        eprintln!("{}", text_of(&signers));
    } else {
        stdout::write_line(format_args!(
            "{}\n{}",
            written.join("\n"),
            text_of(&signers)
        ))?;
    }
    Ok(())
}

fn verify_files(args: &VerifyArgs) -> Result<()> {
    let block = files::id_block(&args.id_block)?;
    let auth = files::id_auth(&args.id_auth)?;
    let signers = verify(&block, &auth).with_context(|| {
        format!(
            "{} does not belong to {}",
            args.id_auth.display(),
            args.id_block.display()
        )
    })?;
    let differences = match &args.report {
        Some(path) => {
            let report = AttestationReport::parse(&files::read("--report", path)?)
                .with_context(|| format!("--report {}", path.display()))?;
            Some(differences(&block, &signers, &report)?)
        }
        None => None,
    };
    if args.json {
        let mut document = fields::to_json(&block);
        merge(&mut document, serde_json::to_value(signers)?);
        if let Some(differences) = &differences {
            document["reportDifferences"] = serde_json::to_value(differences)?;
        }
        stdout::write_line(serde_json::to_string_pretty(&document)?)?;
    } else {
        stdout::write_line(format_args!(
            "{}\n{}",
            fields::to_text(&block),
            text_of(&signers)
        ))?;
    }
    let Some(differences) = differences else {
        return Ok(());
    };
    if !differences.is_empty() {
        let lines: Vec<String> = differences
            .iter()
            .map(|row| {
                format!(
                    "{}: the ID block has {}, the report {}",
                    row.field, row.expected, row.observed
                )
            })
            .collect();
        bail!(
            "the report shows no launch with this ID block: {}",
            lines.join("; ")
        );
    }
    eprintln!("note: the report's own signature is not verified here; use `assay verify`");
    Ok(())
}

fn key_digest(args: &KeyDigestArgs) -> Result<()> {
    for path in &args.keys {
        let digest = files::public_key("key", path)?.digest();
        let text = if args.base64 {
            STANDARD.encode(digest.as_bytes())
        } else {
            digest.to_hex()
        };
        if args.keys.len() == 1 {
            stdout::write_line(text)?;
        } else {
            stdout::write_line(format_args!("{text}  {}", path.display()))?;
        }
    }
    Ok(())
}

fn text_of(signers: &Signers) -> String {
    let id = format!("ID key digest      {}", signers.id_key_digest.to_hex());
    match signers.author_key_digest {
        Some(author) => format!("{id}\nauthor key digest  {}", author.to_hex()),
        None => id,
    }
}

/// Adds the members of `more` to the object `document`.
fn merge(document: &mut serde_json::Value, more: serde_json::Value) {
    if let (Some(document), serde_json::Value::Object(more)) = (document.as_object_mut(), more) {
        document.extend(more);
    }
}
