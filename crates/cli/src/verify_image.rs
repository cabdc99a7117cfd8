//! `assay verify-image`: builds an artifact again from the recipe in its manifest,
//! and says whether every byte is the same, or what is not and where.

mod provenance;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use assay_image::artifact::{BuildInputs, SourceImage, build_signed_as};
use assay_image::compare::{Difference, compare};
use assay_image::manifest::{FIRMWARE_PATH, MANIFEST_PATH, Manifest, ROOT_DISK_PATH, UKI_PATH};
use assay_image::newc::parse_newc;
use assay_image::pcr_signature::PcrKey;
use assay_image::provenance::recipe_of;
use assay_image::read::{ArtifactContent, find_artifact_content, read_artifact_content};
use assay_image::recipe::{GitSource, PinnedReference};
use assay_image::uki::{INITRD, PCRPKEY, parse_uki};
use assay_registry::read_layout;
use assay_tee::Sha256Digest;
use bytes::Bytes;
use serde::Serialize;

use self::provenance::Vouched;
use crate::registry::{Client, RegistryArgs};
use crate::stdout;

/// Exit status where the artifact is not what its recipe gives.
const EXIT_DIFFERENT: u8 = 1;
/// Exit status where it cannot be told.
const EXIT_UNKNOWN: u8 = 2;

/// Stands for the repository of an artifact that is in a directory. It is part of
/// a recipe and of no artifact.
const NO_REPOSITORY: &str = "localhost/artifact";

/// Options of `assay verify-image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The artifact: host/repository@sha256:…, or a directory with its files
    artifact: String,
    /// OCI layout with the workload's image and the boot kit, in place of their
    /// registries
    #[arg(long, value_name = "DIR")]
    inputs: Option<PathBuf>,
    /// The guest agent that the artifact ought to have. Without it, the one that
    /// it has, which must be the one that its manifest names
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Public key of somebody who must have signed the artifact's provenance; may
    /// be given more than once, and one is enough
    #[arg(long, value_name = "FILE")]
    provenance_key: Vec<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    verdict: Verdict,
    artifact: String,
    rootfs: PinnedReference,
    boot_kit: PinnedReference,
    agent: Sha256Digest,
    agent_from: &'static str,
    /// Certificates of those who signed the UKI.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    signers: Vec<Sha256Digest>,
    /// The key in the UKI for signed PCR values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pcr_key: Option<Sha256Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    git: Option<GitSource>,
    built_with: String,
    verified_with: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    provenance: Option<Vouched>,
    differences: Vec<Difference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    Reproduced,
    Different,
}

/// Runs `assay verify-image`.
pub(crate) fn run(args: &Args) -> ExitCode {
    match verify(args).and_then(|report| show(args, &report)) {
        Ok(Verdict::Reproduced) => ExitCode::SUCCESS,
        Ok(Verdict::Different) => EXIT_DIFFERENT.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            EXIT_UNKNOWN.into()
        }
    }
}

/// An artifact as it was found.
struct Found {
    content: ArtifactContent,
    repository: String,
    /// Digest of its OCI image, where it was in one.
    digest: Option<Sha256Digest>,
}

fn verify(args: &Args) -> Result<Report> {
    let keys = provenance::keys(&args.provenance_key)?;
    let client = args.registry.client()?;
    let found = find(args, &client)?;
    let manifest: Manifest = serde_json::from_slice(&found.content.manifest)
        .context("cannot read manifest.json of the artifact")?;
    let recipe = recipe_of(&manifest, &found.repository)
        .context("cannot tell what to build again")?
        .validate()
        .context("the manifest's recipe cannot be built")?;
    let (agent, agent_from) = agent(args, &found.content)?;
    let inputs = BuildInputs {
        rootfs: input("workload's image", &recipe.rootfs, args, &client)?,
        boot_kit: input("boot kit", &recipe.boot_kit, args, &client)?,
        recipe,
        agent: agent.clone(),
        keep: Arc::new(client.scratch.clone()),
    };
    let signatures = manifest.uki.pcr_signatures.as_ref();
    let phases = signatures.map_or(&[][..], |signatures| &signatures.phases);
    let built = build_signed_as(&inputs, &found.content.uki, phases).with_context(|| {
        format!(
            "the artifact's recipe gives nothing with assay {}; it was built with {}",
            env!("CARGO_PKG_VERSION"),
            manifest.builder.version
        )
    })?;
    let mut differences = compare(&built.content(), &found.content);
    // What was built has the same agent then, so nothing else would tell.
    let digest_of_agent = Sha256Digest::of(&agent);
    if agent_from == "artifact" && digest_of_agent != manifest.inputs.agent {
        differences.push(Difference {
            place: [UKI_PATH, INITRD, "init"].map(str::to_owned).into(),
            what: format!(
                "is the agent {digest_of_agent}, the manifest names {}; to see what differs, give \
                 the one that it ought to be with --agent",
                manifest.inputs.agent
            ),
        });
    }
    let image = built.to_image().context("cannot pack the artifact")?;
    if let Some(digest) = found.digest
        && digest != image.manifest_digest
        && differences.is_empty()
    {
        differences.push(Difference {
            place: vec!["OCI image".to_owned()],
            what: format!(
                "is {digest}, expected {}: all files are the same, their archive is not",
                image.manifest_digest
            ),
        });
    }
    // What our own reader refuses is no artifact, whatever it was built from.
    if let Err(error) = read_artifact_content(&found.content) {
        differences.push(Difference {
            place: vec!["artifact".to_owned()],
            what: format!("{:#}", anyhow::Error::from(error)),
        });
    }
    let mut vouched = None;
    if !keys.is_empty() {
        let bundles = match found.digest {
            Some(digest) => provenance::in_registry(&client, &found.repository, digest),
            None => provenance::in_directory(Path::new(&args.artifact)),
        }
        .context("cannot find the artifact's provenance")?;
        match provenance::verify(&bundles, &keys, &manifest, image.manifest_digest) {
            Ok(found) => vouched = Some(found),
            Err(error) => differences.push(Difference {
                place: vec!["provenance".to_owned()],
                what: format!("{error:#}"),
            }),
        }
    }
    let verdict = if differences.is_empty() {
        Verdict::Reproduced
    } else {
        Verdict::Different
    };
    Ok(Report {
        verdict,
        artifact: args.artifact.clone(),
        rootfs: manifest.inputs.rootfs,
        boot_kit: manifest.inputs.boot_kit,
        agent: Sha256Digest::of(&agent),
        agent_from,
        pcr_key: pcr_key(&found.content.uki),
        signers: manifest.uki.signers,
        git: manifest.inputs.git,
        built_with: manifest.builder.version,
        verified_with: env!("CARGO_PKG_VERSION"),
        provenance: vouched,
        differences,
    })
}

fn find(args: &Args, client: &Client) -> Result<Found> {
    let directory = Path::new(&args.artifact);
    if directory.is_dir() {
        let read = |name: &str| {
            let path = directory.join(name);
            let content = fs::read(&path).map(Bytes::from);
            content.with_context(|| format!("cannot read {}", path.display()))
        };
        let disk = directory.join(ROOT_DISK_PATH);
        return Ok(Found {
            content: ArtifactContent {
                manifest: read(MANIFEST_PATH)?,
                uki: read(UKI_PATH)?,
                firmware: read(FIRMWARE_PATH)?,
                root_disk: disk.exists().then(|| read(ROOT_DISK_PATH)).transpose()?,
            },
            repository: NO_REPOSITORY.to_owned(),
            digest: None,
        });
    }
    let reference: PinnedReference = args.artifact.parse().with_context(|| {
        format!(
            "{:?} is neither a directory nor host/repository@sha256:…",
            args.artifact
        )
    })?;
    let pulled = client
        .runtime
        .block_on(client.registry.pull(&reference.to_string()))
        .with_context(|| format!("cannot pull {reference}"))?;
    Ok(Found {
        content: find_artifact_content(
            &pulled.config,
            &client.scratch.uncompress(pulled.stored_layers()?)?,
        )?,
        repository: reference.repository().to_owned(),
        digest: Some(pulled.digest),
    })
}

fn input(
    what: &str,
    reference: &PinnedReference,
    args: &Args,
    client: &Client,
) -> Result<SourceImage> {
    let pulled = match &args.inputs {
        Some(layout) => read_layout(layout, reference.digest(), Some(&client.scratch))
            .with_context(|| format!("{} lacks the {what} {reference}", layout.display()))?,
        None => client
            .runtime
            .block_on(client.registry.pull(&reference.to_string()))
            .with_context(|| {
                format!("cannot pull the {what}; give --inputs where its registry is out of reach")
            })?,
    };
    Ok(SourceImage {
        config: pulled.config.clone(),
        layers: client.scratch.uncompress(pulled.stored_layers()?)?,
    })
}

/// The guest agent: an input like the others, which the artifact happens to carry.
fn agent(args: &Args, content: &ArtifactContent) -> Result<(Bytes, &'static str)> {
    if let Some(path) = &args.agent {
        let agent: Bytes = fs::read(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .into();
        return Ok((agent, "file"));
    }
    let uki = parse_uki(&content.uki).context("cannot read the UKI to take the agent from it")?;
    let initrd = uki.section(INITRD).context("the UKI has no initrd")?;
    let entries = parse_newc(initrd).context("cannot read the initrd")?;
    let agent = entries.into_iter().find(|entry| entry.path == "init");
    let agent = agent.context("the initrd has no agent")?.content;
    Ok((agent, "artifact"))
}

/// The key that the UKI hands to its guest for signed PCR values.
fn pcr_key(uki: &Bytes) -> Option<Sha256Digest> {
    let uki = parse_uki(uki).ok()?;
    let key = PcrKey::from_pem(uki.section(PCRPKEY)?).ok()?;
    Some(key.fingerprint())
}

fn show(args: &Args, report: &Report) -> Result<Verdict> {
    if args.json {
        let json = serde_json::to_string_pretty(report).context("cannot encode the report")?;
        stdout::write_line(json)?;
        return Ok(report.verdict);
    }
    let Report {
        verdict,
        artifact,
        rootfs,
        boot_kit,
        agent,
        agent_from,
        signers,
        pcr_key,
        git,
        built_with,
        verified_with,
        provenance,
        differences,
    } = report;
    let verdict_line = match verdict {
        Verdict::Reproduced => format!("reproduced: every byte of {artifact} follows from"),
        Verdict::Different => format!("different: {artifact} does not follow from"),
    };
    let mut lines = vec![
        verdict_line,
        format!("  workload  {rootfs}"),
        format!("  boot kit  {boot_kit}"),
        format!("  agent     {agent} (from the {agent_from})"),
        format!("  builder   assay {built_with}, verified with {verified_with}"),
    ];
    // Taken from the artifact: they are inputs that no recipe names.
    lines.extend(
        signers
            .iter()
            .map(|it| format!("  signed    for Secure Boot by certificate {it}")),
    );
    lines.extend(
        pcr_key
            .iter()
            .map(|it| format!("  signed    PCR values by key {it}")),
    );
    if let Some(git) = git {
        // Nothing was built from it here.
        lines.push(format!("  claims    {} at {}", git.repository, git.commit));
    }
    if let Some(vouched) = provenance {
        lines.push(format!(
            "  vouched   by a given key, for builder {}",
            vouched.builder
        ));
    }
    if !differences.is_empty() {
        lines.push("what it is in place of what it ought to be:".to_owned());
        lines.extend(
            differences
                .iter()
                .map(|difference| format!("  {difference}")),
        );
    }
    stdout::write_line(lines.join("\n"))?;
    Ok(*verdict)
}
