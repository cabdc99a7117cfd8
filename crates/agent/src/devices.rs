//! Devices by what they are, not by the order in which they appeared.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use assay_tee::Sha256Digest;
use assay_tee::gpt::{self, Partition};
use assay_tee::guid::Guid;
use assay_tee::root_partition::{ROOT, ROOT_VERITY, root_partition_ids};

/// How long a device may take to appear after its driver was loaded.
const APPEAR: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Bytes of a sector, as sysfs counts.
const SECTOR: u64 = 512;
/// Bytes of a disk's own sector, at most.
const MAX_SECTOR: u64 = 64 * 1024;

/// A device is not there, or not the only one of its kind.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel's list of devices cannot be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No device fits.
    #[error("there is no {what}")]
    Missing {
        /// The device.
        what: String,
    },
    /// Several devices fit; to choose one would be to guess.
    #[error("there is more than one {what}")]
    Ambiguous {
        /// The device.
        what: String,
    },
}

/// Names in the directory `class` whose `attribute` file says `value`.
fn with_attribute(class: &Path, attribute: &str, value: &str) -> Vec<String> {
    entries(class)
        .into_iter()
        .filter(|name| {
            fs::read_to_string(class.join(name).join(attribute)).is_ok_and(|v| v.trim() == value)
        })
        .collect()
}

/// The names in a directory; none if it is not there.
fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn wait_for_one<T>(
    what: &str,
    patience: Duration,
    find: impl Fn() -> Vec<T>,
) -> Result<T, DeviceError> {
    let deadline = Instant::now() + patience;
    loop {
        let mut found = find();
        match (found.pop(), found.is_empty()) {
            (Some(name), true) => return Ok(name),
            (Some(_), false) => {
                return Err(DeviceError::Ambiguous {
                    what: what.to_owned(),
                });
            }
            (None, _) if Instant::now() >= deadline => {
                return Err(DeviceError::Missing {
                    what: what.to_owned(),
                });
            }
            (None, _) => thread::sleep(POLL),
        }
    }
}

/// Where a root's data and its hash tree are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootDevices {
    /// On one device, the tree after the data.
    Appended {
        /// Its node.
        disk: String,
    },
    /// On two devices.
    Separate {
        /// Node of the data.
        data: String,
        /// Node of the tree.
        tree: String,
    },
}

/// The devices of the root with this hash: the virtio disk with this serial, or
/// else the partitions that the Discoverable Partitions Specification names after
/// the hash, on whatever disk. Nothing here says that their content is the root;
/// dm-verity does.
///
/// # Errors
/// When neither appears, or something is there twice.
pub fn root_devices(serial: &str, root_hash: Sha256Digest) -> Result<RootDevices, DeviceError> {
    let machine = Machine {
        blocks: Path::new("/sys/block"),
        nodes: Path::new("/dev"),
    };
    machine.root_devices(serial, root_hash, APPEAR)
}

/// Where the kernel shows disks.
struct Machine<'a> {
    /// A directory for each disk.
    blocks: &'a Path,
    /// Nodes of disks and partitions.
    nodes: &'a Path,
}

impl Machine<'_> {
    fn root_devices(
        &self,
        serial: &str,
        root_hash: Sha256Digest,
        patience: Duration,
    ) -> Result<RootDevices, DeviceError> {
        let [data_id, tree_id] = root_partition_ids(root_hash);
        let what = format!(
            "root: a disk with serial {serial:?}, or else partition {data_id} of type {ROOT} and \
             partition {tree_id} of type {ROOT_VERITY} of disks with a GPT"
        );
        wait_for_one(&what, patience, || {
            let disks = with_attribute(self.blocks, "serial", serial);
            if !disks.is_empty() {
                let appended = |name| RootDevices::Appended {
                    disk: self.node(name),
                };
                return disks.iter().map(appended).collect();
            }
            let data = self.partitions(ROOT, data_id);
            let trees = self.partitions(ROOT_VERITY, tree_id);
            let pairs = data
                .iter()
                .flat_map(|data| trees.iter().map(move |tree| (data, tree)));
            pairs
                .map(|(data, tree)| RootDevices::Separate {
                    data: self.node(data),
                    tree: self.node(tree),
                })
                .collect()
        })
    }

    fn node(&self, name: &String) -> String {
        self.nodes.join(name).display().to_string()
    }

    /// The kernel's names of all partitions of this type and identifier.
    fn partitions(&self, kind: Guid, id: Guid) -> Vec<String> {
        let hardware = |disk: &String| self.blocks.join(disk).join("device").exists();
        let mut found = Vec::new();
        for disk in entries(self.blocks).into_iter().filter(hardware) {
            // A disk that cannot be read has no root.
            for (sector_len, partition) in self.table(&disk).into_iter().flatten() {
                if (partition.kind, partition.id) == (kind, id) {
                    found.extend(self.partition_at(&disk, sector_len, &partition));
                }
            }
        }
        found
    }

    /// What a disk's table lists, and the length of the disk's sectors.
    fn table(&self, disk: &str) -> Option<Vec<(u64, Partition)>> {
        let queue = self.blocks.join(disk).join("queue");
        let sector_len = number(&queue.join("logical_block_size"))?;
        if !(SECTOR..=MAX_SECTOR).contains(&sector_len) {
            return None;
        }
        let device = File::open(self.nodes.join(disk)).ok()?;
        let read = |sector: u64, len: u64| {
            let mut bytes = vec![0; usize::try_from(len).ok()?];
            let offset = sector.checked_mul(sector_len)?;
            device.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        };
        let array = gpt::parse_header(&read(gpt::HEADER_SECTOR, sector_len)?)?;
        let bytes = read(array.sector, u64::from(array.len))?;
        let partitions = array.parse_partitions(&bytes).into_iter();
        Some(partitions.map(|it| (sector_len, it)).collect())
    }

    /// The kernel's name of a partition: the one that begins and ends there.
    fn partition_at(&self, disk: &str, sector_len: u64, partition: &Partition) -> Vec<String> {
        let directory = self.blocks.join(disk);
        let scale = sector_len / SECTOR;
        let expected = [partition.first, partition.sectors].map(|count| count.checked_mul(scale));
        let mut names = entries(&directory);
        names.retain(|name| {
            let path = directory.join(name);
            let found = ["start", "size"].map(|file| number(&path.join(file)));
            path.join("partition").exists()
                && found.iter().all(Option::is_some)
                && found == expected
        });
        names
    }
}

/// The number in a file.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The node of the virtio-serial port with this name. Ports appear some time
/// after their controller; `patience` bounds the wait.
///
/// # Errors
/// When there is none, or there are two.
pub fn serial_port(name: &str, patience: Duration) -> Result<PathBuf, DeviceError> {
    let what = format!("virtio-serial port {name:?}");
    let class = Path::new("/sys/class/virtio-ports");
    wait_for_one(&what, patience, || with_attribute(class, "name", name))
        .map(|port| Path::new("/dev").join(port))
}

/// Index of the loopback interface.
///
/// # Errors
/// When the kernel has none.
pub fn loopback() -> Result<u32, DeviceError> {
    interface_index("lo")
}

/// Index of the only network interface that has hardware behind it.
///
/// # Errors
/// When none appears, or there are several.
pub fn only_interface() -> Result<u32, DeviceError> {
    let class = Path::new("/sys/class/net");
    let hardware = || {
        let mut names = entries(class);
        names.retain(|name| class.join(name).join("device").exists());
        names
    };
    interface_index(&wait_for_one("network interface", APPEAR, hardware)?)
}

fn interface_index(name: &str) -> Result<u32, DeviceError> {
    let path = Path::new("/sys/class/net").join(name).join("ifindex");
    let text = fs::read_to_string(&path).map_err(|source| DeviceError::Read { path, source })?;
    text.trim().parse().map_err(|_| DeviceError::Missing {
        what: format!("interface index of {name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(devices: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("directory");
        for (name, serial) in devices {
            fs::create_dir(directory.path().join(name)).expect("device");
            fs::write(directory.path().join(name).join("serial"), serial).expect("serial");
        }
        directory
    }

    fn find(devices: &[(&str, &str)]) -> Result<String, DeviceError> {
        let class = class(devices);
        wait_for_one("disk", Duration::ZERO, || {
            with_attribute(class.path(), "serial", "root")
        })
    }

    #[test]
    fn a_device_is_found_by_its_attribute() {
        assert_eq!(
            find(&[("vda", "data\n"), ("vdb", "root\n")]).expect("found"),
            "vdb"
        );
    }

    #[test]
    fn none_and_two_are_errors() {
        assert!(matches!(
            find(&[("vda", "roots")]),
            Err(DeviceError::Missing { .. })
        ));
        assert!(matches!(
            find(&[("vda", "root"), ("vdb", "root")]),
            Err(DeviceError::Ambiguous { .. })
        ));
    }

    /// A machine in a directory: disks with the bytes that they begin with, and
    /// the kernel's partitions of them with first sector and length.
    struct Machinery(tempfile::TempDir);

    impl Machinery {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("directory");
            fs::create_dir(directory.path().join("dev")).expect("nodes");
            Self(directory)
        }

        fn add(&self, name: &str, bytes: &[u8], partitions: &[(u64, u64)]) -> PathBuf {
            let disk = self.0.path().join("block").join(name);
            fs::create_dir_all(disk.join("queue")).expect("disk");
            fs::write(disk.join("queue/logical_block_size"), "512\n").expect("size");
            fs::write(disk.join("device"), "").expect("device");
            fs::write(self.0.path().join("dev").join(name), bytes).expect("node");
            for (number, (start, size)) in (1..).zip(partitions) {
                let partition = disk.join(format!("{name}{number}"));
                fs::create_dir(&partition).expect("partition");
                fs::write(partition.join("partition"), format!("{number}\n")).expect("number");
                fs::write(partition.join("start"), format!("{start}\n")).expect("start");
                fs::write(partition.join("size"), format!("{size}\n")).expect("size");
            }
            disk
        }

        fn find(&self) -> Result<RootDevices, DeviceError> {
            let machine = Machine {
                blocks: &self.0.path().join("block"),
                nodes: &self.0.path().join("dev"),
            };
            machine.root_devices("root", Sha256Digest::of(b"root"), Duration::ZERO)
        }

        fn separate(&self, data: &str, tree: &str) -> RootDevices {
            let node = |name| self.0.path().join("dev").join(name).display().to_string();
            RootDevices::Separate {
                data: node(data),
                tree: node(tree),
            }
        }
    }

    /// A disk of 512-byte sectors that begins with a table of these partitions:
    /// type, identifier, first and last sector.
    fn disk_with_table(partitions: &[(Guid, Guid, u64, u64)]) -> Vec<u8> {
        let mut disk = vec![0; 512];
        disk.extend(b"EFI PART");
        disk.resize(512 + 72, 0);
        disk.extend(2_u64.to_le_bytes());
        disk.extend(128_u32.to_le_bytes());
        disk.extend(128_u32.to_le_bytes());
        disk.resize(1024, 0);
        for (kind, id, first, last) in partitions {
            disk.extend([*kind.as_bytes(), *id.as_bytes()].concat());
            disk.extend([first.to_le_bytes(), last.to_le_bytes()].concat());
            disk.extend([0; 128 - 48]);
        }
        disk.resize(1024 + 128 * 128, 0);
        disk
    }

    fn ids() -> [Guid; 2] {
        root_partition_ids(Sha256Digest::of(b"root"))
    }

    #[test]
    fn a_root_is_found_by_its_hash_on_one_disk_or_on_two() {
        let [data, tree] = ids();
        let machine = Machinery::new();
        let both = disk_with_table(&[
            (ROOT, tree, 1000, 1001),
            (ROOT, data, 2048, 4095),
            (ROOT_VERITY, tree, 4096, 4103),
        ]);
        let partitions = [(4096, 8), (1000, 2), (2048, 2048)];
        machine.add("vdb", &both, &partitions);
        machine.add("vda", b"no table", &[(2048, 2048)]);
        let found = machine.find().expect("found");
        assert_eq!(found, machine.separate("vdb3", "vdb1"));

        let machine = Machinery::new();
        let data = disk_with_table(&[(ROOT, data, 2048, 4095)]);
        let tree = disk_with_table(&[(ROOT_VERITY, tree, 34, 41)]);
        machine.add("sda", &data, &[(2048, 2048)]);
        machine.add("nvme0n1", &tree, &[(34, 8)]);
        let found = machine.find().expect("found");
        assert_eq!(found, machine.separate("sda1", "nvme0n11"));
    }

    #[test]
    fn the_disk_with_the_serial_goes_before_partitions() {
        let [data, tree] = ids();
        let machine = Machinery::new();
        let both = disk_with_table(&[(ROOT, data, 8, 15), (ROOT_VERITY, tree, 16, 16)]);
        let disk = machine.add("vda", &both, &[(8, 8), (16, 1)]);
        assert_eq!(
            machine.find().expect("found"),
            machine.separate("vda1", "vda2")
        );
        fs::write(disk.join("serial"), "root").expect("serial");
        let node = machine.0.path().join("dev/vda").display().to_string();
        let expected = RootDevices::Appended { disk: node };
        assert_eq!(machine.find().expect("found"), expected);
    }

    #[test]
    fn another_root_is_none_and_two_are_an_error() {
        let [data, tree] = ids();
        let other = Guid::new(7);
        for entries in [
            [(ROOT, other, 8, 15), (ROOT_VERITY, tree, 16, 16)],
            [(ROOT, data, 8, 15), (ROOT_VERITY, other, 16, 16)],
            [(ROOT, data, 8, 15), (ROOT, tree, 16, 16)],
            // The kernel has no such partition.
            [(ROOT, data, 8, 14), (ROOT_VERITY, tree, 16, 16)],
            [(ROOT, data, 8, 15), (ROOT_VERITY, tree, 17, 17)],
        ] {
            let machine = Machinery::new();
            machine.add("vda", &disk_with_table(&entries), &[(8, 8), (16, 1)]);
            let error = machine.find().expect_err("none");
            assert!(matches!(error, DeviceError::Missing { .. }), "{error}");
            let [data, tree] = [data, tree].map(|id| id.to_string());
            let said = error.to_string();
            assert!(said.contains(&data) && said.contains(&tree), "{said}");
        }

        let machine = Machinery::new();
        let both = disk_with_table(&[(ROOT, data, 8, 15), (ROOT_VERITY, tree, 16, 16)]);
        for name in ["vda", "vdb"] {
            machine.add(name, &both, &[(8, 8), (16, 1)]);
        }
        let error = machine.find().expect_err("two");
        assert!(matches!(error, DeviceError::Ambiguous { .. }), "{error}");
    }

    #[test]
    fn the_loopback_interface_has_an_index() {
        assert_eq!(loopback().expect("index"), 1);
    }
}
