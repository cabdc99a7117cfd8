//! What an artifact is built from: the guest agent and two images by digest.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use assay_crds::v1alpha1::MeasuredImage;
use assay_crds::v1alpha1::measured_image::BuildPhase;
use assay_image::artifact::{BuildInputs, SourceImage};
use assay_image::recipe::{PinnedReference, ValidRecipe};
use assay_registry::{
    BlobCache, CacheError, DockerConfig, Pulled, Registry, RegistryError, RegistryOptions, Scratch,
    TransferProgress, read_layout,
};
use assay_workload::recipe::build_recipe;
use bytes::Bytes;
use tokio::runtime::Runtime;

use crate::objects::full_name;
use crate::progress::Progress;
use crate::registry::read_credentials;
use crate::scratch::ScratchArgs;

/// Where the builder's image has the guest agent.
const AGENT_PATH: &str = "/usr/lib/assay/assay-agent";
/// The agent's name beside this program.
const AGENT_NAME: &str = "assay-agent";

/// Where the inputs of a build come from.
#[derive(Debug, clap::Args)]
pub(crate) struct InputArgs {
    /// The guest agent, a static executable for linux/amd64 [default:
    /// /usr/lib/assay/assay-agent, or assay-agent beside this program]
    #[arg(long, value_name = "FILE", env = "ASSAY_AGENT")]
    agent: Option<PathBuf>,
    /// Take the workload's image from an OCI layout instead of its registry
    #[arg(long, value_name = "DIR")]
    rootfs_layout: Option<PathBuf>,
    /// Take the boot kit from an OCI layout instead of its registry
    #[arg(long, value_name = "DIR")]
    kit_layout: Option<PathBuf>,
    /// Registry host that speaks plain HTTP; may be given more than once
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// Registry credentials, in the format of ~/.docker/config.json, which is used
    /// with -f unless this says otherwise
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
    /// Registry credentials to pull with, where they are others than to push with
    #[arg(long, value_name = "FILE")]
    pull_docker_config: Option<PathBuf>,
    /// Directory that keeps what is pulled; a pull that broke off goes on from it
    /// [default with -f: assay/oci in $XDG_CACHE_HOME]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Most bytes that --cache keeps; what was not used for the longest time goes
    /// first
    #[arg(long, value_name = "BYTES", requires = "cache")]
    cache_limit: Option<u64>,
    #[command(flatten)]
    scratch: ScratchArgs,
}

/// OCI layouts that stand for registries.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Layouts<'a> {
    /// Where the workload's image is.
    pub(crate) rootfs: Option<&'a Path>,
    /// Where the boot kit is.
    pub(crate) boot_kit: Option<&'a Path>,
}

/// Whose build it is. A person's own files are for a person's builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Builder {
    Job,
    Person,
}

/// The registry credentials cannot be read. In a build Job the file is missing
/// where the Secret is, or its key.
#[derive(Debug)]
pub(crate) struct NoCredentials {
    /// The field of a MeasuredImage that names the Secret.
    field: &'static str,
    option: &'static str,
}

impl NoCredentials {
    const DOCKER_CONFIG: Self = Self {
        field: "spec.source.build.output.secretRef",
        option: "--docker-config",
    };
    const PULL_DOCKER_CONFIG: Self = Self {
        field: "spec.pullSecretRef",
        option: "--pull-docker-config",
    };
}

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no registry credentials: create the Secret that {} names, of type \
             kubernetes.io/dockerconfigjson, or correct {}",
            self.field, self.option
        )
    }
}

impl InputArgs {
    /// Where large content goes.
    pub(crate) fn scratch(&self) -> Result<Scratch> {
        self.scratch.open()
    }

    pub(crate) fn open(&self, builder: Builder) -> Result<Sources<'_>> {
        let docker_config = match (&self.docker_config, builder) {
            (Some(path), _) => Some(read_credentials(path).context(NoCredentials::DOCKER_CONFIG)?),
            (None, Builder::Person) => DockerConfig::of_user()?,
            (None, Builder::Job) => None,
        };
        let cache = match (&self.cache, builder) {
            (Some(directory), _) => Some(directory.clone()),
            (None, Builder::Person) => user_cache(),
            (None, Builder::Job) => None,
        };
        let scratch = self.scratch()?;
        let registry = Registry::new(RegistryOptions {
            plain_http_hosts: self.plain_http.clone(),
            docker_config,
            scratch: Some(scratch.clone()),
        })?;
        let source = match &self.pull_docker_config {
            Some(path) => registry.with_credentials(
                read_credentials(path).context(NoCredentials::PULL_DOCKER_CONFIG)?,
            ),
            None => registry.clone(),
        };
        Ok(Sources {
            args: self,
            registry,
            source,
            scratch,
            cache: cache
                .as_deref()
                .map(BlobCache::open)
                .transpose()
                .context(NO_CACHE)?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        })
    }

    pub(crate) fn layouts(&self) -> Layouts<'_> {
        Layouts {
            rootfs: self.rootfs_layout.as_deref(),
            boot_kit: self.kit_layout.as_deref(),
        }
    }

    fn agent(&self) -> Result<Bytes> {
        let path = self.agent.clone().or_else(default_agent);
        let path = path.unwrap_or_else(|| AGENT_PATH.into());
        let read = fs::read(&path).with_context(|| {
            format!(
                "cannot read the guest agent {}: it is in the builder's image; name it with \
                 --agent or ASSAY_AGENT",
                path.display()
            )
        });
        Ok(read?.into())
    }
}

/// The agent that is installed, or was built beside this program.
fn default_agent() -> Option<PathBuf> {
    let beside = env::current_exe().ok()?.with_file_name(AGENT_NAME);
    [PathBuf::from(AGENT_PATH), beside]
        .into_iter()
        .find(|path| path.is_file())
}

fn user_cache() -> Option<PathBuf> {
    let caches = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        // The specification has relative paths ignored.
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    Some(caches.join("assay/oci"))
}

/// Registries, and what stands for them.
pub(crate) struct Sources<'a> {
    args: &'a InputArgs,
    /// Where artifacts go.
    pub(crate) registry: Registry,
    /// Where images come from.
    source: Registry,
    pub(crate) scratch: Scratch,
    cache: Option<BlobCache>,
    pub(crate) runtime: Runtime,
}

impl Sources<'_> {
    /// Reads or pulls everything that the recipe names.
    pub(crate) fn inputs(
        &self,
        recipe: ValidRecipe,
        layouts: Layouts<'_>,
        progress: &Progress,
    ) -> Result<BuildInputs> {
        let agent = self.args.agent()?;
        let source = |phase, reference: &PinnedReference, layout: Option<&Path>| {
            let what = match phase {
                BuildPhase::PullingBootKit => "boot kit",
                _ => "workload image",
            };
            let step = progress.phase(phase, &format!("pull {what} {reference}"));
            let pulled = self.pull(what, reference, layout, &step)?;
            step.done();
            self.source_image(&pulled, reference)
                .with_context(|| format!("cannot use the {what}"))
        };
        let rootfs = source(BuildPhase::PullingRootfs, &recipe.rootfs, layouts.rootfs)?;
        let boot_kit = source(
            BuildPhase::PullingBootKit,
            &recipe.boot_kit,
            layouts.boot_kit,
        )?;
        if let (Some(cache), Some(limit)) = (&self.cache, self.args.cache_limit) {
            cache.trim(limit).context(TRIM)?;
        }
        Ok(BuildInputs {
            rootfs,
            boot_kit,
            recipe,
            agent,
            keep: Arc::new(self.scratch.clone()),
        })
    }

    /// Pulls an image, or reads it from a layout that stands for its registry.
    pub(crate) fn pull(
        &self,
        what: &str,
        reference: &PinnedReference,
        layout: Option<&Path>,
        progress: &dyn TransferProgress,
    ) -> Result<Pulled> {
        if let Some(directory) = layout {
            return read_layout(directory, reference.digest(), Some(&self.scratch))
                .with_context(|| format!("cannot read the {what} from {}", directory.display()));
        }
        let name = reference.to_string();
        let cache = self.cache.as_ref();
        let pull = || {
            let pull = self.source.pull_with(&name, cache, progress);
            self.runtime.block_on(pull)
        };
        let pulled = match (pull(), cache) {
            // A cache may always be emptied.
            (Err(RegistryError::Cache(error)), Some(cache)) if is_full(&error) => {
                eprintln!("emptying the cache, which is full");
                cache.trim(0).context(TRIM)?;
                pull()
            }
            (pulled, _) => pulled,
        };
        pulled.with_context(|| format!("cannot pull the {what}"))
    }

    fn source_image(&self, pulled: &Pulled, reference: &PinnedReference) -> Result<SourceImage> {
        ensure!(
            pulled.digest == reference.digest(),
            "got {} where {reference} was asked for",
            pulled.digest
        );
        Ok(SourceImage {
            config: pulled.config.clone(),
            layers: self.scratch.uncompress(pulled.stored_layers()?)?,
        })
    }
}

const NO_CACHE: &str = "cannot keep what is pulled: name another directory with --cache, or \
                        correct the volume that spec.buildJob.cache names";
const TRIM: &str = "cannot make room in the cache";

fn is_full(error: &CacheError) -> bool {
    matches!(
        error.source.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The recipe that the operator gives a build Job for this image.
pub(crate) fn image_recipe(image: &MeasuredImage) -> Result<ValidRecipe> {
    let name = full_name(&image.metadata);
    let build = image.spec.source.build.as_ref().with_context(|| {
        let oci = image.spec.source.oci.as_ref();
        let reference = oci.map_or("REFERENCE", |oci| oci.reference.as_str());
        format!(
            "MeasuredImage {name}: spec.source.type is OCI: there is nothing to build; fetch it \
             with `assay pull {reference} -o DIR`"
        )
    })?;
    let valid = build_recipe(build).validate();
    let recipe = valid.with_context(|| format!("MeasuredImage {name}: spec.source.build"))?;
    for (field, reference) in [
        ("rootfs.image", &recipe.rootfs),
        ("bootKit.image", &recipe.boot_kit),
    ] {
        ensure!(
            reference.digest().as_bytes().iter().any(|byte| *byte != 0),
            "MeasuredImage {name}: spec.source.build.{field}: the digest of zeros is a \
             placeholder; write the digest that pushing the image printed"
        );
    }
    Ok(recipe)
}
