//! What the cluster changes on the machine outside its own directory: the
//! bridge, control groups, kernel parameters, nft tables, mounts. And the way
//! back, with a comparison that says what was left.

use crate::command;
use crate::layout::{BRIDGE, CGROUP, HOST_ADDRESS, Layout, POD_CIDR};
use crate::process;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// Kernel parameters that the cluster's programs set (the kubelet the first
/// five), and that the bridge needs (the last two).
const KERNEL_PARAMETERS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
];

/// nft tables that kube-proxy and the portmap plugin create.
const NFT_TABLES: [(&str, &str); 3] = [
    ("ip", "kube-proxy"),
    ("ip6", "kube-proxy"),
    ("inet", "cni_hostport"),
];

/// Paths outside the state directory that the programs insist on. Removed when
/// they were not there before.
const FIXED_PATHS: &[&str] = &[
    "/run/containerd",
    "/run/nri",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];

/// The state of the machine, as far as a cluster changes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Kernel parameters with their values.
    pub kernel_parameters: BTreeMap<String, String>,
    /// The bridge, and the network interfaces that are attached to it.
    pub interfaces: BTreeSet<String>,
    /// Those of [`NFT_TABLES`] that exist, as `family name`.
    pub nft_tables: BTreeSet<String>,
    /// Mount points below the cluster's directory.
    pub mounts: BTreeSet<String>,
    /// Control groups directly below a hierarchy's root.
    pub cgroups: BTreeSet<String>,
    /// Those of [`FIXED_PATHS`] that exist.
    pub paths: BTreeSet<String>,
    /// Processes of pods, as `pid name`.
    pub processes: BTreeSet<String>,
}

impl Footprint {
    /// Looks at the machine.
    pub fn observe(layout: &Layout) -> Result<Self> {
        let kernel_parameters = KERNEL_PARAMETERS
            .iter()
            .filter_map(|name| {
                let value = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
                Some(((*name).to_owned(), value.trim().to_owned()))
            })
            .collect();
        let mut interfaces = attached();
        if bridge().exists() {
            interfaces.insert(BRIDGE.to_owned());
        }
        let tables = command::output(&mut command::with_args("nft", ["list", "tables"]))
            .context("list nft tables")?;
        let nft_tables = our_tables(&String::from_utf8_lossy(&tables));
        let mounts = mount_points()?
            .into_iter()
            .filter(|mount| mount.starts_with(layout.root()))
            .map(|mount| mount.display().to_string())
            .collect();
        let hierarchies = parse_cgroups(&mountinfo()?);
        let cgroups = hierarchies
            .first
            .iter()
            .chain(&hierarchies.second)
            .filter(|root| root.join(CGROUP).is_dir())
            .map(|root| root.join(CGROUP).display().to_string())
            .collect();
        let paths = FIXED_PATHS
            .iter()
            .filter(|path| Path::new(path).exists())
            .map(|&path| path.to_owned())
            .collect();
        let processes = process::strays(layout.root(), CGROUP)
            .into_iter()
            .map(|stray| format!("{} {}", stray.pid, stray.name))
            .collect();
        Ok(Self {
            kernel_parameters,
            interfaces,
            nft_tables,
            mounts,
            cgroups,
            paths,
            processes,
        })
    }

    /// What is there now and was not `before`, one sentence each.
    pub fn left_since(&self, before: &Self) -> Vec<String> {
        let sets = [
            ("network interface", &self.interfaces, &before.interfaces),
            ("nft table", &self.nft_tables, &before.nft_tables),
            ("mount", &self.mounts, &before.mounts),
            ("control group", &self.cgroups, &before.cgroups),
            ("path", &self.paths, &before.paths),
            ("process", &self.processes, &before.processes),
        ];
        let mut left: Vec<String> = sets
            .into_iter()
            .flat_map(|(kind, now, then)| {
                now.difference(then)
                    .map(move |name| format!("{kind} {name}"))
            })
            .collect();
        for (name, value) in &self.kernel_parameters {
            if let Some(then) = before.kernel_parameters.get(name)
                && then != value
            {
                left.push(format!("kernel parameter {name} is {value} and was {then}"));
            }
        }
        left
    }
}

/// Makes the bridge, lets the kernel forward, and makes the control groups.
pub(crate) fn prepare() -> Result<()> {
    if !bridge().exists() {
        // An explicit hardware address, or the kernel changes it with each pod.
        let address = "0a:58:0a:f4:00:01";
        ip(&[
            "link", "add", "name", BRIDGE, "address", address, "type", "bridge",
        ])?;
    }
    let prefix = POD_CIDR.split_once('/').map_or("24", |(_, prefix)| prefix);
    ip(&[
        "address",
        "replace",
        &format!("{HOST_ADDRESS}/{prefix}"),
        "dev",
        BRIDGE,
    ])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    set_kernel_parameter("net/ipv4/ip_forward", "1")?;
    // Answers between pods of one bridge must pass the translation back. Absent
    // where br_netfilter is not there; then kube-proxy's own rules must do.
    let bridged = "net/bridge/bridge-nf-call-iptables";
    if Path::new("/proc/sys").join(bridged).exists() {
        set_kernel_parameter(bridged, "1")?;
    }
    let hierarchies = parse_cgroups(&mountinfo()?);
    let used = if hierarchies.first.is_empty() {
        hierarchies.second
    } else {
        hierarchies.first
    };
    for root in used {
        let group = root.join(CGROUP);
        fs::create_dir_all(&group)
            .with_context(|| format!("create the control group {}", group.display()))?;
        // Version 1: a group without processors and memory nodes holds nobody.
        for file in ["cpuset.mems", "cpuset.cpus"] {
            if let Ok(value) = fs::read_to_string(root.join(file)) {
                fs::write(group.join(file), value.trim())
                    .with_context(|| format!("set {file} of {}", group.display()))?;
            }
        }
    }
    Ok(())
}

/// Undoes what [`prepare`] and the cluster's programs did. Every step is tried;
/// what fails shows in the comparison afterwards.
pub(crate) fn restore(layout: &Layout, before: &Footprint) -> Result<()> {
    unmount_below(layout.root())?;
    for interface in attached() {
        attempt(ip(&["link", "delete", &interface]));
    }
    if !before.interfaces.contains(BRIDGE) && bridge().exists() {
        attempt(ip(&["link", "delete", BRIDGE]));
    }
    let now = Footprint::observe(layout)?;
    for (family, name) in NFT_TABLES {
        let table = format!("{family} {name}");
        if now.nft_tables.contains(&table) && !before.nft_tables.contains(&table) {
            let mut nft = command::with_args("nft", ["delete", "table", family, name]);
            attempt(command::output(&mut nft).map(drop));
        }
    }
    for group in &now.cgroups {
        attempt(remove_cgroup(Path::new(group)));
    }
    for path in now.paths.difference(&before.paths) {
        attempt(crate::cache::remove_tree(Path::new(path)));
    }
    for (name, value) in &before.kernel_parameters {
        if now.kernel_parameters.get(name) != Some(value) {
            attempt(set_kernel_parameter(name, value));
        }
    }
    Ok(())
}

/// Unmounts everything below `root`, the innermost first.
fn unmount_below(root: &Path) -> Result<()> {
    let mut mounts: Vec<PathBuf> = mount_points()?
        .into_iter()
        .filter(|mount| mount.starts_with(root))
        .collect();
    mounts.reverse();
    for mount in mounts {
        let mut umount = command::with_args("umount", ["--lazy"]);
        attempt(command::output(umount.arg(&mount)).map(drop));
    }
    Ok(())
}

fn attempt(result: Result<()>) {
    if let Err(error) = result {
        crate::progress::say(format!("warning: {error:#}"));
    }
}

fn ip(args: &[&str]) -> Result<()> {
    command::output(&mut command::with_args("ip", args)).map(drop)
}

/// Writes only what differs: where /proc/sys is read-only, the right value may
/// be there already.
fn set_kernel_parameter(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).with_context(|| format!("set kernel parameter {name} to {value}"))
}

/// The bridge's directory in sysfs, which exists when it does.
fn bridge() -> PathBuf {
    Path::new("/sys/class/net").join(BRIDGE)
}

/// Names of the interfaces that are attached to the bridge.
fn attached() -> BTreeSet<String> {
    names_in(&bridge().join("brif"))
}

/// Those of [`NFT_TABLES`] that `nft list tables` names.
fn our_tables(listed: &str) -> BTreeSet<String> {
    let ours = NFT_TABLES.map(|(family, name)| format!("{family} {name}"));
    listed
        .lines()
        .filter_map(|line| line.strip_prefix("table "))
        .filter(|table| ours.iter().any(|our| our == table))
        .map(str::to_owned)
        .collect()
}

/// Fails when somebody listens on the TCP address: whatever is asked there
/// would be answered by another program than ours.
pub(crate) fn ensure_free(address: &str) -> Result<()> {
    let Err(error) = TcpListener::bind(address) else {
        return Ok(());
    };
    if error.kind() != ErrorKind::AddrInUse {
        return Err(error).with_context(|| format!("listen on {address}"));
    }
    let (_, port) = address.rsplit_once(':').unwrap_or_default();
    let mut ss = command::with_args("ss", ["-Hltnp", &format!("sport = :{port}")]);
    let listeners = command::output(&mut ss).unwrap_or_default();
    let holder = holder(&String::from_utf8_lossy(&listeners))
        .unwrap_or_else(|| "a program that cannot be seen from here".to_owned());
    bail!("{address} is taken by {holder}: stop it and try again")
}

/// The program in ss's column `users:(("etcd",pid=7,fd=3))`.
fn holder(listeners: &str) -> Option<String> {
    let (_, users) = listeners.split_once("users:((\"")?;
    let (name, rest) = users.split_once("\",pid=")?;
    let (pid, _) = rest.split_once(',')?;
    Some(format!("{name} (process {pid})"))
}

fn mountinfo() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").context("read the mounts")
}

/// Mount points in the order of mounting (proc_pid_mountinfo(5)). Spaces and
/// the like are escaped there; no path of ours has any.
fn mount_points() -> Result<Vec<PathBuf>> {
    let text = mountinfo()?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect())
}

/// Roots of the control group hierarchies by version. A machine with both uses
/// version 1; runc then still makes empty groups in version 2.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchies {
    first: Vec<PathBuf>,
    second: Vec<PathBuf>,
}

fn parse_cgroups(mountinfo: &str) -> Hierarchies {
    let of_type = |wanted: &str| -> Vec<PathBuf> {
        mountinfo
            .lines()
            .filter_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                (right.split(' ').next()? == wanted)
                    .then(|| left.split(' ').nth(4).map(PathBuf::from))?
            })
            .collect()
    };
    Hierarchies {
        first: of_type("cgroup"),
        second: of_type("cgroup2"),
    }
}

/// A control group goes by rmdir, its children first.
fn remove_cgroup(group: &Path) -> Result<()> {
    for name in names_in(group) {
        let child = group.join(name);
        if child.is_dir() {
            remove_cgroup(&child)?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("remove the control group {}", group.display()))
}

/// Names in a directory; none when it is absent.
fn names_in(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_or_changed_is_left() {
        let before = Footprint {
            interfaces: BTreeSet::from(["lo".to_owned()]),
            kernel_parameters: BTreeMap::from([("kernel/panic".to_owned(), "0".to_owned())]),
            ..Footprint::default()
        };
        assert_eq!(before.left_since(&before), Vec::<String>::new());
        let mut after = before.clone();
        after.interfaces.insert("cni0".to_owned());
        after
            .kernel_parameters
            .insert("kernel/panic".to_owned(), "10".to_owned());
        assert_eq!(
            after.left_since(&before),
            [
                "network interface cni0",
                "kernel parameter kernel/panic is 10 and was 0"
            ]
        );
        // Something that went away is not ours to explain.
        assert_eq!(before.left_since(&after).len(), 1);
    }

    #[test]
    fn tables_of_others_are_not_ours() {
        let listed = "table inet firewalld\ntable ip kube-proxy\ntable ip kube-proxy-2\n";
        assert_eq!(
            our_tables(listed),
            BTreeSet::from(["ip kube-proxy".to_owned()])
        );
    }

    #[test]
    fn a_taken_address_is_refused() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = ensure_free(&address).unwrap_err().to_string();
        assert!(error.contains(&address), "{error}");
        drop(taken);
        ensure_free(&address).unwrap();
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let line = "LISTEN 0 4096 127.0.0.1:2379 0.0.0.0:* users:((\"etcd\",pid=7,fd=3))\n";
        assert_eq!(holder(line).as_deref(), Some("etcd (process 7)"));
        assert_eq!(holder("LISTEN 0 4096 127.0.0.1:2379 0.0.0.0:*\n"), None);
        assert_eq!(holder(""), None);
    }

    #[test]
    fn hierarchies_are_told_apart() {
        let text = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            31 25 0:27 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw\n\
            32 25 0:28 / /tmp rw - tmpfs cgroup rw\n";
        assert_eq!(
            parse_cgroups(text),
            Hierarchies {
                first: vec![PathBuf::from("/sys/fs/cgroup/cpu")],
                second: vec![PathBuf::from("/sys/fs/cgroup/unified")],
            }
        );
    }
}
