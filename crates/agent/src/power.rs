//! The power button: how a host asks a guest to stop.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::thread;

use crate::workload;

/// What the kernel's ACPI button driver calls its input devices.
const NAME: &str = "Power Button";

/// `struct input_event` of 64-bit machines (Linux, `uapi/linux/input.h`).
const EVENT_LEN: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Turns every press of a power button into a request to stop. Without the
/// kernel modules `button` and `evdev` there is no button, and the host can
/// only pull the plug.
pub fn watch() {
    for node in buttons(Path::new("/sys/class/input")) {
        let Ok(mut device) = File::open(node) else {
            continue;
        };
        thread::spawn(move || {
            let mut event = [0; EVENT_LEN];
            while device.read_exact(&mut event).is_ok() {
                if is_press(&event) {
                    workload::request_stop();
                }
            }
        });
    }
}

fn buttons(class: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let device = fs::read_to_string(entry.path().join("device/name")).ok()?;
            (name.starts_with("event") && device.trim() == NAME)
                .then(|| Path::new("/dev/input").join(name))
        })
        .collect()
}

fn is_press(event: &[u8; EVENT_LEN]) -> bool {
    // Two words of time, then type, code and value.
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_ne_bytes([t0, t1]) == EV_KEY
        && u16::from_ne_bytes([c0, c1]) == KEY_POWER
        && i32::from_ne_bytes([v0, v1, v2, v3]) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut bytes = vec![0xff; 16];
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes.extend_from_slice(&value.to_ne_bytes());
            bytes.try_into().expect("length")
        };
        assert!(is_press(&event(1, 116, 1)));
        for other in [
            event(1, 116, 0),
            event(1, 116, 2),
            event(1, 30, 1),
            event(0, 116, 1),
        ] {
            assert!(!is_press(&other));
        }
    }

    #[test]
    fn buttons_are_found_by_name() {
        let class = tempfile::tempdir().expect("directory");
        for (entry, name) in [
            ("event0", "Power Button\n"),
            ("event1", "Mouse\n"),
            ("input0", "Power Button\n"),
        ] {
            fs::create_dir_all(class.path().join(entry).join("device")).expect("directory");
            fs::write(class.path().join(entry).join("device/name"), name).expect("name");
        }
        assert_eq!(buttons(class.path()), [Path::new("/dev/input/event0")]);
    }
}
