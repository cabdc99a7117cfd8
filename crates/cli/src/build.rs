//! `assay build`: an artifact from a MeasuredImage or a recipe. The operator's Job
//! runs the same command as a person, and both get the same bytes.

mod ending;
mod progress_server;
mod provenance;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use assay_crds::v1alpha1::measured_image::BuildPhase;
use assay_image::artifact::{
    Artifact, BuildError, BuildInputs, BuildStep, Signers, build_in_steps,
};
use assay_image::disk::encode_disk;
use assay_image::erofs::EncodeErofsError;
use assay_image::oci::OciImage;
use assay_image::recipe::{
    EXIT_NO_CACHE, EXIT_NO_CREDENTIALS, EXIT_UNBUILDABLE, Recipe, RecipeError, ValidRecipe,
};
use assay_registry::{CacheError, RegistryError, ScratchError, TransferProgress};
use serde_json::json;

use self::ending::Ending;
use self::provenance::{Documents, ProvenanceArgs};
use crate::inputs::{Builder, InputArgs, NoCredentials, Sources, image_recipe};
use crate::objects::{Objects, choose};
use crate::pcr_signature::PcrSignatureArgs;
use crate::progress::{Progress, ProgressMode};
use crate::sign_uki::SecureBootArgs;
use crate::{output_file, stdout};

/// Options of `assay build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The MeasuredImage, as for `kubectl apply`: a file, a directory, or `-`
    #[arg(
        short,
        long,
        value_name = "FILE",
        required_unless_present = "recipe",
        conflicts_with = "recipe"
    )]
    file: Option<PathBuf>,
    /// Which MeasuredImage, where there are several
    #[arg(long, value_name = "NAME", requires = "file")]
    name: Option<String>,
    /// The recipe (JSON) instead: every input by digest
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    inputs: InputArgs,
    /// Directory to write the artifact's files to
    #[arg(
        short,
        long,
        value_name = "DIR",
        required_unless_present_any = ["push", "disk_image", "digest_only"]
    )]
    output: Option<PathBuf>,
    /// Push the artifact to the recipe's output repository
    #[arg(long)]
    push: bool,
    /// Build, print what the reference would be, and keep nothing
    #[arg(long, conflicts_with_all = ["push", "output", "disk_image"])]
    digest_only: bool,
    /// Write a disk that UEFI firmware boots: the UKI on an EFI system partition,
    /// and the root disk as partitions for its data and its hash tree
    #[arg(long, value_name = "FILE")]
    disk_image: Option<PathBuf>,
    #[command(flatten)]
    secure_boot: SecureBootArgs,
    #[command(flatten)]
    pcr_signature: PcrSignatureArgs,
    #[command(flatten)]
    provenance: ProvenanceArgs,
    /// Where to write {"reference", "manifestDigest"} or {"error"} as JSON
    #[arg(long, value_name = "FILE")]
    result_file: Option<PathBuf>,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressMode,
    /// Port on which to serve how far the build is, as JSON over HTTP
    #[arg(long, value_name = "PORT")]
    progress_port: Option<u16>,
}

/// Runs `assay build`. The exit status tells whether another try may end
/// differently.
pub(crate) fn run(args: &Args) -> ExitCode {
    match build_and_report(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let unbuildable = match error.downcast_ref() {
        // Another recipe would not help.
        Some(BuildError::Agent | BuildError::Erofs(EncodeErofsError::Keep { .. })) => false,
        Some(_) => true,
        None => {
            error.is::<RecipeError>()
                || matches!(error.downcast_ref(), Some(ScratchError::Uncompress(_)))
        }
    };
    if unbuildable {
        EXIT_UNBUILDABLE.into()
    } else if error.is::<NoCredentials>() {
        EXIT_NO_CREDENTIALS.into()
    } else if is_about_cache(error) {
        EXIT_NO_CACHE.into()
    } else {
        ExitCode::FAILURE
    }
}

fn is_about_cache(error: &anyhow::Error) -> bool {
    error.is::<CacheError>() || matches!(error.downcast_ref(), Some(RegistryError::Cache(_)))
}

/// What happened also goes to the result file.
fn build_and_report(args: &Args) -> Result<()> {
    let ending = Ending::watch(args.result_file.clone())?;
    let result = build_and_publish(args, &ending);
    // What happened is not told twice.
    ending.too_late();
    if let Some(path) = &args.result_file {
        let words = match &result {
            Ok(built) => json!({
                "reference": built.reference,
                "manifestDigest": built.image.manifest_digest,
            }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        fs::write(path, words.to_string())
            .with_context(|| format!("cannot write the result to {}", path.display()))?;
    }
    let built = result?;
    stdout::write_line(built.reference)?;
    Ok(())
}

struct Built {
    image: OciImage,
    reference: String,
}

fn build_and_publish(args: &Args, ending: &Ending) -> Result<Built> {
    let progress = Progress::new(args.progress);
    if let Some(port) = args.progress_port {
        progress_server::serve(port, progress.state())?;
    }
    let (recipe, builder) = read_recipe(args)?;
    let secure_boot = args.secure_boot.signer()?;
    let pcrs = args.pcr_signature.signer()?;
    let provenance = args.provenance.open()?;
    let sources = args.inputs.open(builder)?;
    let inputs = sources.inputs(recipe, args.inputs.layouts(), &progress)?;

    let step = progress.step("build");
    let signers = Signers {
        secure_boot: secure_boot.as_ref(),
        pcrs: pcrs.as_ref(),
    };
    let mut begin = |step| progress.enter(phase(step));
    let artifact = build_in_steps(&inputs, signers, &mut begin)?;
    step.done();
    let BuildInputs { recipe, .. } = inputs;
    let step = progress.phase(BuildPhase::Packing, "pack");
    let image = artifact.to_image()?;
    step.done();

    let documents = provenance.documents(&artifact, &recipe.output_repository, &image)?;
    if let Some(directory) = &args.output {
        let step = progress.step(&format!("write {}", directory.display()));
        let _held = output_file::hold(directory)?;
        write_files(directory, &artifact)?;
        documents.write(directory)?;
        step.done();
    }
    if let Some(path) = &args.disk_image {
        let step = progress.step(&format!("write {}", path.display()));
        let disk = encode_disk(&artifact).context("cannot make the disk image")?;
        output_file::write(path, &disk)?;
        step.done();
    }
    let reference = if args.push {
        let step = progress.phase(
            BuildPhase::Pushing,
            &format!("push {}", recipe.output_repository),
        );
        let reference = push(&sources, &recipe, &image, documents, &step, ending)?;
        step.done();
        reference
    } else {
        unpushed_reference(&recipe, &image)
    };
    Ok(Built { image, reference })
}

/// What a step of the build is called in a status.
fn phase(step: BuildStep) -> BuildPhase {
    match step {
        BuildStep::Flatten => BuildPhase::Flattening,
        BuildStep::Erofs => BuildPhase::Erofs,
        BuildStep::Verity => BuildPhase::Verity,
        BuildStep::Uki => BuildPhase::Uki,
    }
}

/// Pushes what takes long; then, and that is not interrupted, what makes an artifact
/// of it and the documents about it.
fn push(
    sources: &Sources<'_>,
    recipe: &ValidRecipe,
    image: &OciImage,
    documents: Documents,
    progress: &dyn TransferProgress,
    ending: &Ending,
) -> Result<String> {
    let Sources {
        registry, runtime, ..
    } = sources;
    let repository = &recipe.output_repository;
    runtime
        .block_on(registry.push_blobs(repository, image, progress))
        .context("cannot push the artifact")?;
    ending.too_late();
    let reference = runtime
        .block_on(registry.push_manifest(repository, image))
        .context("cannot push the artifact")?;
    runtime
        .block_on(documents.push(registry, repository, image))
        .context("the artifact is pushed, but not all documents about it")?;
    Ok(reference)
}

fn read_recipe(args: &Args) -> Result<(ValidRecipe, Builder)> {
    match (&args.recipe, &args.file) {
        (Some(path), _) => {
            let bytes =
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let recipe = Recipe::parse(&bytes).with_context(|| path.display().to_string())?;
            Ok((recipe, Builder::Job))
        }
        (None, Some(path)) => {
            let objects = Objects::load(path)?;
            let name = args.name.as_deref();
            let image = choose("MeasuredImage", &objects.images, "--name", name)?;
            Ok((image_recipe(image)?, Builder::Person))
        }
        (None, None) => bail!("give a MeasuredImage with -f, or a recipe with --recipe"),
    }
}

/// What the reference would be: the digest is known without a registry.
fn unpushed_reference(recipe: &ValidRecipe, image: &OciImage) -> String {
    format!("{}@{}", recipe.output_repository, image.manifest_digest)
}

pub(crate) fn write_files(directory: &Path, artifact: &Artifact) -> Result<()> {
    output_file::create_directory(directory)?;
    // The manifest is first, and written last: with it the files are complete.
    for (name, content) in artifact.files.iter().rev() {
        output_file::write(&directory.join(name), content)?;
    }
    Ok(())
}
