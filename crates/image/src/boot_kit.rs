//! Boot kits: OCI images that hold a kernel, its modules, systemd-stub and
//! firmware at the paths where distributions install them.

use assay_tee::ovmf::{ParseOvmfError, SectionKind, parse_ovmf};
use bytes::Bytes;

use crate::bzimage::{ParseKernelReleaseError, parse_kernel_release};
use crate::modules::{GUEST_MODULES, ModuleIndex, ModulesError};
use crate::tree::{ResolveError, Tree};

/// systemd-stub.
pub const STUB_PATH: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// OVMF that verifies what it boots.
pub const FIRMWARE_PATH: &str = "usr/share/ovmf/OVMF.amdsev.fd";
/// Directory with one directory per kernel.
pub const MODULES_PATH: &str = "usr/lib/modules";

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
}

/// An image that is no boot kit.
#[derive(Debug, thiserror::Error)]
pub enum BootKitError {
    /// A path leads nowhere.
    #[error("boot kit: cannot follow a path")]
    Resolve(#[source] ResolveError),
    /// A file is missing.
    #[error("boot kit: no file {path}")]
    MissingFile {
        /// Path in the image.
        path: String,
    },
    /// Not exactly one kernel.
    #[error("boot kit: expected one kernel below {MODULES_PATH}, found {found:?}")]
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
    /// A module is missing, or the lists are damaged.
    #[error("boot kit: cannot select modules")]
    Modules(#[source] ModulesError),
    /// The firmware cannot be read.
    #[error("boot kit: cannot read the firmware")]
    Firmware(#[source] ParseOvmfError),
    /// The firmware would boot anything.
    #[error(
        "boot kit: {FIRMWARE_PATH} has no kernel hashes table, so it would not verify what it \
         boots; use OVMF built for AMD SEV with kernel hashes"
    )]
    FirmwareLacksHashTable,
}

impl BootKit {
    /// Finds everything in a flattened image.
    pub fn from_tree(tree: &Tree) -> Result<Self, BootKitError> {
        let (release, kernel) = find_kernel(tree)?;
        let named = parse_kernel_release(&kernel).map_err(BootKitError::Kernel)?;
        if named != release {
            return Err(BootKitError::Release {
                kernel: named,
                modules: release,
            });
        }
        let directory = format!("{MODULES_PATH}/{release}");
        let text = |name: &str| {
            let path = format!("{directory}/{name}");
            String::from_utf8(file(tree, &path)?.to_vec())
                .map_err(|_| BootKitError::NotText { path })
        };
        let order = ModuleIndex::parse(&text("modules.dep")?, &text("modules.builtin")?)
            .and_then(|index| index.closure(&GUEST_MODULES))
            .map_err(BootKitError::Modules)?;
        let modules = order
            .into_iter()
            .map(|path| Ok((path.clone(), file(tree, &format!("{directory}/{path}"))?)))
            .collect::<Result<_, _>>()?;
        let firmware = file(tree, FIRMWARE_PATH)?;
        check_firmware(&firmware)?;
        Ok(Self {
            release,
            kernel,
            stub: file(tree, STUB_PATH)?,
            firmware,
            modules,
        })
    }
}

/// Firmware must verify what it boots. Without the table it ignores the hashes;
/// without the section they would not be measured.
pub fn check_firmware(firmware: &[u8]) -> Result<(), BootKitError> {
    let metadata = parse_ovmf(firmware).map_err(BootKitError::Firmware)?;
    if metadata.hashes_table.is_none() || metadata.section(SectionKind::KernelHashes).is_none() {
        return Err(BootKitError::FirmwareLacksHashTable);
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

/// The only kernel, beside its modules or in `/boot`.
fn find_kernel(tree: &Tree) -> Result<(String, Bytes), BootKitError> {
    let directory = tree
        .lookup(MODULES_PATH.as_bytes())
        .map_err(BootKitError::Resolve)?;
    let entries = directory.and_then(|id| tree.entries(id));
    let mut found = Vec::new();
    for name in entries.into_iter().flat_map(|entries| entries.keys()) {
        let Ok(release) = std::str::from_utf8(name) else {
            continue;
        };
        let beside = find(tree, &format!("{MODULES_PATH}/{release}/vmlinuz"))?;
        let kernel = match beside {
            Some(kernel) => Some(kernel),
            None => find(tree, &format!("boot/vmlinuz-{release}"))?,
        };
        found.extend(kernel.map(|kernel| (release.to_owned(), kernel)));
    }
    match found.pop() {
        Some(only) if found.is_empty() => Ok(only),
        last => Err(BootKitError::Kernels {
            found: found
                .into_iter()
                .chain(last)
                .map(|(release, _)| release)
                .collect(),
        }),
    }
}
