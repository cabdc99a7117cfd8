//! Packing a kit from what distributions install: packages, or any image with a
//! kernel in it.

use std::collections::BTreeMap;

use assay_tee::Sha256Digest;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use bytes::Bytes;

use super::{
    BootKitError, DOCUMENT_PATH, FIRMWARE_PATH, FoundKernel, KitDocument, KitFile, KitModule,
    MODULES_PATH, STUB_PATH, check_firmware, find, find_config, find_kernel, parse_config, text,
};
use crate::modules::info::{ModuleInfo, parse_module};
use crate::modules::{GUEST_MODULES, KIT_MODULES, ModuleIndex};
use crate::oci::{ImageOptions, Layer, OciImage};
use crate::packages::{distribution, package_origins};
use crate::rope::Rope;
use crate::tarball::{Owner, TarBuilder};
use crate::tree::{Content, InodeId, Tree};

/// Where distributions install systemd-stub.
const STUB_PATHS: [&str; 1] = [STUB_PATH];
/// Where distributions install OVMF that verifies what it boots.
const FIRMWARE_PATHS: [&str; 3] = [
    FIRMWARE_PATH,
    "usr/share/OVMF/OVMF.amdsev.fd",
    "usr/share/edk2/ovmf/OVMF.amdsev.fd",
];

/// Choices where files leave more than one.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    /// Release of the kernel to take; the only one where none is named.
    pub release: Option<String>,
    /// Path of systemd-stub.
    pub stub: Option<String>,
    /// Path of the firmware.
    pub firmware: Option<String>,
    /// Keep every module, and not only those that guests load.
    pub all_modules: bool,
}

/// A kit, packed.
#[derive(Debug, Clone)]
pub struct PackedKit {
    /// What it was packed from.
    pub document: KitDocument,
    /// What modules ask for and can do without, and that the kernel lacks, one
    /// sentence each.
    pub notes: Vec<String>,
    /// Its files, as a tar archive.
    pub tar: Rope,
}

impl PackedKit {
    /// The OCI image with one uncompressed layer.
    ///
    /// # Errors
    /// Never for these types; the JSON encoder's error is passed on.
    pub fn to_image(&self) -> Result<OciImage, EncodeCanonicalError> {
        OciImage::assemble(ImageOptions::default(), &[Layer::tar(self.tar.clone())])
    }
}

/// Packs a kit. The bytes follow from the files that are taken, and from the
/// packages that they came from.
pub fn pack_kit(tree: &Tree, options: &PackOptions) -> Result<PackedKit, BootKitError> {
    let FoundKernel {
        release,
        path: kernel_from,
        content: kernel,
    } = find_kernel(tree, options.release.as_deref())?;
    let directory = format!("{MODULES_PATH}/{release}");
    let (config_from, config) = find_config(tree, &release, &kernel)?;
    parse_config(&config)?;
    let builtin = text(tree, &format!("{directory}/modules.builtin"))?;
    let (stub_from, stub) = one_of(tree, options.stub.as_ref(), &STUB_PATHS)?;
    let (firmware_from, firmware) = one_of(tree, options.firmware.as_ref(), &FIRMWARE_PATHS)?;
    check_firmware(&firmware)?;
    let builtin_info = find(tree, &format!("{directory}/modules.builtin.modinfo"))?;
    let builtin_info = builtin_info.unwrap_or_default();
    let modules = choose_modules(
        tree,
        &directory,
        &builtin,
        &builtin_info,
        options.all_modules,
    )?;

    let mut files: BTreeMap<String, Bytes> = BTreeMap::new();
    let mut taken = Vec::new();
    let mut take = |path: &str, from: &str, content: &Bytes| {
        files.insert(path.to_owned(), content.clone());
        taken.push(from.to_owned());
        KitFile::new(path, from, content)
    };
    let mut document = KitDocument {
        version: KitDocument::VERSION,
        kernel: take(&format!("{directory}/vmlinuz"), &kernel_from, &kernel),
        config: take(&format!("{directory}/config"), &config_from, &config),
        stub: take(STUB_PATH, &stub_from, &stub),
        firmware: take(FIRMWARE_PATH, &firmware_from, &firmware),
        release,
        modules: Vec::new(),
        packages: Vec::new(),
        distribution: distribution(tree),
    };
    for (path, content, info) in &modules.files {
        let in_kit = format!("{directory}/{path}");
        take(&in_kit, &in_kit, content);
        document.modules.push(KitModule {
            path: path.clone(),
            sha256: Sha256Digest::of(content),
            signed: info.signed,
        });
    }
    document.packages = package_origins(tree, &taken);
    files.insert(format!("{directory}/modules.builtin"), builtin.into());
    files.insert(format!("{directory}/modules.dep"), modules.dep.into());
    if !modules.softdep.is_empty() {
        let path = format!("{directory}/modules.softdep");
        files.insert(path, modules.softdep.into());
    }
    let encoded = encode_canonical(&document).map_err(BootKitError::Encode)?;
    files.insert(DOCUMENT_PATH.to_owned(), encoded.into());
    Ok(PackedKit {
        document,
        notes: modules.notes,
        tar: write(&files),
    })
}

/// The modules of a kit, by path, and the lists of what they need and ask for.
struct Modules {
    files: Vec<(String, Bytes, ModuleInfo)>,
    dep: String,
    softdep: String,
    notes: Vec<String>,
}

fn choose_modules(
    tree: &Tree,
    directory: &str,
    builtin: &str,
    builtin_info: &[u8],
    all: bool,
) -> Result<Modules, BootKitError> {
    let mut files = Vec::new();
    for (path, content) in module_files(tree, directory)? {
        let info = parse_module(&path, &content).map_err(|source| BootKitError::Module {
            path: format!("{directory}/{path}"),
            source,
        })?;
        files.push((path, content, info));
    }
    let index = |files: &[(String, Bytes, ModuleInfo)]| {
        let infos: Vec<_> = files
            .iter()
            .map(|(path, _, info)| (path.clone(), info.clone()))
            .collect();
        ModuleIndex::from_modules(&infos, builtin, builtin_info).map_err(BootKitError::Modules)
    };
    let whole = index(&files)?;
    let mut notes = Vec::new();
    if !all {
        let mut wanted = GUEST_MODULES.to_vec();
        let missing = whole.missing(&wanted);
        if !missing.is_empty() {
            return Err(BootKitError::MissingModules { names: missing });
        }
        wanted.extend(KIT_MODULES);
        let keep = whole.closure(&wanted).map_err(BootKitError::Modules)?;
        files.retain(|(path, ..)| keep.paths.contains(path));
        notes = keep.notes;
    }
    let kept = index(&files)?;
    Ok(Modules {
        dep: kept.encode_dep().map_err(BootKitError::Modules)?,
        softdep: kept.encode_softdep(),
        files,
        notes,
    })
}

/// Path below `directory` and content of every module.
fn module_files(tree: &Tree, directory: &str) -> Result<Vec<(String, Bytes)>, BootKitError> {
    let root = tree
        .lookup(directory.as_bytes())
        .map_err(BootKitError::Resolve)?;
    let mut found = Vec::new();
    let mut pending: Vec<(String, InodeId)> =
        root.map(|id| (String::new(), id)).into_iter().collect();
    while let Some((path, id)) = pending.pop() {
        match &tree.inode(id).content {
            Content::Directory(entries) => {
                for (name, child) in entries {
                    // What has no name in text is no module.
                    if let Ok(name) = std::str::from_utf8(name) {
                        let separator = if path.is_empty() { "" } else { "/" };
                        pending.push((format!("{path}{separator}{name}"), *child));
                    }
                }
            }
            Content::File(content) if is_module(&path) => found.push((path, content.clone())),
            Content::File(_) | Content::Symlink(_) => {}
        }
    }
    found.sort();
    Ok(found)
}

fn is_module(path: &str) -> bool {
    [".ko", ".ko.xz", ".ko.gz", ".ko.zst"]
        .iter()
        .any(|ending| path.ends_with(ending))
}

fn one_of(
    tree: &Tree,
    chosen: Option<&String>,
    known: &[&str],
) -> Result<(String, Bytes), BootKitError> {
    let candidates = match chosen {
        Some(chosen) => vec![chosen.trim_start_matches('/')],
        None => known.to_vec(),
    };
    for path in &candidates {
        if let Some(content) = find(tree, path)? {
            return Ok(((*path).to_owned(), content));
        }
    }
    Err(BootKitError::MissingFile {
        path: candidates.join(" or "),
    })
}

fn write(files: &BTreeMap<String, Bytes>) -> Rope {
    let mut entries: BTreeMap<&str, Option<&Bytes>> = BTreeMap::new();
    for (path, content) in files {
        for (slash, _) in path.match_indices('/') {
            if let Some(parent) = path.get(..slash) {
                entries.entry(parent).or_insert(None);
            }
        }
        entries.insert(path, Some(content));
    }
    let mut tar = TarBuilder::new();
    for (path, content) in entries {
        match content {
            Some(content) => tar.file(path, 0o644, Owner::ROOT, content.clone()),
            None => tar.directory(path, 0o755, Owner::ROOT),
        };
    }
    tar.finish()
}

#[cfg(test)]
mod tests;
