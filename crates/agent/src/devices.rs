//! Devices by what they are, not by the order in which they appeared.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long a device may take to appear after its driver was loaded.
const APPEAR: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

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

fn wait_for_one(
    what: &str,
    patience: Duration,
    find: impl Fn() -> Vec<String>,
) -> Result<String, DeviceError> {
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

/// The node of the virtio disk with this serial.
///
/// # Errors
/// When it does not appear, or two disks claim the serial.
pub fn disk_by_serial(serial: &str) -> Result<String, DeviceError> {
    let what = format!("disk with serial {serial:?}");
    wait_for_one(&what, APPEAR, || {
        with_attribute(Path::new("/sys/block"), "serial", serial)
    })
    .map(|name| format!("/dev/{name}"))
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

    #[test]
    fn the_loopback_interface_has_an_index() {
        assert_eq!(loopback().expect("index"), 1);
    }
}
