//! Which kernel modules a guest needs, in the order to load them.
//!
//! Modules stay compressed: the guest hands them to finit_module(2) as they
//! are, so that the signature that the kernel checks is the distribution's.

pub mod info;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use self::info::ModuleInfo;

/// A module by its name, and what to do where the kernel lacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Name with underscores.
    pub name: &'static str,
    /// Whether a kernel without it is refused.
    pub required: bool,
}

const fn required(name: &'static str) -> Wanted {
    Wanted {
        name,
        required: true,
    }
}

const fn optional(name: &'static str) -> Wanted {
    Wanted {
        name,
        required: false,
    }
}

/// What a guest needs, first things first. The accelerated SHA-256 goes before
/// dm-verity, which picks an implementation when it starts; kernels since 6.16
/// have it built in. The last two bring the power button to the agent, by which
/// a launcher asks the guest to stop.
pub const GUEST_MODULES: [Wanted; 12] = [
    required("virtio_pci"),
    required("virtio_console"),
    required("qemu_fw_cfg"),
    required("virtio_blk"),
    optional("sha256_ssse3"),
    required("dm_verity"),
    required("erofs"),
    required("overlay"),
    required("virtio_net"),
    required("sev_guest"),
    optional("button"),
    optional("evdev"),
];

/// Further modules that a boot kit keeps where its kernel has them, for guests
/// of other platforms and with other devices.
pub const KIT_MODULES: [Wanted; 14] = [
    optional("tsm"),
    optional("tsm_report"),
    optional("tdx_guest"),
    optional("tpm_svsm"),
    optional("dm_crypt"),
    optional("dm_integrity"),
    optional("authenc"),
    optional("aesni_intel"),
    optional("sha512_ssse3"),
    optional("vmw_vsock_virtio_transport"),
    optional("virtio_rng"),
    optional("virtio_iommu"),
    optional("virtio_scsi"),
    optional("xts"),
];

/// The kernel cannot run a guest, or its module lists are damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModulesError {
    /// Neither a module nor built in.
    #[error("the kernel has no {name}, neither as a module nor built in")]
    Missing {
        /// Name with underscores.
        name: &'static str,
    },
    /// A line of `modules.dep` is malformed.
    #[error("modules.dep, line {line}: expected 'path: paths'")]
    MalformedDep {
        /// From 1.
        line: usize,
    },
    /// Two modules have one name.
    #[error("there are two modules {name}")]
    Duplicate {
        /// Name with underscores.
        name: String,
    },
    /// A module needs one that is neither there nor built in.
    #[error("module {module} needs {needs}, which is neither a module nor built in")]
    Dependency {
        /// Name with underscores.
        module: String,
        /// Name with underscores.
        needs: String,
    },
    /// Modules need each other.
    #[error("module {name} needs itself")]
    Circle {
        /// Name with underscores.
        name: String,
    },
    /// A path leads out of the modules' directory.
    #[error("modules.dep names {path:?}, which is no plain relative path")]
    UnsafePath {
        /// The path.
        path: String,
    },
}

/// The modules of one kernel.
#[derive(Debug, Clone, Default)]
pub struct ModuleIndex {
    /// Path and dependencies (to be loaded last to first) by name.
    loadable: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

impl ModuleIndex {
    /// Parses `modules.dep` and `modules.builtin` as depmod(8) and the kernel's
    /// build write them.
    pub fn parse(dep: &str, builtin: &str) -> Result<Self, ModulesError> {
        let mut loadable = BTreeMap::new();
        for (number, line) in (1..).zip(dep.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let (path, dependencies) = line
                .split_once(':')
                .ok_or(ModulesError::MalformedDep { line: number })?;
            let dependencies: Vec<String> =
                dependencies.split_whitespace().map(str::to_owned).collect();
            for path in dependencies.iter().map(String::as_str).chain([path]) {
                if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
                    return Err(ModulesError::UnsafePath {
                        path: path.to_owned(),
                    });
                }
            }
            loadable.insert(module_name(path), (path.to_owned(), dependencies));
        }
        let built_in = builtin.lines().map(module_name).collect();
        Ok(Self { loadable, built_in })
    }

    /// The index of modules that say what they need. Modules are by path below
    /// their kernel's directory.
    ///
    /// # Errors
    /// When two modules have one name, or one needs what is neither here nor
    /// built in.
    pub fn from_modules(
        modules: &[(String, ModuleInfo)],
        builtin: &str,
    ) -> Result<Self, ModulesError> {
        let built_in: BTreeSet<_> = builtin.lines().map(module_name).collect();
        let mut by_name = BTreeMap::new();
        for (path, info) in modules {
            if by_name.insert(info.name.as_str(), (path, info)).is_some() {
                return Err(ModulesError::Duplicate {
                    name: info.name.clone(),
                });
            }
        }
        let mut loadable = BTreeMap::new();
        for (path, info) in modules {
            // Dependencies before what needs them; `ended` are those whose own
            // are in the list.
            let mut order: Vec<&str> = Vec::new();
            let mut pending = vec![(info, false)];
            while let Some((module, ended)) = pending.pop() {
                if order.contains(&module.name.as_str()) {
                    continue;
                }
                if ended {
                    order.push(&module.name);
                    continue;
                }
                pending.push((module, true));
                for name in &module.depends {
                    if built_in.contains(name) {
                        continue;
                    }
                    let (_, needed) =
                        by_name
                            .get(name.as_str())
                            .ok_or_else(|| ModulesError::Dependency {
                                module: module.name.clone(),
                                needs: name.clone(),
                            })?;
                    if pending
                        .iter()
                        .any(|(open, ended)| *ended && open.name == *name)
                    {
                        return Err(ModulesError::Circle { name: name.clone() });
                    }
                    pending.push((needed, false));
                }
            }
            let dependencies = order
                .iter()
                .rev()
                .skip(1)
                .filter_map(|name| by_name.get(name).map(|(path, _)| (*path).clone()))
                .collect();
            loadable.insert(info.name.clone(), (path.clone(), dependencies));
        }
        Ok(Self { loadable, built_in })
    }

    /// The index as `modules.dep` has it.
    pub fn encode_dep(&self) -> String {
        let mut lines: Vec<_> = self.loadable.values().collect();
        lines.sort();
        lines
            .into_iter()
            .fold(String::new(), |mut text, (path, dependencies)| {
                let _ = write!(text, "{path}:");
                for dependency in dependencies {
                    let _ = write!(text, " {dependency}");
                }
                text.push('\n');
                text
            })
    }

    /// Those of `wanted` that are required and nowhere.
    pub fn missing(&self, wanted: &[Wanted]) -> Vec<&'static str> {
        let is_there =
            |name: &str| self.built_in.contains(name) || self.loadable.contains_key(name);
        wanted
            .iter()
            .filter(|wanted| wanted.required && !is_there(wanted.name))
            .map(|wanted| wanted.name)
            .collect()
    }

    /// Paths of `wanted` and everything they depend on, in an order in which
    /// each can be loaded. What is built in needs no loading.
    pub fn closure(&self, wanted: &[Wanted]) -> Result<Vec<String>, ModulesError> {
        let mut order = Vec::new();
        for Wanted { name, required } in wanted {
            if self.built_in.contains(*name) {
                continue;
            }
            let Some((path, dependencies)) = self.loadable.get(*name) else {
                if *required {
                    return Err(ModulesError::Missing { name });
                }
                continue;
            };
            for path in dependencies.iter().rev().chain([path]) {
                if !order.contains(path) {
                    order.push(path.clone());
                }
            }
        }
        Ok(order)
    }
}

/// `kernel/drivers/md/dm-verity.ko.xz` is `dm_verity`.
fn module_name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    file.split(".ko")
        .next()
        .unwrap_or_default()
        .replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/md/dm-verity.ko.xz: kernel/drivers/md/dm-bufio.ko.xz kernel/drivers/md/dm-mod.ko.xz
kernel/drivers/md/dm-bufio.ko.xz: kernel/drivers/md/dm-mod.ko.xz
kernel/drivers/md/dm-mod.ko.xz:
kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/lib/libcrc32c.ko.xz:
";

    fn closure(wanted: &[Wanted]) -> Result<Vec<String>, ModulesError> {
        ModuleIndex::parse(DEP, "kernel/drivers/virtio/virtio_pci.ko\n")
            .unwrap()
            .closure(wanted)
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let order = closure(&[
            required("virtio_pci"),
            required("dm_mod"),
            required("erofs"),
            required("dm_verity"),
            optional("nowhere"),
        ]);
        assert_eq!(
            order.unwrap(),
            [
                "kernel/drivers/md/dm-mod.ko.xz",
                "kernel/lib/libcrc32c.ko.xz",
                "kernel/fs/erofs/erofs.ko.xz",
                "kernel/drivers/md/dm-bufio.ko.xz",
                "kernel/drivers/md/dm-verity.ko.xz",
            ]
        );
    }

    fn info(name: &str, depends: &[&str]) -> (String, ModuleInfo) {
        let info = ModuleInfo {
            name: name.to_owned(),
            depends: depends.iter().map(|name| (*name).to_owned()).collect(),
            release: "6.12.1".to_owned(),
            signed: true,
        };
        (format!("kernel/{name}.ko"), info)
    }

    #[test]
    fn modules_say_what_depmod_would() {
        let modules = [
            info("dm_verity", &["dm_bufio", "dm_mod", "core"]),
            info("dm_bufio", &["dm_mod"]),
            info("dm_mod", &[]),
        ];
        let index = ModuleIndex::from_modules(&modules, "kernel/core.ko\n").unwrap();
        let dep = index.encode_dep();
        assert_eq!(
            dep,
            "kernel/dm_bufio.ko: kernel/dm_mod.ko\n\
             kernel/dm_mod.ko:\n\
             kernel/dm_verity.ko: kernel/dm_bufio.ko kernel/dm_mod.ko\n"
        );
        let wanted = [required("dm_verity"), required("core")];
        let order = [
            "kernel/dm_mod.ko",
            "kernel/dm_bufio.ko",
            "kernel/dm_verity.ko",
        ];
        assert_eq!(index.closure(&wanted).unwrap(), order);
        let read = ModuleIndex::parse(&dep, "kernel/core.ko\n").unwrap();
        assert_eq!(read.closure(&wanted).unwrap(), order);
        assert_eq!(
            index.missing(&[required("erofs"), optional("x")]),
            ["erofs"]
        );
    }

    #[test]
    fn modules_that_cannot_be_loaded_are_named() {
        let index = |modules: &[_]| ModuleIndex::from_modules(modules, "").unwrap_err();
        let a = || info("a", &["b"]);
        assert_eq!(
            index(&[a()]).to_string(),
            "module a needs b, which is neither a module nor built in"
        );
        assert_eq!(
            index(&[a(), info("b", &["a"])]).to_string(),
            "module a needs itself"
        );
        assert_eq!(
            index(&[info("a", &[]), info("a", &[])]).to_string(),
            "there are two modules a"
        );
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = closure(&[required("overlay")]).unwrap_err();
        assert_eq!(error, ModulesError::Missing { name: "overlay" });
    }

    #[test]
    fn damaged_lists_are_refused() {
        let parse = |dep| ModuleIndex::parse(dep, "").unwrap_err();
        assert_eq!(parse("a.ko:\nb.ko"), ModulesError::MalformedDep { line: 2 });
        for dep in ["../../etc/shadow:", "a.ko: /b.ko", "a//b.ko:", ": x.ko"] {
            assert!(
                matches!(parse(dep), ModulesError::UnsafePath { .. }),
                "{dep}"
            );
        }
    }
}
