//! Starting the workload and waiting for its end.
//!
//! The workload's process is this very program, started again as the first
//! process of new namespaces. It receives its plan on standard input, carries it
//! out, and the last step replaces it by the workload. Being a process of its
//! own, with a single thread, it needs none of the care of code between fork
//! and exec.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::thread::UnshareFlags;

use crate::exec;
use crate::failure::{describe, printable};
use crate::step::Step;
use crate::sys::{self, Signals};

/// Name under which this program carries out a plan from standard input. A name
/// and not an argument: the kernel passes words of its command line to PID 1 as
/// arguments, and a host must not choose what PID 1 is.
pub const STAGE_NAME: &str = "assay-workload";

/// Exit status of a process that could not become the workload: that of
/// container runtimes.
const CANNOT_RUN: i32 = 125;

/// The workload could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The plan has no form that crosses a pipe.
    #[error("cannot encode the workload's plan")]
    Encode(#[source] serde_json::Error),
    /// The process could not be made.
    #[error("cannot start a process for the workload")]
    Start(#[source] io::Error),
    /// The plan did not reach the process.
    #[error("cannot hand the workload its plan")]
    Plan(#[source] io::Error),
    /// The process failed before it became the workload.
    #[error("the workload cannot run: {message}")]
    Failed {
        /// What the process reported.
        message: String,
    },
}

/// A workload that runs.
#[derive(Debug)]
pub struct Workload {
    pid: Pid,
}

/// Starts the workload. Returns when it runs, which is after the last of its
/// steps.
///
/// # Errors
/// When a step fails.
pub fn start(steps: &[Step]) -> Result<Workload, WorkloadError> {
    let plan = serde_json::to_vec(steps).map_err(WorkloadError::Encode)?;
    // A thread of its own: namespaces belong to threads, and PID 1 stays in the
    // first ones.
    let thread = thread::spawn(move || {
        sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC)
            .map_err(WorkloadError::Start)?;
        let mut child = Command::new("/proc/self/exe")
            .arg0(STAGE_NAME)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(WorkloadError::Start)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let (Some(mut input), Some(mut output), Some(pid)) =
            (child.stdin.take(), child.stdout.take(), pid)
        else {
            return Err(WorkloadError::Start(io::ErrorKind::BrokenPipe.into()));
        };
        input.write_all(&plan).map_err(WorkloadError::Plan)?;
        drop(input);
        // The pipe closes when the process becomes the workload; before that,
        // whatever comes through it is the reason why it cannot.
        let mut message = String::new();
        output
            .read_to_string(&mut message)
            .map_err(WorkloadError::Plan)?;
        if message.is_empty() {
            Ok(Workload { pid })
        } else {
            Err(WorkloadError::Failed {
                message: printable(&message),
            })
        }
    });
    thread
        .join()
        .unwrap_or(Err(WorkloadError::Start(io::ErrorKind::Other.into())))
}

/// The other side of [`start`]: carries out the plan on standard input. Returns
/// only if that fails, after the pipe has told PID 1.
pub fn run_stage() -> i32 {
    // Ends by itself when the workload takes over.
    let Ok(status) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3) else {
        return CANNOT_RUN;
    };
    let result = receive_plan()
        .map_err(|e| describe(&e))
        .and_then(|steps| exec::run(&steps).map_err(|e| describe(&e)));
    if let Err(message) = result {
        // If PID 1 does not hear it, it still sees the exit status.
        let _ = File::from(status).write_all(message.as_bytes());
    }
    CANNOT_RUN
}

/// Reads the plan and leaves the workload's own standard streams behind.
fn receive_plan() -> io::Result<Vec<Step>> {
    let mut plan = Vec::new();
    io::stdin().read_to_end(&mut plan)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    // No terminal's signals reach the workload.
    rustix::process::setsid()?;
    Ok(serde_json::from_slice(&plan)?)
}

/// Signals that ask this guest to stop.
const STOP: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// Tells the main thread that another one has news for it.
const NEWS: i32 = libc::SIGUSR1;

/// Blocks the signals that a [`Supervisor`] waits for. To be called before any
/// thread is started.
///
/// # Errors
/// Those of sigprocmask(2).
pub fn hold_signals() -> io::Result<Supervisor> {
    let [term, int, hup] = STOP;
    Signals::block(&[libc::SIGCHLD, NEWS, term, int, hup]).map(Supervisor)
}

/// Asks the guest to stop, as if somebody had sent PID 1 the signal.
pub fn request_stop() {
    notify(Signal::TERM);
}

fn notify(signal: Signal) {
    // A process can always signal itself.
    let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
}

/// Who waits for signals, and so for everything else.
pub struct Supervisor(Signals);

/// What a stop request leaves undone.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("asked to stop")]
pub struct Stopped;

/// Longest time between two looks at the children. SIGCHLD comes first; this
/// bounds the harm of one that was merged with another.
const LOOK: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Waits for `work` on a thread of its own.
    ///
    /// # Errors
    /// When the guest is asked to stop first; the work goes on unheard.
    pub fn wait_for_work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            // Nobody listens any more after a stop.
            let _ = sender.send(work());
            notify(Signal::USR1);
        });
        loop {
            if let Ok(result) = receiver.try_recv() {
                return Ok(result);
            }
            if self
                .0
                .wait(LOOK)
                .is_some_and(|signal| STOP.contains(&signal))
            {
                return Err(Stopped);
            }
        }
    }

    /// Reaps children and passes stop requests on until the workload ends.
    /// Returns its exit status, or 128 plus the signal's number.
    pub fn wait_for_end(&self, workload: &Workload, stop_signal: Signal) -> i32 {
        loop {
            if let Some(code) = reap(workload.pid) {
                return code;
            }
            if self
                .0
                .wait(LOOK)
                .is_some_and(|signal| STOP.contains(&signal))
            {
                // It may have ended just now, which the next round finds out.
                let _ = rustix::process::kill_process(workload.pid, stop_signal);
            }
        }
    }
}

/// Reaps every child that has ended; the status of `workload` if it is one.
fn reap(workload: Pid) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == workload {
            code = exit_code(status);
        }
    }
    code
}

/// The status as a shell tells it; `None` for a process that goes on.
fn exit_code(status: WaitStatus) -> Option<i32> {
    status
        .exit_status()
        .or_else(|| Some(128 + status.terminating_signal()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::zombie_processes,
        reason = "waited for by its id, as PID 1 does"
    )]
    fn the_status_of_a_process_is_that_of_a_shell() {
        for (script, expected) in [("exit 7", 7), ("kill -TERM $$", 128 + 15)] {
            let child = Command::new("sh")
                .args(["-c", script])
                .spawn()
                .expect("shell");
            let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid")).expect("pid");
            // Only this child, as other tests have theirs.
            let (_, status) = loop {
                if let Some(ended) =
                    rustix::process::waitpid(Some(pid), WaitOptions::empty()).expect("wait")
                {
                    break ended;
                }
            };
            assert_eq!(exit_code(status), Some(expected), "{script}");
        }
    }
}
