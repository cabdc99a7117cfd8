//! The initramfs: the guest agent as `/init`, its measured configuration and the
//! kernel modules, and nothing else.

use std::collections::BTreeMap;

use assay_tee::GuestConfig;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use assay_tee::guest_config::GUEST_CONFIG_PATH;
use bytes::Bytes;

use crate::newc::{EncodeNewcError, NewcBuilder};
use crate::rope::Rope;

/// Path of the guest agent, which the kernel starts.
pub const AGENT_PATH: &str = "/init";

/// Directories that the agent mounts on.
const MOUNT_POINTS: [(&str, u32); 6] = [
    ("dev", 0o755),
    ("newroot", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// An initramfs that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeInitramfsError {
    /// The configuration has no JSON form.
    #[error("cannot encode guest.json")]
    Config(#[source] EncodeCanonicalError),
    /// The archive cannot hold a file.
    #[error("cannot write the initramfs")]
    Archive(#[source] EncodeNewcError),
}

/// Where a module of the boot kit lies in the initramfs.
pub fn module_path(release: &str, path: &str) -> String {
    format!("/lib/modules/{release}/{path}")
}

/// Writes the initramfs. `modules` are paths from [`module_path`] with content.
pub fn encode_initramfs(
    agent: &Bytes,
    config: &GuestConfig,
    modules: &[(String, Bytes)],
) -> Result<Rope, EncodeInitramfsError> {
    let config = encode_canonical(config).map_err(EncodeInitramfsError::Config)?;
    // Sorted, so that a directory precedes what is in it.
    let mut entries: BTreeMap<&str, (u32, Option<Bytes>)> = BTreeMap::new();
    entries.insert(relative(AGENT_PATH), (0o755, Some(agent.clone())));
    entries.insert(relative(GUEST_CONFIG_PATH), (0o444, Some(config.into())));
    for (path, content) in modules {
        entries.insert(relative(path), (0o444, Some(content.clone())));
    }
    let files: Vec<&str> = entries.keys().copied().collect();
    for path in files {
        for (slash, _) in path.match_indices('/') {
            if let Some(parent) = path.get(..slash) {
                entries.entry(parent).or_insert((0o755, None));
            }
        }
    }
    for (path, mode) in MOUNT_POINTS {
        entries.insert(path, (mode, None));
    }

    let mut archive = NewcBuilder::new();
    for (path, (mode, content)) in entries {
        match content {
            Some(content) => archive.file(path, mode, content),
            None => archive.directory(path, mode),
        }
        .map_err(EncodeInitramfsError::Archive)?;
    }
    Ok(archive.finish())
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use assay_tee::Sha256Digest;
    use assay_tee::guest_config::{Process, RootFs};

    use super::*;
    use crate::newc::parse_newc;

    #[test]
    fn everything_is_there_after_its_directory() {
        let config = GuestConfig {
            version: GuestConfig::VERSION,
            cmdline: "console=ttyS0".to_owned(),
            modules: vec![module_path("6.12", "kernel/fs/erofs.ko.xz")],
            root: RootFs::DmVerity {
                serial: "s".to_owned(),
                block_size: 4096,
                data_blocks: 1,
                hash_start_block: 2,
                root_hash: Sha256Digest::of(b""),
                salt: String::new(),
            },
            process: Process {
                args: vec!["/bin/true".to_owned()],
                env: Vec::new(),
                cwd: "/".to_owned(),
                uid: 0,
                gid: 0,
                additional_gids: Vec::new(),
                stop_signal: "SIGTERM".to_owned(),
            },
        };
        let modules = [(config.modules[0].clone(), Bytes::from_static(b"module"))];
        let agent = Bytes::from_static(b"agent");
        let archive = encode_initramfs(&agent, &config, &modules).unwrap();
        let entries = parse_newc(&archive.to_bytes()).unwrap();
        let paths: Vec<_> = entries
            .iter()
            .map(|entry| (entry.path.as_str(), entry.mode))
            .collect();
        assert_eq!(
            paths,
            [
                ("dev", 0o040_755),
                ("etc", 0o040_755),
                ("etc/assay", 0o040_755),
                ("etc/assay/guest.json", 0o100_444),
                ("init", 0o100_755),
                ("lib", 0o040_755),
                ("lib/modules", 0o040_755),
                ("lib/modules/6.12", 0o040_755),
                ("lib/modules/6.12/kernel", 0o040_755),
                ("lib/modules/6.12/kernel/fs", 0o040_755),
                ("lib/modules/6.12/kernel/fs/erofs.ko.xz", 0o100_444),
                ("newroot", 0o040_755),
                ("proc", 0o040_555),
                ("run", 0o040_755),
                ("sys", 0o040_555),
                ("tmp", 0o041_777),
            ]
        );
        let written: GuestConfig = serde_json::from_slice(&entries[3].content).unwrap();
        assert_eq!(written, config);
    }
}
