//! `assay build`: an artifact from a recipe. The operator's Job runs the same
//! command as a person, and both get the same bytes.

use std::fmt;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use assay_image::artifact::{Artifact, BuildError, BuildInputs, SourceImage, build_signed};
use assay_image::disk::encode_disk;
use assay_image::oci::OciImage;
use assay_image::recipe::{
    EXIT_NO_CREDENTIALS, EXIT_UNBUILDABLE, PinnedReference, Recipe, RecipeError, ValidRecipe,
};
use assay_registry::{
    DockerConfig, Pulled, Registry, RegistryOptions, Scratch, ScratchError, read_layout,
};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::scratch::ScratchArgs;
use crate::sign_uki::SecureBootArgs;
use crate::{output_file, stdout};

/// Options of `assay build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The recipe (JSON): every input by digest
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// The guest agent, a static executable for linux/amd64
    #[arg(
        long,
        value_name = "FILE",
        env = "ASSAY_AGENT",
        default_value = "/usr/lib/assay/assay-agent"
    )]
    agent: PathBuf,
    /// Directory to write the artifact's files to
    #[arg(
        short,
        long,
        value_name = "DIR",
        required_unless_present_any = ["push", "disk_image"]
    )]
    output: Option<PathBuf>,
    /// Push the artifact to the recipe's output repository
    #[arg(long)]
    push: bool,
    /// Take the workload's image from an OCI layout instead of its registry
    #[arg(long, value_name = "DIR")]
    rootfs_layout: Option<PathBuf>,
    /// Take the boot kit from an OCI layout instead of its registry
    #[arg(long, value_name = "DIR")]
    kit_layout: Option<PathBuf>,
    /// Registry host that speaks plain HTTP; may be given more than once
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// Registry credentials, in the format of ~/.docker/config.json
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
    /// Write a disk that UEFI firmware boots: the UKI on an EFI system partition,
    /// and the root disk as partitions for its data and its hash tree
    #[arg(long, value_name = "FILE")]
    disk_image: Option<PathBuf>,
    #[command(flatten)]
    secure_boot: SecureBootArgs,
    #[command(flatten)]
    scratch: ScratchArgs,
    /// Where to write {"reference", "manifestDigest"} or {"error"} as JSON
    #[arg(long, value_name = "FILE")]
    result_file: Option<PathBuf>,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressMode,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProgressMode {
    /// A bar on a terminal, lines elsewhere
    Auto,
    /// A line per step
    Plain,
    /// A spinner that shows the current step
    Bar,
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
        Some(BuildError::Agent) => false,
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

/// The registry credentials cannot be read. In a build Job the file is missing
/// where the Secret is, or its key.
#[derive(Debug)]
struct NoCredentials;

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no registry credentials: create the Secret that spec.source.build.output.secretRef \
             names, of type kubernetes.io/dockerconfigjson, or correct --docker-config",
        )
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
    let recipe =
        Recipe::parse(&read(&args.recipe)?).with_context(|| args.recipe.display().to_string())?;
    let agent = read(&args.agent)?.into();
    let signer = args.secure_boot.signer()?;
    let docker_config = match &args.docker_config {
        Some(path) => Some(read_credentials(path).context(NoCredentials)?),
        None => None,
    };
    let scratch = args.scratch.open()?;
    let options = RegistryOptions {
        plain_http_hosts: args.plain_http.clone(),
        docker_config,
        scratch: Some(scratch.clone()),
    };
    let registry = Registry::new(options)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;

    let pull = |what, reference: &PinnedReference, layout: Option<&Path>| -> Result<SourceImage> {
        let step = progress.step(&format!("pull {what} {reference}"));
        let pulled = match layout {
            Some(directory) => read_layout(directory, reference.digest(), Some(&scratch))
                .with_context(|| format!("cannot read the {what} from {}", directory.display()))?,
            None => runtime
                .block_on(registry.pull(&reference.to_string()))
                .with_context(|| format!("cannot pull the {what}"))?,
        };
        step.done();
        source_image(&pulled, reference, &scratch).with_context(|| format!("cannot use the {what}"))
    };
    let inputs = BuildInputs {
        rootfs: pull(
            "workload image",
            &recipe.rootfs,
            args.rootfs_layout.as_deref(),
        )?,
        boot_kit: pull("boot kit", &recipe.boot_kit, args.kit_layout.as_deref())?,
        recipe,
        agent,
    };

    let step = progress.step("build");
    let artifact = build_signed(&inputs, signer.as_ref())?;
    step.done();
    let BuildInputs { recipe, .. } = inputs;
    let step = progress.step("pack");
    let image = artifact.to_image()?;
    step.done();

    if let Some(directory) = &args.output {
        let step = progress.step(&format!("write {}", directory.display()));
        write_files(directory, &artifact)?;
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
        let reference = runtime
            .block_on(registry.push(&recipe.output_repository, &image))
            .context("cannot push the artifact")?;
        step.done();
        reference
    } else {
        unpushed_reference(&recipe, &image)
    };
    Ok(Built { image, reference })
}

/// What the reference would be: the digest is known without a registry.
fn unpushed_reference(recipe: &ValidRecipe, image: &OciImage) -> String {
    format!("{}@{}", recipe.output_repository, image.manifest_digest)
}

fn source_image(
    pulled: &Pulled,
    reference: &PinnedReference,
    scratch: &Scratch,
) -> Result<SourceImage> {
    ensure!(
        pulled.digest == reference.digest(),
        "got {} where {reference} was asked for",
        pulled.digest
    );
    Ok(SourceImage {
        config: pulled.config.clone(),
        layers: scratch.uncompress(pulled.stored_layers()?)?,
    })
}

fn read_credentials(path: &Path) -> Result<DockerConfig> {
    DockerConfig::parse(&read(path)?).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write_files(directory: &Path, artifact: &Artifact) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    for (name, content) in &artifact.files {
        output_file::write(&directory.join(name), content)?;
    }
    Ok(())
}

/// Steps on standard error.
struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(mode: ProgressMode) -> Self {
        let bar = match mode {
            ProgressMode::Auto => std::io::stderr().is_terminal(),
            ProgressMode::Plain => false,
            ProgressMode::Bar => true,
        };
        let style = ProgressStyle::default_spinner();
        Self {
            bar: bar.then(|| ProgressBar::new_spinner().with_style(style)),
        }
    }

    fn step(&self, name: &str) -> Step<'_> {
        match &self.bar {
            Some(bar) => {
                bar.set_message(name.to_owned());
                bar.enable_steady_tick(Duration::from_millis(100));
            }
            None => eprintln!("{name}"),
        }
        Step {
            progress: self,
            name: name.to_owned(),
            started: Instant::now(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A step under way.
struct Step<'a> {
    progress: &'a Progress,
    name: String,
    started: Instant,
}

impl Step<'_> {
    fn done(self) {
        let seconds = self.started.elapsed().as_secs_f64();
        match &self.progress.bar {
            Some(bar) => bar.println(format!("{} ({seconds:.1} s)", self.name)),
            None => eprintln!("  done in {seconds:.1} s"),
        }
    }
}
