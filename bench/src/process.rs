//! Processes, observed from outside.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

use crate::table::{mebibytes, median};

/// What a process took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// From start to end.
    pub(crate) wall: Duration,
    /// Most memory resident at once, in bytes.
    pub(crate) peak_memory: u64,
}

/// Runs a command and prints what it took, in microseconds and KiB.
pub(crate) fn observe_here(program: &Path, arguments: &[String]) -> Result<()> {
    let start = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("run {}", program.display()))?;
    let wall = start.elapsed();
    ensure!(status.success(), "{} failed ({status})", program.display());
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("read the resource usage")?;
    println!("{} {}", wall.as_micros(), usage.max_rss());
    Ok(())
}

/// Runs a command once. The memory is that of the command alone: the kernel
/// counts the most of all children, so each run gets a parent of its own.
fn observe(command: &Command) -> Result<Cost> {
    let here = std::env::current_exe().context("find this program")?;
    let output = Command::new(here)
        .arg("observe")
        .arg(command.get_program())
        .arg("--")
        .args(command.get_args())
        .stderr(Stdio::inherit())
        .output()
        .context("run this program")?;
    ensure!(output.status.success(), "{command:?} failed");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(micros)), Some(Ok(kibibytes))) = (numbers.next(), numbers.next()) else {
        anyhow::bail!("{command:?} was observed to take {text:?}");
    };
    Ok(Cost {
        wall: Duration::from_micros(micros),
        peak_memory: kibibytes * 1024,
    })
}

/// Runs commands in turn, so that all meet the same noise; gives the median time
/// and the most memory of each. `before` runs before every process.
pub(crate) fn in_turn<const COMMANDS: usize>(
    commands: [&Command; COMMANDS],
    rounds: usize,
    before: impl Fn() -> Result<()>,
) -> Result<[Cost; COMMANDS]> {
    let mut costs = [const { Vec::<Cost>::new() }; COMMANDS];
    for _ in 0..rounds {
        for (command, costs) in commands.iter().zip(&mut costs) {
            before()?;
            costs.push(observe(command)?);
        }
    }
    Ok(costs.map(|costs| Cost {
        wall: median(costs.iter().map(|cost| cost.wall).collect()),
        peak_memory: costs.iter().map(|cost| cost.peak_memory).max().unwrap_or(0),
    }))
}

/// The most memory of a process, and by the length of its largest input.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn peak_over(cost: &Cost, largest_input: usize) -> String {
    let ratio = cost.peak_memory as f64 / largest_input as f64;
    format!("{} = {ratio:.2} x", mebibytes(cost.peak_memory))
}

/// Forgets what the kernel has read of files. Needs root.
pub(crate) fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache")
}
