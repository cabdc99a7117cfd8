//! What a kernel was built with, and whether that is enough for a guest.
//!
//! A kernel that lacks something would boot and then stop somewhere inside the
//! guest, where nobody sees why. Its configuration says so beforehand, one
//! sentence for each option.

mod embedded;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::hardening::{Setting, ValidHardening};
use crate::recipe::Compression;

pub use self::embedded::embedded_config;
#[cfg(test)]
pub(crate) use self::embedded::put_config;

/// How an option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionState {
    /// Not at all, or to something that is neither `y` nor `m`.
    Unset,
    /// As a module: `m`.
    Module,
    /// Built in: `y`.
    BuiltIn,
}

/// A kernel's configuration (`.config`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelConfig {
    options: BTreeMap<String, OptionState>,
}

/// Text is no kernel configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKernelConfigError {
    /// A line is neither a comment nor an option.
    #[error("line {line} is neither a comment nor CONFIG_…=…")]
    Line {
        /// From 1.
        line: usize,
    },
    /// An option is set twice: two readers could take different values.
    #[error("line {line} sets {option} again")]
    Duplicate {
        /// From 1.
        line: usize,
        /// The option.
        option: String,
    },
    /// Nothing is set.
    #[error("no option is set")]
    Empty,
}

impl KernelConfig {
    /// Parses what Kconfig writes.
    pub fn parse(text: &str) -> Result<Self, ParseKernelConfigError> {
        let mut options = BTreeMap::new();
        for (line, content) in (1..).zip(text.lines()) {
            let content = content.trim_end();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (option, value) = content
                .split_once('=')
                .filter(|(option, _)| option.starts_with("CONFIG_"))
                .ok_or(ParseKernelConfigError::Line { line })?;
            let state = match value {
                "y" => OptionState::BuiltIn,
                "m" => OptionState::Module,
                _ => OptionState::Unset,
            };
            if options.insert(option.to_owned(), state).is_some() {
                return Err(ParseKernelConfigError::Duplicate {
                    line,
                    option: option.to_owned(),
                });
            }
        }
        if options.is_empty() {
            return Err(ParseKernelConfigError::Empty);
        }
        Ok(Self { options })
    }

    /// How an option, such as `CONFIG_EROFS_FS`, is set.
    pub fn state(&self, option: &str) -> OptionState {
        self.options
            .get(option)
            .copied()
            .unwrap_or(OptionState::Unset)
    }
}

/// An option that a guest depends on.
#[derive(Debug, Clone, Copy)]
struct Requirement {
    option: &'static str,
    /// Whether a module will do.
    module: bool,
    /// What does not work without it.
    lack: &'static str,
}

const fn built_in(option: &'static str, lack: &'static str) -> Requirement {
    Requirement {
        option,
        module: false,
        lack,
    }
}

const fn module(option: &'static str, lack: &'static str) -> Requirement {
    Requirement {
        option,
        module: true,
        lack,
    }
}

/// What every guest depends on.
const ALWAYS: &[Requirement] = &[
    built_in("CONFIG_EFI_STUB", "systemd-stub cannot start the kernel"),
    built_in("CONFIG_BLK_DEV_INITRD", "there is no initramfs"),
    built_in("CONFIG_BINFMT_ELF", "the guest agent cannot run"),
    built_in("CONFIG_DEVTMPFS", "the guest agent has no devices"),
    built_in(
        "CONFIG_PROC_FS",
        "the guest agent cannot check /proc/cmdline",
    ),
    built_in("CONFIG_SYSFS", "the guest agent cannot find its disks"),
    built_in("CONFIG_TMPFS", "the workload has nowhere to write"),
    built_in("CONFIG_PID_NS", "the workload cannot be contained"),
    built_in("CONFIG_IPC_NS", "the workload cannot be contained"),
    built_in("CONFIG_INET", "the guest cannot reach its verifier"),
    built_in(
        "CONFIG_SERIAL_8250_CONSOLE",
        "the console that the command line names does not exist",
    ),
    module("CONFIG_OVERLAY_FS", "the workload has no root file system"),
    module("CONFIG_VIRTIO_PCI", "no virtio device is found"),
    module("CONFIG_VIRTIO_BLK", "the root disk is not found"),
    module("CONFIG_VIRTIO_NET", "the guest cannot reach its verifier"),
    module(
        "CONFIG_VIRTIO_CONSOLE",
        "the launcher cannot hear the guest agent",
    ),
    module(
        "CONFIG_FW_CFG_SYSFS",
        "the guest cannot read its instance data",
    ),
    module("CONFIG_BLK_DEV_DM", "the root disk cannot be verified"),
    module("CONFIG_DM_VERITY", "the root disk cannot be verified"),
    module("CONFIG_EROFS_FS", "the root disk cannot be mounted"),
    built_in(
        "CONFIG_EROFS_FS_XATTR",
        "file capabilities of the image have no effect",
    ),
    built_in(
        "CONFIG_EROFS_FS_SECURITY",
        "file capabilities of the image have no effect",
    ),
];

const SNP: &[Requirement] = &[
    built_in("CONFIG_AMD_MEM_ENCRYPT", "the kernel cannot run on SEV-SNP"),
    module("CONFIG_SEV_GUEST", "no SEV-SNP report can be had"),
    module("CONFIG_TSM_REPORTS", "no report can be had by configfs-tsm"),
    module("CONFIG_CONFIGFS_FS", "no report can be had by configfs-tsm"),
];

const TDX: &[Requirement] = &[
    built_in("CONFIG_INTEL_TDX_GUEST", "the kernel cannot run on TDX"),
    built_in(
        "CONFIG_UNACCEPTED_MEMORY",
        "memory that the firmware has not accepted cannot be used",
    ),
    module("CONFIG_TDX_GUEST_DRIVER", "no TD quote can be had"),
    module("CONFIG_TSM_REPORTS", "no TD quote can be had"),
    module("CONFIG_CONFIGFS_FS", "no TD quote can be had"),
];

const SVSM_VTPM: &[Requirement] = &[
    built_in("CONFIG_TCG_TPM", "there is no TPM"),
    module("CONFIG_TCG_SVSM", "the vTPM of an SVSM is not found"),
];

const LOCKDOWN: &[Requirement] = &[built_in(
    "CONFIG_SECURITY_LOCKDOWN_LSM",
    "lockdown=integrity has no effect",
)];

const SIGNED_MODULES: &[Requirement] = &[built_in(
    "CONFIG_MODULE_SIG",
    "module.sig_enforce=1 has no effect",
)];

const COMPRESSED_MODULES: &[Requirement] = &[built_in(
    "CONFIG_MODULE_DECOMPRESS",
    "the kernel cannot unpack its own modules",
)];

const LZ4HC: &[Requirement] = &[built_in(
    "CONFIG_EROFS_FS_ZIP",
    "a root disk compressed with Lz4hc cannot be read",
)];

const ZSTD: &[Requirement] = &[
    built_in(
        "CONFIG_EROFS_FS_ZIP",
        "a root disk compressed with Zstd cannot be read",
    ),
    built_in(
        "CONFIG_EROFS_FS_ZIP_ZSTD",
        "a root disk compressed with Zstd cannot be read",
    ),
];

const DISK_IMAGE: &[Requirement] = &[built_in(
    "CONFIG_EFI_PARTITION",
    "the root on a disk image is not found",
)];

/// An option that a kernel should have and does not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct MissingOption {
    /// The option.
    pub option: &'static str,
    /// Whether `m` would do.
    pub module: bool,
    /// What does not work without it.
    pub lack: &'static str,
}

impl fmt::Display for MissingOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            option,
            module,
            lack,
        } = self;
        let wanted = if *module { "y or m" } else { "y" };
        write!(f, "{lack}: {option} must be {wanted}")
    }
}

/// What a kernel must do for a guest.
#[derive(Debug, Clone)]
pub struct Needs<'a> {
    /// How the root disk's files are compressed.
    pub compression: Compression,
    /// What the command line relies on.
    pub hardening: &'a ValidHardening,
    /// Whether modules are stored compressed.
    pub compressed_modules: bool,
}

/// The options that a guest on SEV-SNP lacks.
pub fn missing_options(config: &KernelConfig, needs: &Needs<'_>) -> Vec<MissingOption> {
    let mut wanted = vec![ALWAYS, SNP];
    wanted.push(match needs.compression {
        Compression::None => &[],
        Compression::Lz4hc => LZ4HC,
        Compression::Zstd => ZSTD,
    });
    if needs.hardening.is_on(Setting::Lockdown) {
        wanted.push(LOCKDOWN);
    }
    if needs.hardening.is_on(Setting::ModuleSignatures) {
        wanted.push(SIGNED_MODULES);
    }
    if needs.compressed_modules {
        wanted.push(COMPRESSED_MODULES);
    }
    missing(config, &wanted)
}

fn missing(config: &KernelConfig, wanted: &[&[Requirement]]) -> Vec<MissingOption> {
    let lacks = |requirement: &&Requirement| match config.state(requirement.option) {
        OptionState::BuiltIn => false,
        OptionState::Module => !requirement.module,
        OptionState::Unset => true,
    };
    let requirements = wanted.iter().copied().flatten();
    requirements
        .filter(lacks)
        .map(|requirement| MissingOption {
            option: requirement.option,
            module: requirement.module,
            lack: requirement.lack,
        })
        .collect()
}

/// Something that some kernels can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Ability {
    /// Run on SEV-SNP and give reports.
    Snp,
    /// Run on TDX and give quotes.
    Tdx,
    /// Use the vTPM of an SVSM.
    SvsmVtpm,
    /// Keep root from changing the kernel.
    Lockdown,
    /// Refuse modules without a signature.
    SignedModules,
    /// Read root disks compressed with Lz4hc.
    Lz4hc,
    /// Read root disks compressed with Zstd.
    Zstd,
    /// Find its root on a disk image, which has partitions.
    DiskImage,
}

impl Ability {
    /// All, in the order of tables.
    pub const ALL: [Self; 8] = [
        Self::Snp,
        Self::Tdx,
        Self::SvsmVtpm,
        Self::Lockdown,
        Self::SignedModules,
        Self::Lz4hc,
        Self::Zstd,
        Self::DiskImage,
    ];

    /// For a person.
    pub fn title(self) -> &'static str {
        match self {
            Self::Snp => "SEV-SNP",
            Self::Tdx => "TDX (kernel)",
            Self::SvsmVtpm => "SVSM vTPM",
            Self::Lockdown => "lockdown",
            Self::SignedModules => "signed modules",
            Self::Lz4hc => "compression Lz4hc",
            Self::Zstd => "compression Zstd",
            Self::DiskImage => "disk image",
        }
    }

    /// What a kernel with `config` lacks for it.
    pub fn missing(self, config: &KernelConfig) -> Vec<MissingOption> {
        let wanted = match self {
            Self::Snp => SNP,
            Self::Tdx => TDX,
            Self::SvsmVtpm => SVSM_VTPM,
            Self::Lockdown => LOCKDOWN,
            Self::SignedModules => SIGNED_MODULES,
            Self::Lz4hc => LZ4HC,
            Self::Zstd => ZSTD,
            Self::DiskImage => DISK_IMAGE,
        };
        missing(config, &[wanted])
    }
}

/// A configuration with everything that guests and abilities ask for.
#[cfg(test)]
pub(crate) fn complete() -> String {
    use std::fmt::Write as _;

    let all = [
        ALWAYS,
        SNP,
        TDX,
        SVSM_VTPM,
        LOCKDOWN,
        SIGNED_MODULES,
        COMPRESSED_MODULES,
        ZSTD,
        DISK_IMAGE,
    ];
    let mut lines: BTreeMap<&str, char> = BTreeMap::new();
    for requirement in all.into_iter().flatten() {
        let value = if requirement.module { 'm' } else { 'y' };
        lines.insert(requirement.option, value);
    }
    lines
        .iter()
        .fold("# Linux/x86 6.12.1\n".to_owned(), |mut text, (k, v)| {
            let _ = writeln!(text, "{k}={v}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardening::Hardening;

    fn hardening() -> ValidHardening {
        Hardening::default().validate().unwrap()
    }

    fn check(config: &str, compression: Compression) -> Vec<MissingOption> {
        let config = KernelConfig::parse(config).unwrap();
        let hardening = hardening();
        missing_options(
            &config,
            &Needs {
                compression,
                hardening: &hardening,
                compressed_modules: true,
            },
        )
    }

    #[test]
    fn a_complete_kernel_lacks_nothing() {
        assert_eq!(check(&complete(), Compression::Zstd), []);
        for ability in Ability::ALL {
            let config = KernelConfig::parse(&complete()).unwrap();
            assert_eq!(ability.missing(&config), [], "{ability:?}");
        }
    }

    #[test]
    fn each_missing_option_is_one_sentence() {
        for option in [
            "CONFIG_SEV_GUEST",
            "CONFIG_TSM_REPORTS",
            "CONFIG_DM_VERITY",
            "CONFIG_EROFS_FS",
            "CONFIG_EROFS_FS_ZIP_ZSTD",
            "CONFIG_OVERLAY_FS",
            "CONFIG_VIRTIO_BLK",
            "CONFIG_MODULE_SIG",
            "CONFIG_SECURITY_LOCKDOWN_LSM",
            "CONFIG_MODULE_DECOMPRESS",
        ] {
            let without: String = complete()
                .lines()
                .map(|line| match line.split_once('=') {
                    Some((name, _)) if name == option => format!("# {option} is not set\n"),
                    _ => format!("{line}\n"),
                })
                .collect();
            let missing = check(&without, Compression::Zstd);
            assert_eq!(missing.len(), 1, "{option}: {missing:?}");
            let sentence = missing[0].to_string();
            assert!(
                sentence.contains(&format!("{option} must be")),
                "{sentence}"
            );
        }
    }

    #[test]
    fn a_module_is_not_enough_where_nothing_loads_it() {
        let modular = complete().replace("CONFIG_EFI_STUB=y", "CONFIG_EFI_STUB=m");
        let missing = check(&modular, Compression::None);
        assert_eq!(missing.len(), 1);
        assert_eq!(
            missing[0].to_string(),
            "systemd-stub cannot start the kernel: CONFIG_EFI_STUB must be y"
        );
        let built_in = complete().replace("CONFIG_EROFS_FS=m", "CONFIG_EROFS_FS=y");
        assert_eq!(check(&built_in, Compression::None), []);
    }

    #[test]
    fn what_is_not_asked_for_may_be_missing() {
        let without = complete()
            .replace("CONFIG_EROFS_FS_ZIP_ZSTD=y\n", "")
            .replace("CONFIG_INTEL_TDX_GUEST=y\n", "")
            .replace("CONFIG_EFI_PARTITION=y\n", "");
        assert_eq!(check(&without, Compression::Lz4hc), []);
        let config = KernelConfig::parse(&without).unwrap();
        assert_eq!(Ability::Tdx.missing(&config).len(), 1);
        assert_eq!(Ability::DiskImage.missing(&config).len(), 1);
        assert_eq!(Ability::Zstd.missing(&config).len(), 1);
    }

    #[test]
    fn damaged_text_is_refused() {
        use ParseKernelConfigError as E;
        let rows = [
            ("", E::Empty),
            ("# CONFIG_X is not set\n", E::Empty),
            ("CONFIG_A=y\nnonsense\n", E::Line { line: 2 }),
            ("A=y\n", E::Line { line: 1 }),
            (
                "CONFIG_A=y\nCONFIG_A=m\n",
                E::Duplicate {
                    line: 2,
                    option: "CONFIG_A".to_owned(),
                },
            ),
        ];
        for (text, error) in rows {
            assert_eq!(KernelConfig::parse(text).unwrap_err(), error, "{text:?}");
        }
        let other = KernelConfig::parse("CONFIG_CC=\"gcc\"\nCONFIG_N=5\n").unwrap();
        assert_eq!(other.state("CONFIG_CC"), OptionState::Unset);
    }
}
