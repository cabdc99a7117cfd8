//! Boot kits: OCI images that hold a kernel, its modules, systemd-stub and
//! firmware at the paths where distributions install them.

mod document;
mod pack;
mod report;

use assay_tee::canonical::EncodeCanonicalError;
use assay_tee::ovmf::{ParseOvmfError, SectionKind, parse_ovmf};
use bytes::Bytes;

use crate::bzimage::{ParseKernelReleaseError, parse_kernel_release};
use crate::hardening::{Setting, ValidHardening};
use crate::kernel_config::{
    KernelConfig, Needs, ParseKernelConfigError, embedded_config, missing_options,
};
use crate::kernel_loader::{ReadKernelLoaderError, read_kernel_loader};
use crate::modules::info::{ModuleInfo, ParseModuleError, is_compressed, parse_module};
use crate::modules::{GUEST_MODULES, ModuleIndex, ModulesError, SoftLists};
use crate::recipe::Compression;
use crate::tree::{ResolveError, Tree};

pub use self::document::{KitDocument, KitFile, KitModule, ParseKitDocumentError};
pub use self::pack::{PackOptions, PackedKit, pack_kit};
pub use self::report::{AbilityReport, KitReport};

/// systemd-stub.
pub const STUB_PATH: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// OVMF that verifies what it boots.
pub const FIRMWARE_PATH: &str = "usr/share/ovmf/OVMF.amdsev.fd";
/// Directory with one directory per kernel.
pub const MODULES_PATH: &str = "usr/lib/modules";
/// What a kit that was packed here says of itself.
pub const DOCUMENT_PATH: &str = "usr/share/assay/kit.json";

/// What a guest boots with, apart from the workload.
#[derive(Debug, Clone)]
pub struct BootKit {
    /// The kernel's release.
    pub release: String,
    /// The kernel.
    pub kernel: Bytes,
    /// systemd-stub.
    pub stub: Bytes,
    /// The firmware.
    pub firmware: Bytes,
    /// Path below `/lib/modules/RELEASE/` and content of every module that a
    /// guest loads, in order.
    pub modules: Vec<(String, Bytes)>,
    /// What the kernel was built with.
    pub config: KernelConfig,
    /// What the kit says of itself, where it does.
    pub document: Option<KitDocument>,
    /// What `modules` say of themselves, in the same order.
    infos: Vec<ModuleInfo>,
    /// Modules that a guest cannot do without and that are nowhere.
    missing_modules: Vec<&'static str>,
    /// What modules ask for and can do without, and that is nowhere.
    notes: Vec<String>,
}

/// An image that is no boot kit.
#[derive(Debug, thiserror::Error)]
pub enum BootKitError {
    /// A path leads nowhere.
    #[error("boot kit: cannot follow a path")]
    Resolve(#[source] ResolveError),
    /// A file is missing.
    #[error(
        "boot kit: no file {path}; pack the kit with a package that has it (`assay kit build`)"
    )]
    MissingFile {
        /// Path in the image.
        path: String,
    },
    /// Not exactly one kernel.
    #[error(
        "boot kit: expected one kernel, {MODULES_PATH}/RELEASE/vmlinuz or boot/vmlinuz-RELEASE, \
         found {found:?}; of several, name one with `assay kit build --kernel`"
    )]
    Kernels {
        /// Releases that have a kernel.
        found: Vec<String>,
    },
    /// A module list is not text.
    #[error("boot kit: {path} is not UTF-8")]
    NotText {
        /// Path in the image.
        path: String,
    },
    /// The kernel cannot be read.
    #[error("boot kit: cannot read the kernel's release")]
    Kernel(#[source] ParseKernelReleaseError),
    /// Kernel and modules do not belong together.
    #[error("boot kit: the kernel says it is {kernel}, its modules are for {modules}")]
    Release {
        /// From the kernel.
        kernel: String,
        /// From the directory.
        modules: String,
    },
    /// The lists of modules are damaged.
    #[error("boot kit: cannot select modules")]
    Modules(#[source] ModulesError),
    /// Modules that every guest needs are neither there nor built in.
    #[error(
        "boot kit: the kernel has no {}, neither as modules nor built in; take another kernel",
        names.join(", ")
    )]
    MissingModules {
        /// Names with underscores.
        names: Vec<&'static str>,
    },
    /// A document has no JSON form.
    #[error("boot kit: cannot encode {DOCUMENT_PATH}")]
    Encode(#[source] EncodeCanonicalError),
    /// A module is not one.
    #[error("boot kit: cannot read module {path}")]
    Module {
        /// Path in the image.
        path: String,
        /// Why.
        #[source]
        source: ParseModuleError,
    },
    /// Nothing says what the kernel was built with.
    #[error(
        "boot kit: no configuration of the kernel {release}: {MODULES_PATH}/{release}/config or \
         boot/config-{release} must say what it was built with, or the kernel itself \
         (CONFIG_IKCONFIG); pack the kit again with `assay \
         kit build`"
    )]
    NoConfig {
        /// The kernel.
        release: String,
    },
    /// The configuration is not one.
    #[error("boot kit: cannot read the kernel's configuration")]
    Config(#[source] ParseKernelConfigError),
    /// The kit's document is not one.
    #[error("boot kit: cannot read {DOCUMENT_PATH}")]
    Document(#[source] ParseKitDocumentError),
    /// A guest would not run on this kernel.
    #[error("boot kit: kernel {release} cannot run this guest: {}", problems.join("; "))]
    Unfit {
        /// The kernel.
        release: String,
        /// One sentence each.
        problems: Vec<String>,
    },
    /// The firmware cannot be read.
    #[error("boot kit: cannot read the firmware")]
    Firmware(#[source] ParseOvmfError),
    /// The firmware would boot anything.
    #[error(
        "boot kit: {FIRMWARE_PATH} has no kernel hashes table, so it would not verify what it \
         boots; use OVMF built for AMD SEV with kernel hashes"
    )]
    FirmwareLacksHashTable,
    /// What the firmware does with a kernel cannot be told.
    #[error("boot kit: cannot read what the firmware does with a kernel")]
    KernelLoader(#[source] ReadKernelLoaderError),
    /// The firmware reserves the table and never looks at it.
    #[error(
        "boot kit: {FIRMWARE_PATH} is a build of OVMF that has a page for kernel hashes and never \
         compares a kernel with them, so it would boot anything; use the AmdSev build"
    )]
    FirmwareVerifiesNothing,
}

impl BootKit {
    /// Finds everything in a flattened image.
    pub fn from_tree(tree: &Tree) -> Result<Self, BootKitError> {
        let FoundKernel {
            release,
            content: kernel,
            ..
        } = find_kernel(tree, None)?;
        let directory = format!("{MODULES_PATH}/{release}");
        let list = |name| format!("{directory}/modules.{name}");
        let optional = |name| -> Result<String, BootKitError> {
            match find(tree, &list(name))? {
                Some(_) => text(tree, &list(name)),
                None => Ok(String::new()),
            }
        };
        let index = ModuleIndex::parse(
            &text(tree, &list("dep"))?,
            &text(tree, &list("builtin"))?,
            SoftLists {
                softdep: &optional("softdep")?,
                weakdep: &optional("weakdep")?,
                alias: &optional("alias")?,
                builtin_info: &find(tree, &list("builtin.modinfo"))?.unwrap_or_default(),
            },
        )
        .map_err(BootKitError::Modules)?;
        let missing_modules = index.missing(&GUEST_MODULES);
        let mut wanted = GUEST_MODULES.to_vec();
        wanted.retain(|wanted| !missing_modules.contains(&wanted.name));
        let (mut modules, mut infos) = (Vec::new(), Vec::new());
        let selection = index.closure(&wanted).map_err(BootKitError::Modules)?;
        for path in selection.paths {
            let in_image = format!("{directory}/{path}");
            let content = file(tree, &in_image)?;
            let info = parse_module(&path, &content).map_err(|source| BootKitError::Module {
                path: in_image,
                source,
            })?;
            modules.push((path, content));
            infos.push(info);
        }
        let firmware = file(tree, FIRMWARE_PATH)?;
        check_firmware(&firmware)?;
        let (_, config) = find_config(tree, &release, &kernel)?;
        Ok(Self {
            config: parse_config(&config)?,
            document: document(tree)?,
            release,
            kernel,
            stub: file(tree, STUB_PATH)?,
            firmware,
            modules,
            infos,
            missing_modules,
            notes: selection.notes,
        })
    }

    /// Refuses a kernel that a guest on SEV-SNP would not run on.
    pub fn check(
        &self,
        compression: Compression,
        hardening: &ValidHardening,
    ) -> Result<(), BootKitError> {
        let problems = self.problems(compression, hardening);
        if problems.is_empty() {
            return Ok(());
        }
        Err(BootKitError::Unfit {
            release: self.release.clone(),
            problems,
        })
    }

    fn problems(&self, compression: Compression, hardening: &ValidHardening) -> Vec<String> {
        let needs = Needs {
            compression,
            hardening,
            compressed_modules: self.modules.iter().any(|(path, _)| is_compressed(path)),
        };
        let options = missing_options(&self.config, &needs);
        let mut problems: Vec<_> = options.iter().map(ToString::to_string).collect();
        let missing = self.missing_modules.iter();
        problems.extend(missing.map(|name| {
            format!("module {name} is neither in the kit nor built in: pack the kit with it")
        }));
        for info in &self.infos {
            if info.release != self.release {
                problems.push(format!(
                    "module {} is for kernel {}: pack the kit from one kernel",
                    info.name, info.release
                ));
            }
            if !info.signed && hardening.is_on(Setting::ModuleSignatures) {
                problems.push(format!(
                    "module {} has no signature, and module.sig_enforce=1 refuses it: sign it, or \
                     give hardening.exceptions a reason for {}",
                    info.name,
                    Setting::ModuleSignatures
                ));
            }
        }
        problems
    }
}

/// Firmware must verify what it boots. Without the table it ignores the hashes;
/// without the section they would not be measured; and OVMF's generic build has both
/// and does not look at them.
///
/// # Errors
/// When it does not, or that cannot be told.
pub fn check_firmware(firmware: &[u8]) -> Result<(), BootKitError> {
    let metadata = parse_ovmf(firmware).map_err(BootKitError::Firmware)?;
    if metadata.hashes_table.is_none() || metadata.section(SectionKind::KernelHashes).is_none() {
        return Err(BootKitError::FirmwareLacksHashTable);
    }
    let loader = read_kernel_loader(firmware).map_err(BootKitError::KernelLoader)?;
    if !loader.verifies_hashes {
        return Err(BootKitError::FirmwareVerifiesNothing);
    }
    Ok(())
}

fn find(tree: &Tree, path: &str) -> Result<Option<Bytes>, BootKitError> {
    Ok(tree
        .file(path.as_bytes())
        .map_err(BootKitError::Resolve)?
        .cloned())
}

fn file(tree: &Tree, path: &str) -> Result<Bytes, BootKitError> {
    find(tree, path)?.ok_or_else(|| BootKitError::MissingFile {
        path: path.to_owned(),
    })
}

fn text(tree: &Tree, path: &str) -> Result<String, BootKitError> {
    String::from_utf8(file(tree, path)?.to_vec()).map_err(|_| BootKitError::NotText {
        path: path.to_owned(),
    })
}

fn document(tree: &Tree) -> Result<Option<KitDocument>, BootKitError> {
    let content = find(tree, DOCUMENT_PATH)?;
    content
        .map(|content| KitDocument::parse(&content).map_err(BootKitError::Document))
        .transpose()
}

fn parse_config(config: &Bytes) -> Result<KernelConfig, BootKitError> {
    KernelConfig::parse(&String::from_utf8_lossy(config)).map_err(BootKitError::Config)
}

/// Where a configuration is that the kernel itself carries.
const EMBEDDED: &str = "the kernel (CONFIG_IKCONFIG)";

/// Where a kernel's configuration is, and the configuration.
fn find_config(tree: &Tree, release: &str, kernel: &[u8]) -> Result<(String, Bytes), BootKitError> {
    for path in [
        format!("{MODULES_PATH}/{release}/config"),
        format!("boot/config-{release}"),
    ] {
        if let Some(config) = find(tree, &path)? {
            return Ok((path, config));
        }
    }
    match embedded_config(kernel) {
        Some(config) => Ok((EMBEDDED.to_owned(), config.into())),
        None => Err(BootKitError::NoConfig {
            release: release.to_owned(),
        }),
    }
}

/// A kernel, and where it is.
struct FoundKernel {
    release: String,
    path: String,
    content: Bytes,
}

/// Every kernel, beside its modules or in `/boot`.
fn find_kernels(tree: &Tree) -> Result<Vec<FoundKernel>, BootKitError> {
    let directory = tree
        .lookup(MODULES_PATH.as_bytes())
        .map_err(BootKitError::Resolve)?;
    let entries = directory.and_then(|id| tree.entries(id));
    let mut found = Vec::new();
    for name in entries.into_iter().flat_map(|entries| entries.keys()) {
        let Ok(release) = std::str::from_utf8(name) else {
            continue;
        };
        for path in [
            format!("{MODULES_PATH}/{release}/vmlinuz"),
            format!("boot/vmlinuz-{release}"),
        ] {
            if let Some(content) = find(tree, &path)? {
                found.push(FoundKernel {
                    release: release.to_owned(),
                    path,
                    content,
                });
                break;
            }
        }
    }
    Ok(found)
}

/// The only kernel, or the one that is asked for.
fn find_kernel(tree: &Tree, release: Option<&str>) -> Result<FoundKernel, BootKitError> {
    let mut kernels = find_kernels(tree)?;
    let found = kernels
        .iter()
        .map(|kernel| kernel.release.clone())
        .collect();
    if let Some(release) = release {
        kernels.retain(|kernel| kernel.release == release);
    }
    match (kernels.pop(), kernels.is_empty()) {
        (Some(only), true) => {
            let named = parse_kernel_release(&only.content).map_err(BootKitError::Kernel)?;
            if named == only.release {
                Ok(only)
            } else {
                Err(BootKitError::Release {
                    kernel: named,
                    modules: only.release,
                })
            }
        }
        _ => Err(BootKitError::Kernels { found }),
    }
}
