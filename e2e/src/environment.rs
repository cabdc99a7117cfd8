//! What a scenario runs against: written by `cargo xtask` as JSON, so that the
//! demo and the tests see the same cluster, images and programs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::kubectl::Kubectl;

/// Environment variable that names the description's file.
pub const ENVIRONMENT_VARIABLE: &str = "ASSAY_E2E";

/// A cluster, the images to install, and the programs to use.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Environment {
    /// Root of the checkout.
    pub checkout: PathBuf,
    /// Directory inside the checkout for generated files; not committed.
    pub scratch: PathBuf,
    /// The cluster.
    pub kubeconfig: PathBuf,
    /// Logs of the cluster's components, where it is on this machine.
    pub logs: Option<PathBuf>,
    /// The kubectl program.
    pub kubectl: PathBuf,
    /// The helm program.
    pub helm: PathBuf,
    /// The `assay` command.
    pub assay: PathBuf,
    /// Registry that the cluster and this machine reach by the same address.
    pub registry: String,
    /// The registry program, where the cluster is on this machine.
    pub registry_program: Option<PathBuf>,
    /// Images by digest.
    pub images: Images,
    /// Workloads of different kinds, where tests want them.
    pub samples: Option<Samples>,
    /// sev-snp-measure, the oracle of launch digests.
    pub sev_snp_measure: Option<PathBuf>,
    /// go-sev-guest's `check`, the oracle of reports.
    pub go_sev_guest_check: Option<PathBuf>,
}

/// Images by digest, as `host/repository@sha256:…`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Images {
    /// Operator, broker and CLI.
    pub assay: String,
    /// QEMU and the launcher.
    pub launcher: String,
    /// Builds artifacts.
    pub builder: String,
    /// Kernel, modules, stub and firmware.
    pub boot_kit: String,
    /// The web server of the quickstart.
    pub web: String,
    /// A shell for pods of tests.
    pub busybox: String,
}

/// Workloads that list the files they see, by digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Samples {
    /// One static program.
    pub static_server: String,
    /// Debian's Python, and every kind of file.
    pub interpreter: String,
    /// A program, certificates, time zones and a user.
    pub distroless: String,
}

impl Environment {
    /// The environment that `cargo xtask test` describes, or `None` with a
    /// printed reason where there is none.
    ///
    /// # Errors
    /// When the description cannot be read.
    pub fn from_variable() -> Result<Option<Self>> {
        let Some(path) = std::env::var_os(ENVIRONMENT_VARIABLE) else {
            println!(
                "skipped: no cluster ({ENVIRONMENT_VARIABLE} is unset); run `cargo xtask test`"
            );
            return Ok(None);
        };
        Self::read(Path::new(&path)).map(Some)
    }

    /// Reads a description.
    ///
    /// # Errors
    /// When the file cannot be read or has another form.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
    }

    /// kubectl for this cluster.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.kubectl.clone(), self.kubeconfig.clone())
    }
}
