//! `assay build`: an artifact from a MeasuredImage or a recipe. The operator's Job
//! runs the same command as a person, and both get the same bytes.

mod provenance;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use assay_image::artifact::{Artifact, BuildError, BuildInputs, Signers, build_signed};
use assay_image::disk::encode_disk;
use assay_image::erofs::EncodeErofsError;
use assay_image::oci::OciImage;
use assay_image::recipe::{
    EXIT_NO_CREDENTIALS, EXIT_UNBUILDABLE, Recipe, RecipeError, ValidRecipe,
};
use assay_registry::ScratchError;
use serde_json::json;

use self::provenance::ProvenanceArgs;
use crate::inputs::{Builder, InputArgs, NoCredentials, image_recipe};
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
    } else {
        ExitCode::FAILURE
    }
}

/// What happened also goes to the result file.
fn build_and_report(args: &Args) -> Result<()> {
    let result = build_and_publish(args);
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

fn build_and_publish(args: &Args) -> Result<Built> {
    let progress = Progress::new(args.progress);
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
    let artifact = build_signed(&inputs, signers)?;
    step.done();
    let BuildInputs { recipe, .. } = inputs;
    let step = progress.step("pack");
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
        let step = progress.step(&format!("push {}", recipe.output_repository));
        let push = sources
            .registry
            .push(&recipe.output_repository, &image, &step);
        let reference = sources
            .runtime
            .block_on(push)
            .context("cannot push the artifact")?;
        let push = documents.push(&sources.registry, &recipe.output_repository, &image);
        sources
            .runtime
            .block_on(push)
            .context("the artifact is pushed, but not all documents about it")?;
        step.done();
        reference
    } else {
        unpushed_reference(&recipe, &image)
    };
    Ok(Built { image, reference })
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
