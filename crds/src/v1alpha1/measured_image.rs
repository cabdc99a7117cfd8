//! `MeasuredImage`: an immutable guest image and the launch digest of every
//! shape that it may be launched in.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BootMethod, LocalReference, TeeType};
use crate::conditions::reasons;

/// An immutable guest image: built from an ordinary container image, or pulled.
/// A new build is a new object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "assay.dev",
    version = "v1alpha1",
    kind = "MeasuredImage",
    namespaced,
    shortname = "mi",
    category = "assay",
    status = "MeasuredImageStatus",
    derive = "PartialEq",
    doc = "A guest image and the launch digest of every shape that it may be launched in.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name is longer than 63 characters, but it becomes a label: create the MeasuredImage under a shorter name"),
    validation = Rule::new("!has(self.spec.buildJob) || self.spec.source.type == 'Build'").message("spec.buildJob is about the build, and spec.source.type OCI has none: leave it out"),
    selectable = ".spec.lifecycle.state",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.lifecycle.state"),
    printcolumn(
        name = "Digests",
        type_ = "string",
        json_path = ".status.digests.summary",
        description = "Accepted launch digests of all"
    ),
    printcolumn(
        name = "Used-By",
        type_ = "integer",
        json_path = ".status.usedBy",
        description = "ConfidentialDeployments that use this image"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Artifact",
        type_ = "string",
        json_path = ".status.artifact.reference",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredImageSpec {
    /// Where the artifact comes from. Immutable: create another MeasuredImage
    /// for another build.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.source is immutable; create another MeasuredImage"))]
    pub source: ImageSource,
    /// A Secret of type `kubernetes.io/dockerconfigjson` with the right to pull: the
    /// images that the artifact is built from, and the artifact. Where there is none,
    /// `source.build.output.secretRef` is used, and else nothing. The operator reads
    /// it only where a Role of the namespace lets it; docs/images.md says how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret_ref: Option<LocalReference>,
    /// How the build runs. No byte of the artifact depends on it, and a change while
    /// it runs ends it and starts another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_job: Option<BuildJob>,
    /// Which launch shapes get a digest.
    #[serde(default)]
    pub shapes: LaunchShapes,
    /// Whether the image may be used.
    #[serde(default)]
    pub lifecycle: Lifecycle,
}

impl MeasuredImageSpec {
    /// The Secret with the right to pull, if any.
    pub fn pull_secret(&self) -> Option<&LocalReference> {
        let push = self.source.build.as_ref();
        let push = push.and_then(|build| build.output.secret_ref.as_ref());
        self.pull_secret_ref.as_ref().or(push)
    }
}

/// How the build runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildJob {
    /// Whether nothing is built for now. A build that runs is ended.
    #[serde(default, skip_serializing_if = "is_false")]
    pub suspend: bool,
    /// Resources of the builder, in addition to the default or instead of it:
    /// requests of 250m CPU and 256Mi memory, and a limit of 1Gi memory, or 4Gi where
    /// files are compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<BuildResources>,
    /// What keeps images that were pulled for the next build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<BuildCache>,
}

/// Resources of the builder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildResources {
    /// What the builder is sure to get, by resource.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("additionalProperties" = serde_json::json!({"x-kubernetes-int-or-string": true})))]
    pub requests: BTreeMap<String, Quantity>,
    /// What the builder gets at most, by resource.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("additionalProperties" = serde_json::json!({"x-kubernetes-int-or-string": true})))]
    pub limits: BTreeMap<String, Quantity>,
}

/// A volume that keeps images that were pulled. Builds of a namespace may share it,
/// also at the same time. What is in it is verified whenever it is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildCache {
    /// A `PersistentVolumeClaim` of the namespace, of volume mode Filesystem.
    /// ReadWriteMany, where builds run on several nodes at once.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Most that is kept after a build, such as `20Gi`: what was not used for the
    /// longest time goes first. Leave room for one image besides. Everything is kept
    /// where this is absent, until the volume is full; then it is emptied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == string && self.matches('^[1-9][0-9]*(k|M|G|T|Ki|Mi|Gi|Ti)?$')").message("cache.sizeLimit must be an amount such as 20Gi"))]
    pub size_limit: Option<Quantity>,
}

/// Where the artifact comes from: exactly the member that `type` names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'Build') == has(self.build)").message("source.build must be set exactly when source.type is Build"),
    validation = Rule::new("(self.type == 'OCI') == has(self.oci)").message("source.oci must be set exactly when source.type is OCI"),
)]
pub struct ImageSource {
    /// Which member is set.
    #[serde(rename = "type")]
    pub type_: SourceType,
    /// Build the artifact in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildSource>,
    /// Use an artifact that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciSource>,
}

/// The kinds of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceType {
    /// Build from a container image and a boot kit, in a Job.
    Build,
    /// Pull an artifact by digest.
    #[serde(rename = "OCI")]
    Oci,
}

/// What to build the artifact from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.compression) || self.compression == 'None' || !has(self.layout) || self.layout == 'DmVerity'").message("build.compression is about the root disk, and the layout Initramfs has none: leave it out"))]
pub struct BuildSource {
    /// The workload: an ordinary container image.
    pub rootfs: ImageByDigest,
    /// Kernel, modules, systemd-stub and firmware.
    pub boot_kit: ImageByDigest,
    /// Where the root file system goes.
    #[serde(default)]
    pub layout: Layout,
    /// How the files of the root disk are compressed. The guest unpacks them as it
    /// reads them; Zstd takes Linux 6.10 or newer.
    #[serde(default, skip_serializing_if = "Compression::is_none")]
    pub compression: Compression,
    /// Words appended to the kernel command line. They are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^[ -~]*$"))]
    pub extra_cmdline: Option<String>,
    /// Files of the boot kit that the unified kernel image has as sections of their
    /// own. They are measured.
    #[serde(default, skip_serializing_if = "UkiFiles::is_empty")]
    pub uki: UkiFiles,
    /// What keeps the guest from doing more than its image asks for is on unless
    /// an exception gives a reason.
    #[serde(default, skip_serializing_if = "Hardening::is_default")]
    pub hardening: Hardening,
    /// The commit that the image was made from. Recorded in the artifact and its
    /// provenance as it is given; nothing is fetched from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// Whether a second Job, on another node where there is one, builds the same
    /// again. The artifact is used only if both are the same; the condition
    /// Reproducible says so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub verify_rebuild: bool,
    /// Where the artifact is pushed to.
    pub output: BuildOutput,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Files that the unified kernel image has as sections of their own: absolute paths
/// in the boot kit's image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UkiFiles {
    /// What the image says that it is (os-release), such as `/usr/lib/os-release`.
    /// Boot menus list only images that have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^/"))]
    pub os_release: Option<String>,
    /// A BMP image to show while the kernel boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^/"))]
    pub splash: Option<String>,
    /// A cpio archive (newc, not compressed) with processor microcode in
    /// `kernel/x86/microcode`, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^/"))]
    pub microcode: Option<String>,
}

impl UkiFiles {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is switched off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hardening {
    /// Settings that are off, each with a reason. `manifest.json` of the artifact
    /// has them all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["setting".to_owned()]))]
    #[schemars(length(max = 8))]
    pub exceptions: Vec<HardeningException>,
}

impl Hardening {
    /// Whether nothing is switched off.
    pub fn is_default(&self) -> bool {
        self.exceptions.is_empty()
    }
}

/// A setting that is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HardeningException {
    /// Which setting.
    pub setting: HardeningSetting,
    /// Why, in one line, for whoever reviews the image.
    #[schemars(length(min = 1, max = 512))]
    pub reason: String,
}

/// What is on in every guest, unless an exception says why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HardeningSetting {
    /// A kernel in doubt ends the guest: `panic=-1 oops=panic`.
    PanicReboot,
    /// Root in the guest cannot change the measured kernel: `lockdown=integrity`.
    Lockdown,
    /// The kernel loads modules of its own build alone: `module.sig_enforce=1`.
    ModuleSignatures,
    /// Memory is zeroed before it is used: `init_on_alloc=1`.
    InitOnAlloc,
    /// The workload's root is read-only, apart from `/run`, `/tmp`, `/var/tmp` and
    /// the volumes that its image declares.
    ReadOnlyRoot,
    /// What is written there cannot be run.
    NoExec,
}

/// A commit of a Git repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GitSource {
    /// URL of the repository, without user or password.
    #[schemars(length(min = 1, max = 1024))]
    pub repository: String,
    /// The commit: 40 or 64 lower-case hex digits.
    #[x_kube(validation = Rule::new("self.matches('^([0-9a-f]{40}|[0-9a-f]{64})$')").message("git.commit must be the 40 or 64 lower-case hex digits of a commit: a branch names another one tomorrow"))]
    pub commit: String,
}

/// A container image by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageByDigest {
    /// Reference with digest: `host/repository@sha256:…`. A tag alone is refused:
    /// it names other bytes tomorrow.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^@\\s]+@sha256:[0-9a-f]{64}$')").message("image must be host/repository@sha256:<64 hex digits>: a tag names other bytes tomorrow, so give the digest that the push printed"))]
    pub image: String,
}

/// Where the root file system goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Layout {
    /// A read-only disk, verified block by block against a measured root hash.
    #[default]
    DmVerity,
    /// The initramfs, and no disk. For small images: while the guest boots, the
    /// files are in its memory several times.
    Initramfs,
}

/// How the files of a root disk are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 in its high-compression encoding: quick to read.
    Lz4hc,
    /// Zstandard: smaller.
    Zstd,
}

impl Compression {
    /// Whether nothing is compressed.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Where the artifact is pushed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildOutput {
    /// Repository without tag or digest: `host/path`.
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^@\\s]+/[^@:\\s]+$')").message("output.repository must be host/path: leave out tag and digest, the artifact's own digest is appended"))]
    pub repository: String,
    /// A Secret of type `kubernetes.io/dockerconfigjson` with the right to push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalReference>,
}

/// An artifact that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OciSource {
    /// Reference with digest: `host/repository@sha256:…`.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^@\\s]+@sha256:[0-9a-f]{64}$')").message("oci.reference must be host/repository@sha256:<64 hex digits>: a tag names other bytes tomorrow, so give the digest that the push printed"))]
    pub reference: String,
}

/// Which launch shapes get a digest, besides those that ConfidentialDeployments
/// of the namespace ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaunchShapes {
    /// vCPU counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 1, max = 512)))]
    pub vcpus: Vec<u32>,
    /// CPU models by QEMU's names. Combined with every vCPU count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub cpu_models: Vec<String>,
    /// Boot methods, combined with every vCPU count and CPU model; DirectKernel
    /// where none is listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub boot: Vec<BootMethod>,
}

/// Whether the image may be used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// The state.
    #[serde(default)]
    pub state: LifecycleState,
    /// Why, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// Whether the image may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum LifecycleState {
    /// Guests run and receive what the policy releases.
    #[default]
    Active,
    /// As Active, but policies may stop releasing to it.
    Deprecated,
    /// No guest of this image is Ready, and nothing is released to it.
    Revoked,
}

/// What is known of the image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredImageStatus {
    /// Generation of the specification that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The artifact, every hash recomputed from its bytes by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactStatus>,
    /// What a launch digest depends on besides the launch shape, to explain
    /// digests that no row has. In the form of `assay measure --write-inputs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement_inputs: Option<MeasurementInputsStatus>,
    /// One row for each launch shape.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".to_owned()]))]
    #[schemars(length(max = 64))]
    pub launch_digests: Vec<LaunchDigestRow>,
    /// How far the build is, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildStatus>,
    /// The rows, counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digests: Option<DigestCounts>,
    /// ConfidentialDeployments that use this image.
    #[serde(default)]
    pub used_by: i32,
    /// States: Ready, ArtifactReady, Measured, Reproducible where a second build is
    /// asked for, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildStatus {
    /// What it is at.
    pub phase: BuildPhase,
    /// Bytes that were transferred, where the phase is a transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub transferred_bytes: Option<i64>,
    /// Bytes that there are to transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub total_bytes: Option<i64>,
    /// How much of them that is, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<i32>,
}

impl BuildStatus {
    /// A phase of which no more is known.
    pub fn at(phase: BuildPhase) -> Self {
        Self {
            phase,
            transferred_bytes: None,
            total_bytes: None,
            percent: None,
        }
    }

    /// A phase that has transferred some of its bytes.
    pub fn transfer(phase: BuildPhase, transferred: u64, total: u64) -> Self {
        let transferred = transferred.min(total);
        let percent = transferred.saturating_mul(100).checked_div(total);
        let bytes = |count: u64| i64::try_from(count).ok();
        Self {
            phase,
            transferred_bytes: bytes(transferred),
            total_bytes: bytes(total),
            percent: percent.and_then(|percent| i32::try_from(percent).ok()),
        }
    }
}

/// What a build is at, in the order in which it gets there.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum BuildPhase {
    /// Its pod has not started.
    Pending,
    /// It runs, and cannot be asked how far it is.
    Running,
    /// The workload's image is pulled.
    PullingRootfs,
    /// The boot kit is pulled.
    PullingBootKit,
    /// Layers become one tree.
    Flattening,
    /// The root file system is written.
    Erofs,
    /// The root disk's hash tree is computed.
    Verity,
    /// Initramfs and UKI are made.
    #[serde(rename = "UKI")]
    Uki,
    /// The artifact becomes an image.
    Packing,
    /// The artifact is pushed.
    Pushing,
}

/// The artifact's parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactStatus {
    /// The OCI image by digest.
    pub reference: String,
    /// The UKI.
    pub uki: ArtifactFile,
    /// The firmware.
    pub firmware: ArtifactFile,
    /// The root disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_disk: Option<RootDiskStatus>,
}

/// A file of the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactFile {
    /// Path in the artifact.
    pub path: String,
    /// Digest of the content, `sha256:…`.
    pub sha256: String,
    /// Size in bytes.
    pub size_bytes: i64,
}

/// The root disk of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RootDiskStatus {
    /// Path in the artifact.
    pub path: String,
    /// Digest of the content, `sha256:…`.
    pub sha256: String,
    /// Size in bytes.
    pub size_bytes: i64,
    /// Serial of the virtio disk that the guest looks for.
    pub serial: String,
    /// Root hash of the dm-verity tree, `sha256:…`.
    pub verity_root_hash: String,
}

/// What a launch digest depends on besides the launch shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeasurementInputsStatus {
    /// The firmware.
    pub firmware: FirmwareInputsStatus,
    /// What the firmware verifies a direct boot against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_hashes: Option<KernelHashesStatus>,
    /// The command line whose hash is measured, where it is not empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub cmdline: Option<String>,
    /// The running launch digest after the pages of the self-contained IGVM file of
    /// firmware and UKI, `sha384:…`. None where the firmware takes no UKI from such a
    /// file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub igvm_digest: Option<String>,
}

/// What of a firmware image matters for a launch digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FirmwareInputsStatus {
    /// Guest physical address of the image, which ends at 4 GiB.
    pub base_gpa: i64,
    /// The running launch digest after the image's pages, `sha384:…`.
    pub digest: String,
    /// SEV metadata sections in file order.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub sections: Vec<SectionStatus>,
    /// Where application processors start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_eip: Option<u32>,
    /// Guest physical address at which the firmware looks for the hashes table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes_table_gpa: Option<u32>,
}

/// A range of guest memory that the VMM prepares before the guest starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SectionStatus {
    /// Guest physical address.
    pub gpa: u32,
    /// Size in bytes.
    pub size: u32,
    /// Type of the section in the firmware's metadata.
    pub kind: u32,
}

/// The hashes that the firmware verifies a direct boot against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KernelHashesStatus {
    /// The command line and its terminating NUL, `sha256:…`.
    pub cmdline: String,
    /// The initrd; the hash of nothing where there is none.
    pub initrd: String,
    /// The kernel file: the UKI.
    pub kernel: String,
}

/// The launch digest of one shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaunchDigestRow {
    /// Key: firmware, CPU model, vCPUs, guest features, TEE and, where it is not
    /// DirectKernel, boot method, joined by dots.
    pub id: String,
    /// The firmware: `ovmf-` and the first twelve digits of its SHA-256.
    pub firmware: String,
    /// CPU model by QEMU's name.
    pub cpu_model: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// SEV_FEATURES of the VMSA, as hexadecimal.
    pub guest_features: String,
    /// The TEE.
    pub tee: TeeType,
    /// How the firmware gets the UKI.
    #[serde(default, skip_serializing_if = "BootMethod::is_direct_kernel")]
    pub boot: BootMethod,
    /// The launch digest, `sha384:…`.
    pub digest: String,
    /// Whether verifiers accept it.
    pub state: DigestState,
}

/// Whether verifiers accept a launch digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DigestState {
    /// It is accepted.
    Accepted,
    /// Its image is revoked.
    Revoked,
}

/// Launch digests, counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DigestCounts {
    /// Rows that verifiers accept.
    pub accepted: i32,
    /// All rows.
    pub total: i32,
    /// `accepted/total`.
    pub summary: String,
}

reasons! {
    /// Why a MeasuredImage is as it is.
    MeasuredImageReason {
        /// The specification cannot be built or measured; the message names the
        /// field.
        SpecInvalid,
        /// The build Job has not finished.
        Building,
        /// The build's pod cannot start; the message says why.
        BuildBlocked,
        /// spec.buildJob.suspend says that nothing is built.
        BuildSuspended,
        /// The build Job failed; the message has its error.
        BuildFailed,
        /// A second build is under way.
        VerifyingRebuild,
        /// The second build failed; the message has its error.
        RebuildFailed,
        /// Two builds gave different artifacts.
        NotReproducible,
        /// Two builds gave the same artifact.
        Reproduced,
        /// The artifact is being read.
        Pulling,
        /// The artifact cannot be read from its registry.
        PullFailed,
        /// The Secret with the right to pull cannot be used; the message says why.
        PullSecretUnusable,
        /// The artifact's content contradicts its manifest.
        ArtifactInvalid,
        /// A requested CPU model is unknown.
        UnknownCpuModel,
        /// A launch digest cannot be computed.
        MeasureFailed,
        /// The artifact is there and hashed.
        ArtifactVerified,
        /// Every launch digest is computed.
        DigestsComputed,
        /// Digests are published and accepted.
        Published,
        /// The image is revoked.
        Revoked,
        /// An object that the image needs exists and is somebody else's.
        ChildConflict,
        /// The API server refuses what the image needs.
        ApplyFailed,
        /// Nothing is left to do.
        UpToDate,
    }
}
