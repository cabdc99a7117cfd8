//! `assay policy export` and `assemble`: from objects or a manifest to a signed
//! statement, and from a statement to what other verifiers read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use assay_crds::duration::Duration;
use assay_crds::v1alpha1::attestation_policy::Product;
use assay_crds::v1alpha1::measured_image::LifecycleState;
use assay_image::manifest::Manifest;
use assay_measure::{VcpuProfile, measure_vcpu_counts};
use assay_reference::{
    Bundle, Image, PAYLOAD_TYPE, Part, PartKind, Row, Statement, Validity, corim, image_of,
    policy_of, pre_authentication_encoding, rvps,
};
use assay_tee::guest_config::RootFs;
use assay_tee::{GuestFeatures, LaunchShape, Tee, VcpuCount};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use super::input::{self, Document, Objects};
use crate::measure::BootArg;
use crate::stdout;

/// What a person may type.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// MeasuredImages and an AttestationPolicy, YAML or JSON, also within a List;
    /// manifest.json of an artifact; or one statement. `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    inputs: Vec<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Private key that signs, PEM, P-256 or P-384, not encrypted
    #[arg(long, value_name = "FILE", conflicts_with = "unsigned")]
    key: Option<PathBuf>,
    /// Write the statement or CoRIM without a signature
    #[arg(long)]
    unsigned: bool,
    /// With --unsigned, also write the bytes that a key elsewhere must sign
    #[arg(long, value_name = "FILE", requires = "unsigned")]
    to_be_signed: Option<PathBuf>,
    /// With --to-be-signed, for a CoRIM: public key of the signer, which its header names
    #[arg(long, value_name = "FILE", requires = "to_be_signed")]
    public_key: Option<PathBuf>,
    /// How long the statement is valid, such as 720h
    #[arg(long, value_name = "DURATION", default_value = "2160h")]
    valid_for: Duration,
    /// From when it is valid, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    not_before: Option<Timestamp>,
    /// AttestationPolicy to take, where there are several
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// MeasuredImage to take; may be repeated [default: all]
    #[arg(long = "image", value_name = "NAME")]
    images: Vec<String>,
    /// Processor product, where the policy has several and the format has one
    #[arg(long, value_parser = product)]
    product: Option<Product>,
    /// Name of the signer that a CoRIM shows to people
    #[arg(long, value_name = "NAME", default_value = "assay")]
    signer: String,
    #[command(flatten)]
    manifest: ManifestArgs,
}

/// What a manifest does not say.
#[derive(Debug, clap::Args)]
struct ManifestArgs {
    /// For manifest.json: name of the image
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// For manifest.json: where the artifact is, host/repository@sha256:<hex>
    #[arg(long, value_name = "REFERENCE")]
    reference: Option<String>,
    /// For manifest.json: vCPU counts
    #[arg(long, value_name = "COUNT", value_delimiter = ',')]
    vcpus: Vec<u32>,
    /// For manifest.json: CPU models by QEMU's names
    #[arg(long = "vcpu-type", value_name = "CPUTYPE", value_delimiter = ',')]
    cpu_models: Vec<String>,
    /// For manifest.json: how guests boot
    #[arg(
        long,
        value_name = "METHOD",
        value_delimiter = ',',
        default_value = "DirectKernel"
    )]
    boot: Vec<BootArg>,
}

/// What is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Sigstore bundle of the in-toto statement
    #[default]
    Bundle,
    /// Reference values as Trustee stores them, not signed
    Rvps,
    /// The message that registers them through Trustee's API, not signed
    RvpsMessage,
    /// CoRIM for Veraison
    Corim,
}

/// What a person may type to `assemble`.
#[derive(Debug, clap::Args)]
pub(super) struct AssembleArgs {
    /// Statement, as `export --unsigned` wrote it
    #[arg(long, value_name = "FILE", required_unless_present = "corim")]
    statement: Option<PathBuf>,
    /// For a CoRIM instead: the bytes of --to-be-signed, which hold it
    #[arg(long, value_name = "FILE", conflicts_with = "statement")]
    corim: Option<PathBuf>,
    /// Public key of the signer, PEM or DER
    #[arg(long, value_name = "FILE")]
    public_key: PathBuf,
    /// Signature over the bytes of --to-be-signed, DER or r and s
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
}

pub(super) fn product(text: &str) -> Result<Product, serde_json::Error> {
    serde_json::from_value(text.into())
}

/// Runs `export`.
pub(super) fn run(args: &Args) -> Result<()> {
    match args.format {
        Format::Bundle | Format::Corim => ensure!(
            args.key.is_some() || args.unsigned,
            "--key is missing; give the private key that signs, or --unsigned"
        ),
        Format::Rvps | Format::RvpsMessage => ensure!(
            args.key.is_none(),
            "Trustee's reference values carry no signature; leave out --key"
        ),
    }
    ensure!(
        args.to_be_signed.is_none() || matches!(args.format, Format::Bundle | Format::Corim),
        "--to-be-signed is for --format bundle and corim; Trustee's reference values carry no \
         signature"
    );
    let names_signer = args.to_be_signed.is_some() && args.format == Format::Corim;
    ensure!(
        args.public_key.is_some() == names_signer,
        "--public-key belongs to --format corim with --to-be-signed: its header names the signer's \
         key"
    );
    let statement = statement(args)?;
    match args.format {
        Format::Bundle => write_bundle(args, &statement),
        Format::Rvps | Format::RvpsMessage => {
            let derived = rvps::derive(&statement, args.product)?;
            note_left_out(&derived.left_out);
            let document = if args.format == Format::Rvps {
                serde_json::to_value(&derived.values)?
            } else {
                rvps::message(&derived.values)?
            };
            Ok(stdout::write_line(document)?)
        }
        Format::Corim => {
            let derived = corim::derive(&statement, args.product)?;
            note_left_out(&derived.left_out);
            write_corim(args, &statement, derived.values)
        }
    }
}

fn write_bundle(args: &Args, statement: &Statement) -> Result<()> {
    let bytes = match &args.key {
        Some(path) => Bundle::sign(statement, &input::signing_key(path)?)?.encode()?,
        None => statement.encode()?,
    };
    if let Some(path) = &args.to_be_signed {
        write_to_be_signed(path, &pre_authentication_encoding(PAYLOAD_TYPE, &bytes))?;
    }
    Ok(stdout::write_bytes(&bytes)?)
}

fn write_corim(args: &Args, statement: &Statement, unsigned: Vec<u8>) -> Result<()> {
    let (validity, signer) = (&statement.predicate.validity, &args.signer);
    let bytes = match &args.key {
        Some(path) => corim::sign(unsigned, validity, signer, &input::signing_key(path)?)?,
        None => unsigned,
    };
    if let (Some(path), Some(key)) = (&args.to_be_signed, &args.public_key) {
        let key = input::public_key("--public-key", key)?;
        let message = corim::to_be_signed(bytes.clone(), validity, signer, &key)?;
        write_to_be_signed(path, &message)?;
    }
    Ok(stdout::write_bytes(&bytes)?)
}

fn write_to_be_signed(path: &Path, message: &[u8]) -> Result<()> {
    fs::write(path, message).with_context(|| format!("--to-be-signed {}", path.display()))?;
    eprintln!(
        "note: sign {} with ECDSA on P-256 and SHA-256, or P-384 and SHA-384, then run `assemble`",
        path.display()
    );
    Ok(())
}

pub(super) fn note_left_out(fields: &[&str]) {
    eprintln!(
        "note: the format says nothing of {}; the verifier's own policy must",
        fields.join(", ")
    );
}

/// Runs `assemble`.
pub(super) fn assemble(args: &AssembleArgs) -> Result<()> {
    let key = input::public_key("--public-key", &args.public_key)?;
    let signature = input::read(&args.signature)?;
    let belongs = |path: &Path| {
        let (signature, path) = (args.signature.display(), path.display());
        format!("{signature} does not belong to {path}")
    };
    let signed = match (&args.statement, &args.corim) {
        (Some(path), _) => Bundle::assemble(&input::read(path)?, &key, &signature)
            .with_context(|| belongs(path))?
            .encode()?,
        (None, Some(path)) => {
            corim::assemble(&input::read(path)?, &key, &signature).with_context(|| belongs(path))?
        }
        (None, None) => bail!("--statement is missing; give it, or --corim"),
    };
    Ok(stdout::write_bytes(&signed)?)
}

fn statement(args: &Args) -> Result<Statement> {
    let mut objects = Objects::default();
    let mut images = Vec::new();
    for path in &args.inputs {
        match input::document(path)? {
            Document::Objects(read) => {
                objects.images.extend(read.images);
                objects.policies.extend(read.policies);
            }
            Document::Manifest(manifest) => images.push(
                image_of_manifest(&manifest, &args.manifest)
                    .with_context(|| path.display().to_string())?,
            ),
            Document::Statement(statement) if args.inputs.len() == 1 => return Ok(*statement),
            Document::Statement(_) => bail!(
                "{} is a statement, which cannot be added to; give it alone",
                path.display()
            ),
            Document::Rvps(_) | Document::Corim(_) => bail!(
                "{} is derived from a statement and says less than it; give the statement",
                path.display()
            ),
            Document::Bundle(_) => bail!(
                "{} is a bundle that nobody verified; verify it first with `assay policy import \
                 --statement`, and give what that prints",
                path.display()
            ),
        }
    }
    for name in &args.images {
        ensure!(
            objects
                .images
                .iter()
                .any(|image| image.metadata.name.as_ref() == Some(name)),
            "--image {name} is not in the input; name one that is"
        );
    }
    for image in &objects.images {
        let name = image.metadata.name.as_ref();
        if args.images.is_empty() || name.is_some_and(|name| args.images.contains(name)) {
            images.push(image_of(image)?);
        }
    }
    let mut policies = objects
        .policies
        .iter()
        .filter(|policy| args.policy.is_none() || policy.metadata.name == args.policy);
    let (policy, more) = (policies.next(), policies.next());
    ensure!(
        more.is_none(),
        "the input has several AttestationPolicies; choose one with --policy"
    );
    let policy = policy.context(
        "the input has no AttestationPolicy, or not the one of --policy; add the file of one: a \
         launch digest alone says nothing of the firmware below it",
    )?;
    Ok(Statement::build(
        validity(args)?,
        images,
        policy_of(policy)?,
    )?)
}

fn validity(args: &Args) -> Result<Validity> {
    let whole_seconds = TimestampRound::new()
        .smallest(Unit::Second)
        .mode(RoundMode::Trunc);
    let not_before = args
        .not_before
        .unwrap_or_else(Timestamp::now)
        .round(whole_seconds)
        .context("--not-before")?;
    let not_after = not_before
        .checked_add(args.valid_for.get())
        .context("--valid-for ends after all time; give a shorter one")?;
    Ok(Validity {
        not_before,
        not_after,
    })
}

/// Measures what a manifest describes. Its hashes are believed: who signs the
/// statement built the artifact, or has verified it with `assay pull`.
fn image_of_manifest(manifest: &Manifest, args: &ManifestArgs) -> Result<Image> {
    let name = args
        .name
        .clone()
        .context("--name is missing; a manifest.json does not name its image")?;
    let reference = args.reference.clone().context(
        "--reference is missing; give host/repository@sha256:<hex>, as the push printed it",
    )?;
    ensure!(
        is_pinned(&reference),
        "--reference {reference} is not host/repository@sha256:<64 hex digits>; a tag names other \
         bytes tomorrow"
    );
    ensure!(
        !args.vcpus.is_empty() && !args.cpu_models.is_empty(),
        "--vcpus and --vcpu-type are missing; name the shapes that guests are launched in"
    );
    let counts = args
        .vcpus
        .iter()
        .map(|count| VcpuCount::try_from(*count))
        .collect::<Result<_, _>>()
        .context("--vcpus")?;
    let mut rows = Vec::new();
    for (model, boot) in args
        .cpu_models
        .iter()
        .flat_map(|model| args.boot.iter().map(move |boot| (model, boot.method())))
    {
        let shape = |vcpus| LaunchShape {
            tee: Tee::Snp,
            boot,
            vcpus,
            cpu_model: model.clone(),
            guest_features: GuestFeatures::default(),
        };
        let profile = VcpuProfile::from_shape(&shape(VcpuCount::ONE)).context("--vcpu-type")?;
        let digests = measure_vcpu_counts(&manifest.measurement, boot, &profile, &counts)
            .with_context(|| format!("--boot {boot}"))?;
        rows.extend(digests.into_iter().map(|(vcpus, digest)| {
            Row::of_shape(&manifest.firmware.sha256, &shape(vcpus), digest)
        }));
    }
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    rows.dedup();
    let part = |kind, path: &str, sha256, size_bytes| Part {
        kind,
        path: path.to_owned(),
        sha256,
        size_bytes,
        serial: None,
        verity_root_hash: None,
    };
    let (uki, firmware) = (&manifest.uki, &manifest.firmware);
    let mut parts = vec![
        part(PartKind::Uki, &uki.path, uki.sha256, uki.size),
        part(
            PartKind::Firmware,
            &firmware.path,
            firmware.sha256,
            firmware.size,
        ),
    ];
    if let Some(disk) = &manifest.root_disk {
        let mut part = part(PartKind::RootDisk, &disk.path, disk.sha256, disk.size);
        if let RootFs::DmVerity {
            serial, root_hash, ..
        } = &disk.root
        {
            part.serial = Some(serial.clone());
            part.verity_root_hash = Some(*root_hash);
        }
        parts.push(part);
    }
    Ok(Image {
        name,
        reference,
        state: LifecycleState::Active,
        reason: None,
        parts,
        launch_digests: rows,
    })
}

fn is_pinned(reference: &str) -> bool {
    reference
        .split_once("@sha256:")
        .is_some_and(|(name, digest)| {
            !name.is_empty()
                && digest.len() == 64
                && digest
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
}
