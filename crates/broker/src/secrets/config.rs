//! Which store the values are in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::SecretStore;
use super::files::FileSecrets;
use crate::config::ConfigError;

/// Where the values are: exactly one store.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretsConfig {
    /// Files of a directory.
    #[serde(default)]
    pub files: Option<FilesConfig>,
}

/// Files of a directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilesConfig {
    /// The directory: `{namespace}/{deployment}/{name}` below it are values.
    pub directory: PathBuf,
}

impl SecretsConfig {
    /// Makes paths relative to `base`.
    pub(crate) fn resolve(&mut self, base: &Path) {
        if let Some(files) = &mut self.files {
            files.directory = base.join(&files.directory);
        }
    }

    /// Checks what can be checked without asking the store.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.files.is_none() {
            return Err(ConfigError::field(
                "secrets",
                "names no store; add secrets.files",
            ));
        }
        Ok(())
    }

    /// Opens the store.
    ///
    /// # Errors
    /// The first field that is wrong, or names what cannot be used.
    pub fn open(&self) -> Result<Arc<dyn SecretStore>, ConfigError> {
        self.validate()?;
        let Some(files) = &self.files else {
            return Err(ConfigError::field("secrets", "names no store"));
        };
        let store = FileSecrets::open(&files.directory)
            .map_err(|source| ConfigError::cannot_use("secrets.files.directory")(source.into()))?;
        Ok(Arc::new(store))
    }
}
