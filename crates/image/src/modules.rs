//! Which kernel modules a guest needs, in the order to load them.
//!
//! Modules stay compressed: the guest hands them to finit_module(2) as they
//! are, so that the signature that the kernel checks is the distribution's.

pub mod info;
mod soft;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use self::info::ModuleInfo;
use self::soft::{SoftIndex, plain};

pub use self::soft::{Soft, SoftLists};

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
    #[error("{} and {} are one module by their name; remove one of them", paths[0], paths[1])]
    Duplicate {
        /// Where they are.
        paths: [String; 2],
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

/// Where depmod(8) looks first, so that what is there takes the place of the
/// distribution's.
const UPDATES: &str = "updates/";

/// The modules of one kernel.
#[derive(Debug, Clone, Default)]
pub struct ModuleIndex {
    loadable: BTreeMap<String, Loadable>,
    built_in: BTreeSet<String>,
    soft: SoftIndex,
}

/// A module that can be loaded, as long as its dependencies can.
#[derive(Debug, Clone)]
struct Loadable {
    path: String,
    /// Names of what it needs, directly or not, to be loaded last to first.
    needs: Result<Vec<String>, ModulesError>,
}

/// Modules to load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Paths in an order in which each can be loaded.
    pub paths: Vec<String>,
    /// What modules ask for and can do without, and that is not there: one sentence
    /// each.
    pub notes: Vec<String>,
}

impl ModuleIndex {
    /// Parses `modules.dep`, `modules.builtin` and the lists of `soft`, as depmod(8)
    /// and the kernel's build write them.
    pub fn parse(dep: &str, builtin: &str, soft: SoftLists<'_>) -> Result<Self, ModulesError> {
        let mut loadable = BTreeMap::new();
        for (number, line) in (1..).zip(dep.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let (path, dependencies) = line
                .split_once(':')
                .ok_or(ModulesError::MalformedDep { line: number })?;
            let dependencies: Vec<_> = dependencies.split_whitespace().collect();
            for path in dependencies.iter().copied().chain([path]) {
                if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
                    return Err(ModulesError::UnsafePath {
                        path: path.to_owned(),
                    });
                }
            }
            let module = Loadable {
                path: path.to_owned(),
                needs: Ok(dependencies.into_iter().map(module_name).collect()),
            };
            loadable.insert(module_name(path), module);
        }
        Ok(Self {
            loadable,
            built_in: builtin.lines().map(module_name).collect(),
            soft: SoftIndex::parse(soft),
        })
    }

    /// The index of modules that say what they need. Modules are by path below
    /// their kernel's directory; `builtin_info` is `modules.builtin.modinfo`, where
    /// there is one.
    ///
    /// # Errors
    /// When two modules have one name. That a module needs what is neither here nor
    /// built in is an error where it is wanted.
    pub fn from_modules(
        modules: &[(String, ModuleInfo)],
        builtin: &str,
        builtin_info: &[u8],
    ) -> Result<Self, ModulesError> {
        let built_in: BTreeSet<_> = builtin.lines().map(module_name).collect();
        let mut soft = SoftIndex::default();
        soft.add_built_in(builtin_info);
        let mut by_name: BTreeMap<&str, (&String, &ModuleInfo)> = BTreeMap::new();
        for (path, info) in modules {
            if let Some((other, _)) = by_name.get(info.name.as_str()) {
                match (path.starts_with(UPDATES), other.starts_with(UPDATES)) {
                    (true, false) => {}
                    (false, true) => continue,
                    _ => {
                        let paths = [(*other).clone(), path.clone()];
                        return Err(ModulesError::Duplicate { paths });
                    }
                }
            }
            by_name.insert(&info.name, (path, info));
        }
        let mut loadable = BTreeMap::new();
        for (path, info) in by_name.values() {
            let module = Loadable {
                path: (*path).clone(),
                needs: needs(info, &by_name, &built_in),
            };
            loadable.insert(info.name.clone(), module);
            soft.add_module(info);
        }
        Ok(Self {
            loadable,
            built_in,
            soft,
        })
    }

    /// The index as `modules.softdep` has it, of what is there and not built in.
    pub fn encode_softdep(&self) -> String {
        let mut text = String::new();
        for name in self.loadable.keys() {
            let Some(soft) = self.soft.of(name) else {
                continue;
            };
            let there = |names: &[String]| -> Vec<String> {
                let found = names.iter().filter_map(|name| self.resolve(name));
                found.flatten().map(str::to_owned).collect()
            };
            let (before, after) = (there(&soft.before), there(&soft.after));
            if before.is_empty() && after.is_empty() {
                continue;
            }
            let _ = write!(text, "softdep {name}");
            for (keyword, names) in [("pre:", before), ("post:", after)] {
                if !names.is_empty() {
                    let _ = write!(text, " {keyword} {}", names.join(" "));
                }
            }
            text.push('\n');
        }
        text
    }

    /// The index as `modules.dep` has it.
    ///
    /// # Errors
    /// When a module needs what is nowhere.
    pub fn encode_dep(&self) -> Result<String, ModulesError> {
        let mut lines = Vec::new();
        for module in self.loadable.values() {
            let needs = module.needs.as_ref().map_err(Clone::clone)?;
            let paths = needs.iter().filter_map(|name| self.loadable.get(name));
            let line = paths.fold(format!("{}:", module.path), |mut line, needed| {
                let _ = write!(line, " {}", needed.path);
                line
            });
            lines.push(line + "\n");
        }
        lines.sort();
        Ok(lines.concat())
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

    /// `wanted` and everything that they depend on. What is built in needs no
    /// loading. Soft dependencies go where modprobe(8) has them: those of each
    /// module right before and after it.
    pub fn closure(&self, wanted: &[Wanted]) -> Result<Selection, ModulesError> {
        let mut walk = Walk::default();
        for Wanted { name, required } in wanted {
            if self.built_in.contains(*name) {
                continue;
            }
            match self.loadable.get_key_value(*name) {
                Some((name, _)) => self.load(name, &mut walk)?,
                None if *required => return Err(ModulesError::Missing { name }),
                None => {}
            }
        }
        Ok(walk.selection)
    }

    /// Loads a module after what it needs.
    fn load<'a>(&'a self, name: &'a str, walk: &mut Walk<'a>) -> Result<(), ModulesError> {
        let mut pending = vec![Step::Probe(name)];
        while let Some(step) = pending.pop() {
            match step {
                Step::Probe(name) => {
                    let Some(module) = self.loadable.get(name) else {
                        continue;
                    };
                    let needs = module.needs.as_ref().map_err(Clone::clone)?;
                    pending.push(Step::Surround(name));
                    pending.extend(needs.iter().map(|name| Step::Surround(name)));
                }
                Step::Surround(name) => {
                    if !walk.seen.insert(name) {
                        continue;
                    }
                    let soft = self.soft.of(name);
                    let after = soft.map_or(&[][..], |soft| &soft.after);
                    let before = soft.map_or(&[][..], |soft| &soft.before);
                    self.ask(name, after, &mut pending, walk);
                    pending.push(Step::Load(name));
                    self.ask(name, before, &mut pending, walk);
                }
                Step::Ask(name) => {
                    let module = self.loadable.get(name);
                    let needs = module.and_then(|module| module.needs.as_ref().ok());
                    // What cannot be loaded is as if it were not there, and what
                    // needs the one that asks cannot go before it.
                    if needs.is_some_and(|needs| !needs.iter().any(|it| walk.is_open(it))) {
                        pending.push(Step::Probe(name));
                    }
                }
                Step::Load(name) => {
                    walk.loaded.insert(name);
                    let module = self.loadable.get(name);
                    walk.selection
                        .paths
                        .extend(module.map(|it| it.path.clone()));
                }
            }
        }
        Ok(())
    }

    /// Puts what `module` asks for on the stack, the first on top.
    fn ask<'a>(
        &'a self,
        module: &str,
        names: &'a [String],
        pending: &mut Vec<Step<'a>>,
        walk: &mut Walk<'a>,
    ) {
        for name in names.iter().rev() {
            match self.resolve(name) {
                Some(found) => pending.extend(found.into_iter().map(Step::Ask)),
                None => walk.selection.notes.push(format!(
                    "module {module} asks for {name}, which is neither a module nor built in"
                )),
            }
        }
    }

    /// The loadable modules that a name stands for, none of them where it is built
    /// in; `None` where it stands for nothing.
    fn resolve<'a>(&'a self, name: &'a str) -> Option<Vec<&'a str>> {
        if self.built_in.contains(name) || self.soft.is_built_in(name) {
            return Some(Vec::new());
        }
        if self.loadable.contains_key(name) {
            return Some(vec![name]);
        }
        let found: Vec<_> = self.soft.stands_for(name).collect();
        if found.iter().any(|name| self.built_in.contains(*name)) {
            return Some(Vec::new());
        }
        let there = found
            .into_iter()
            .filter(|name| self.loadable.contains_key(*name));
        let there: Vec<_> = there.collect();
        (!there.is_empty()).then_some(there)
    }
}

/// The state of choosing modules.
#[derive(Default)]
struct Walk<'a> {
    /// Modules that are chosen, or about to be.
    seen: BTreeSet<&'a str>,
    loaded: BTreeSet<&'a str>,
    selection: Selection,
}

impl Walk<'_> {
    fn is_open(&self, name: &str) -> bool {
        self.seen.contains(name) && !self.loaded.contains(name)
    }
}

enum Step<'a> {
    /// A module that another asks for.
    Ask(&'a str),
    /// What a module needs, and the module.
    Probe(&'a str),
    /// A module between its soft dependencies.
    Surround(&'a str),
    /// The module alone.
    Load(&'a str),
}

/// Names of everything that a module needs, to be loaded last to first.
fn needs(
    module: &ModuleInfo,
    by_name: &BTreeMap<&str, (&String, &ModuleInfo)>,
    built_in: &BTreeSet<String>,
) -> Result<Vec<String>, ModulesError> {
    // Dependencies before what needs them; `ended` are those whose own are in the
    // list.
    let mut order: Vec<&str> = Vec::new();
    let mut pending = vec![(module, false)];
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
    let needed = order.iter().rev().skip(1);
    Ok(needed.map(|name| (*name).to_owned()).collect())
}

/// `kernel/drivers/md/dm-verity.ko.xz` is `dm_verity`.
fn module_name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    plain(file.split(".ko").next().unwrap_or_default())
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
        let builtin = "kernel/drivers/virtio/virtio_pci.ko\n";
        let index = ModuleIndex::parse(DEP, builtin, SoftLists::default()).unwrap();
        index.closure(wanted).map(|selection| selection.paths)
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
            soft: Soft::default(),
            aliases: Vec::new(),
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
        let index = ModuleIndex::from_modules(&modules, "kernel/core.ko\n", b"").unwrap();
        let dep = index.encode_dep().unwrap();
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
        assert_eq!(index.closure(&wanted).unwrap().paths, order);
        let read = ModuleIndex::parse(&dep, "kernel/core.ko\n", SoftLists::default()).unwrap();
        assert_eq!(read.closure(&wanted).unwrap().paths, order);
        assert_eq!(
            index.missing(&[required("erofs"), optional("x")]),
            ["erofs"]
        );
    }

    #[test]
    fn modules_that_cannot_be_loaded_are_named() {
        let index = |modules: &[_]| {
            let index = ModuleIndex::from_modules(modules, "", b"")?;
            // A module that nobody wants may be broken.
            assert_eq!(index.closure(&[optional("other")])?, Selection::default());
            index.encode_dep().unwrap_err();
            index.closure(&[required("a")])
        };
        let a = || info("a", &["b"]);
        for (modules, said) in [
            (
                vec![a()],
                "module a needs b, which is neither a module nor built in",
            ),
            (vec![a(), info("b", &["a"])], "module a needs itself"),
            (
                vec![info("a", &[]), info("a", &[])],
                "kernel/a.ko and kernel/a.ko are one module by their name; remove one of them",
            ),
        ] {
            assert_eq!(index(&modules).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn an_update_takes_the_place_of_the_distributions_module() {
        let update = ("updates/dkms/a.ko".to_owned(), info("a", &[]).1);
        for modules in [[info("a", &[]), update.clone()], [update, info("a", &[])]] {
            let index = ModuleIndex::from_modules(&modules, "", b"").unwrap();
            let selection = index.closure(&[required("a")]).unwrap();
            assert_eq!(selection.paths, ["updates/dkms/a.ko"]);
        }
    }

    fn soft(name: &str, depends: &[&str], softdep: &str, weakdep: &str) -> (String, ModuleInfo) {
        let (path, mut info) = info(name, depends);
        info.soft.add(softdep);
        info.soft.add_weak(weakdep);
        (path, info)
    }

    #[test]
    fn soft_dependencies_go_where_modprobe_has_them() {
        let mut generic = info("sha512_generic", &[]);
        generic.1.aliases = vec!["sha512".to_owned(), "crypto-sha512".to_owned()];
        let modules = [
            soft("a", &["b"], "pre: c-d sha512 u post: e", "w"),
            soft("b", &[], "pre: f", ""),
            // They ask for each other.
            soft("c_d", &["f"], "post: a", ""),
            info("e", &["g", "a"]),
            info("f", &[]),
            info("g", &[]),
            info("w", &[]),
            // It cannot go before what it needs.
            info("u", &["a"]),
            generic,
            // What cannot be loaded is not asked for.
            soft("h", &[], "pre: i crc32c crypto-x core", ""),
            info("i", &["nowhere"]),
        ];
        let builtin_info = b"crc32c_generic.alias=crc32c\0crc32c_generic.license=GPL\0";
        let index = ModuleIndex::from_modules(&modules, "kernel/core.ko\n", builtin_info).unwrap();
        let selection = index.closure(&[required("a"), required("h")]).unwrap();
        let order = ["f", "b", "c_d", "sha512_generic", "w", "a", "g", "e", "h"];
        assert_eq!(
            selection.paths,
            order.map(|name| format!("kernel/{name}.ko"))
        );
        let note = "module h asks for crypto_x, which is neither a module nor built in";
        assert_eq!(selection.notes, [note]);

        // A kit has the lists that its modules come to.
        let kept: Vec<_> = modules[..10].to_vec();
        let kept = ModuleIndex::from_modules(&kept, "kernel/core.ko\n", builtin_info).unwrap();
        let softdep = kept.encode_softdep();
        assert_eq!(
            softdep,
            "softdep a pre: c_d sha512_generic u w post: e\nsoftdep b pre: f\n\
             softdep c_d post: a\n"
        );
        let lists = SoftLists {
            softdep: &softdep,
            ..SoftLists::default()
        };
        let dep = kept.encode_dep().unwrap();
        let read = ModuleIndex::parse(&dep, "kernel/core.ko\n", lists).unwrap();
        let read = read.closure(&[required("a"), required("h")]).unwrap();
        assert_eq!((read.paths, read.notes), (selection.paths, Vec::new()));
    }

    #[test]
    fn depmods_lists_say_the_same() {
        let lists = SoftLists {
            softdep: "# Soft dependencies\nsoftdep a pre: crypto-x post: c\n",
            weakdep: "weakdep a d e\n",
            alias: "alias crypto-x b\nalias pci:v0000* c\n",
            builtin_info: b"y.alias=e\0",
        };
        let dep = "a.ko:\nb.ko.zst:\nc.ko.gz:\nd.ko:\n";
        let index = ModuleIndex::parse(dep, "", lists).unwrap();
        let selection = index.closure(&[required("a")]).unwrap();
        assert_eq!(selection.paths, ["b.ko.zst", "d.ko", "a.ko", "c.ko.gz"]);
        assert_eq!(selection.notes, Vec::<String>::new());
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = closure(&[required("overlay")]).unwrap_err();
        assert_eq!(error, ModulesError::Missing { name: "overlay" });
    }

    #[test]
    fn damaged_lists_are_refused() {
        let parse = |dep| ModuleIndex::parse(dep, "", SoftLists::default()).unwrap_err();
        assert_eq!(parse("a.ko:\nb.ko"), ModulesError::MalformedDep { line: 2 });
        for dep in ["../../etc/shadow:", "a.ko: /b.ko", "a//b.ko:", ": x.ko"] {
            assert!(
                matches!(parse(dep), ModulesError::UnsafePath { .. }),
                "{dep}"
            );
        }
    }
}
