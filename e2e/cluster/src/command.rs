//! Running programs to their end, with errors that name the command.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Lines of a log that are shown when a command fails.
const TAIL_LINES: usize = 15;

/// The command as a person would type it.
pub fn display(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// Runs `command` and returns its standard output.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run `{}`", display(command)))?;
    if !out.status.success() {
        bail!(
            "`{}` failed ({}): {}",
            display(command),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(out.stdout)
}

/// Runs `command` with its output going to `log`; a failure shows the log's end.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open the log {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("share the log")?)
        .stderr(file)
        .status()
        .with_context(|| format!("run `{}`", display(command)))?;
    if !status.success() {
        bail!(
            "`{}` failed ({status}). Log {}:\n{}",
            display(command),
            log.display(),
            tail(log)
        );
    }
    Ok(())
}

/// The last lines of a log, or a sentence that it cannot be read.
pub fn tail(log: &Path) -> String {
    let Ok(bytes) = fs::read(log) else {
        return format!("(no log at {})", log.display());
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let skip = lines.len().saturating_sub(TAIL_LINES);
    let last = lines.get(skip..).unwrap_or_default();
    format!("    {}\n", last.join("\n    "))
}

/// The program's path, searching PATH and the directories that only root's
/// PATH has on Debian.
pub fn find(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program.as_ref()))
        .find(|candidate| candidate.is_file())
}

/// A command by name, found as [`find`] does.
pub fn named(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| PathBuf::from(program)))
}

/// Shorthand for a command with arguments.
pub fn with_args<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = named(program);
    command.args(args);
    command
}
