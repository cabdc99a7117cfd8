//! What a kit can do, for a person and for programs.

use std::collections::BTreeMap;

use assay_tee::Sha256Digest;
use serde::Serialize;

use super::BootKit;
use crate::hardening::ValidHardening;
use crate::kernel_config::Ability;
use crate::packages::Package;
use crate::recipe::Compression;

/// What a kit has and can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KitReport {
    /// Release of the kernel.
    pub release: String,
    /// SHA-256 of the kernel.
    pub kernel: Sha256Digest,
    /// SHA-256 of systemd-stub.
    pub stub: Sha256Digest,
    /// SHA-256 of the firmware.
    pub firmware: Sha256Digest,
    /// Modules that a guest loads, in order.
    pub modules: Vec<String>,
    /// What it can do.
    pub abilities: BTreeMap<Ability, AbilityReport>,
    /// Why no guest runs on it, one sentence each; empty where guests do.
    pub problems: Vec<String>,
    /// What its modules ask for and can do without, and that it lacks, one sentence
    /// each.
    pub notes: Vec<String>,
    /// The packages that it was packed from, where it says so.
    pub packages: Vec<Package>,
}

/// Whether a kit can do something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AbilityReport {
    /// What it lacks, one sentence each; empty where it can.
    pub missing: Vec<String>,
}

impl BootKit {
    /// What the kit has and can do, with every hardening on.
    pub fn report(&self) -> KitReport {
        let abilities = Ability::ALL.into_iter().map(|ability| {
            let options = ability.missing(&self.config);
            let mut missing: Vec<_> = options.iter().map(ToString::to_string).collect();
            if ability == Ability::SignedModules {
                let unsigned = self.infos.iter().filter(|info| !info.signed);
                missing
                    .extend(unsigned.map(|info| format!("module {} has no signature", info.name)));
            }
            (ability, AbilityReport { missing })
        });
        let document = self.document.as_ref();
        KitReport {
            release: self.release.clone(),
            kernel: Sha256Digest::of(&self.kernel),
            stub: Sha256Digest::of(&self.stub),
            firmware: Sha256Digest::of(&self.firmware),
            modules: self.infos.iter().map(|info| info.name.clone()).collect(),
            abilities: abilities.collect(),
            problems: self.problems(Compression::None, &ValidHardening::default()),
            notes: self.notes.clone(),
            packages: document.map_or_else(Vec::new, |document| document.packages.clone()),
        }
    }
}
