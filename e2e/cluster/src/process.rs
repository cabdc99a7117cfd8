//! Processes that outlive the command which starts them. A process is known by
//! its id together with its start time: an id alone may belong to somebody else
//! by the time we look again.

use crate::command;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// How often conditions are looked at.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// A process that was started, as kept in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id, which is also its process group's and session's.
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub start_time: u64,
    /// Hash of its command line and configuration: another one means restart.
    pub configuration: String,
}

impl Record {
    /// Reads a record; none when there is none, or none that can be read.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.start_time == self.start_time && !stat.is_dead())
    }

    /// Ends the process group: politely first, and after `patience` by force.
    pub fn stop(&self, patience: Duration) {
        for (signal, wait) in [
            (Signal::TERM, patience),
            (Signal::KILL, Duration::from_secs(5)),
        ] {
            if !self.is_alive() {
                return;
            }
            if let Some(pid) = Pid::from_raw(self.pid)
                && kill_process_group(pid, signal).is_err()
            {
                // Just started, it may not lead its group yet. Gone in between
                // is as good as stopped.
                let _ = kill_process(pid, signal);
            }
            let deadline = Instant::now() + wait;
            while self.is_alive() && Instant::now() < deadline {
                thread::sleep(POLL);
            }
        }
    }
}

/// Starts `program` in a session of its own with its output going to `log`.
pub(crate) fn start(
    program: &Path,
    args: &[String],
    environment: &[(&str, String)],
    log: &Path,
    configuration: String,
) -> Result<Record> {
    let file = File::create(log).with_context(|| format!("create the log {}", log.display()))?;
    let mut setsid = command::named("setsid");
    setsid
        .arg(program)
        .args(args)
        .envs(environment.iter().map(|(name, value)| (name, value)));
    // The cluster talks to nobody beyond the machine, and a proxy would see
    // requests to its own addresses.
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        setsid.env_remove(proxy).env_remove(proxy.to_lowercase());
    }
    let child = setsid
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("share the log")?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    // setsid replaces itself by the program, since a fresh child leads no group.
    let pid = i32::try_from(child.id()).context("process id out of range")?;
    let stat = Stat::of(pid).with_context(|| format!("{} ended at once", program.display()))?;
    Ok(Record {
        pid,
        start_time: stat.start_time,
        configuration,
    })
}

/// What `/proc/<pid>/stat` says, as far as it is needed (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: char,
    start_time: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The second field is the program's name in parentheses and may hold
    /// anything, so fields are counted from the last parenthesis.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        // Field 22 of the file; the state is field 3.
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start_time })
    }

    fn is_dead(self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// A running process that belongs to the cluster without being recorded: a
/// containerd shim, or something inside a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Its id.
    pub pid: i32,
    /// Name of its program.
    pub name: String,
}

/// Finds what the cluster's containers run: processes in its control groups,
/// and shims, whose working directory is a bundle below `root`.
pub(crate) fn strays(root: &Path, cgroup: &str) -> Vec<Stray> {
    let Ok(proc) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let in_cgroup = format!("/{cgroup}/");
    proc.filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let contained = groups.lines().any(|line| {
            line.splitn(3, ':')
                .nth(2)
                .is_some_and(|path| path.starts_with(&in_cgroup))
        });
        let shim = || {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(root))
                && fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.starts_with("containerd-shim"))
        };
        if Stat::of(pid)?.is_dead() || !(contained || shim()) {
            return None;
        }
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(Stray {
            pid,
            name: name.trim().to_owned(),
        })
    })
    .collect()
}

/// Kills strays until there are none, for at most ten seconds.
pub(crate) fn kill_strays(root: &Path, cgroup: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = strays(root, cgroup);
        if found.is_empty() || Instant::now() > deadline {
            return;
        }
        for stray in found {
            if let Some(pid) = Pid::from_raw(stray.pid) {
                // Gone in between is what we want.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_odd_program_names() {
        let fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let text = format!("7 (a) S) R {}", fields.join(" "));
        assert_eq!(
            Stat::parse(&text),
            Some(Stat {
                state: 'R',
                start_time: 22
            })
        );
        assert_eq!(Stat::parse("7 (a"), None);
        assert_eq!(Stat::parse("7 (a) R 1 2"), None);
    }

    #[test]
    fn a_record_knows_its_own_process() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let record = start(
            Path::new("/bin/sleep"),
            &["60".to_owned()],
            &[],
            &log,
            String::new(),
        )
        .unwrap();
        assert!(record.is_alive());
        let impostor = Record {
            start_time: record.start_time + 1,
            ..record.clone()
        };
        assert!(!impostor.is_alive());
        impostor.stop(Duration::from_millis(100));
        assert!(
            record.is_alive(),
            "another process with this id must not be touched"
        );
        record.stop(Duration::from_secs(5));
        assert!(!record.is_alive());
    }
}
