//! Which volumes there are: the key holder's word, beside the policy's.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::Deserialize;

use crate::config::ConfigError;
use crate::submission::is_name;

/// One entry of the configuration's `volumes`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeConfig {
    /// The volume, `{namespace}/{deployment}/{volume}`.
    pub resource: String,
    /// The version of the key that guests are to move to: a higher one than before
    /// makes another key. A lower one changes nothing.
    #[serde(default = "first_version")]
    pub key_version: NonZeroU32,
    /// Whether the volume is for simulated guests, which nothing protects, and for
    /// no others.
    #[serde(default)]
    pub simulated: bool,
}

fn first_version() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// What the key holder says of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeclaredVolume {
    /// The version of the key that guests are to move to.
    pub key_version: u32,
    /// Whether it is for simulated guests, and for no others.
    pub simulated: bool,
}

/// The volumes, by `{namespace}/{deployment}/{volume}`.
///
/// # Errors
/// When one is not three names, or there twice.
pub fn declared_volumes(
    config: &[VolumeConfig],
) -> Result<BTreeMap<String, DeclaredVolume>, ConfigError> {
    let mut volumes = BTreeMap::new();
    for entry in config {
        let VolumeConfig { resource, .. } = entry;
        let names: Vec<&str> = resource.split('/').collect();
        if names.len() != 3 || !names.into_iter().all(is_name) {
            let remedy = format!("{resource:?} is not namespace/deployment/volume; write it so");
            return Err(ConfigError::field("volumes.resource", remedy));
        }
        let declared = DeclaredVolume {
            key_version: entry.key_version.get(),
            simulated: entry.simulated,
        };
        if volumes.insert(resource.clone(), declared).is_some() {
            let remedy = format!("{resource:?} is there twice; remove one");
            return Err(ConfigError::field("volumes.resource", remedy));
        }
    }
    Ok(volumes)
}
