//! Which kernel modules a guest needs, in the order to load them.
//!
//! Modules stay compressed: the guest hands them to finit_module(2) as they
//! are, so that the signature that the kernel checks is the distribution's.

use std::collections::{BTreeMap, BTreeSet};

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
