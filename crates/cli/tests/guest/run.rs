use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Prepared, assay, prepared, quickstart, stderr};

/// A guest under emulation on a loaded machine takes minutes.
const DEADLINE: Duration = Duration::from_mins(10);
pub(crate) const TIMEOUT_SECONDS: &str = "600";

fn run(prepared: &Prepared, scratch: &Path, file: &Path) -> Command {
    run_with(&prepared.qemu(scratch), scratch, file)
}

fn run_with(qemu: &Path, scratch: &Path, file: &Path) -> Command {
    let mut command = assay();
    command
        .env("TMPDIR", scratch)
        .args(["run", "--publish", "0:8080", "--qemu"])
        .arg(qemu)
        .arg("-f")
        .arg(file);
    command
}

/// The quickstart with one of its files changed.
fn changed(directory: &Path, file: &str, from: &str, to: &str) {
    for entry in fs::read_dir(quickstart()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let mut text = fs::read_to_string(&path).unwrap();
            if name == file {
                assert!(text.contains(from), "{text}");
                text = text.replace(from, to);
            }
            fs::write(directory.join(name), text).unwrap();
        }
    }
}

/// The quickstart with another deployment, in a directory of `scratch`.
fn with_deployment(scratch: &Path, (from, to): (&str, &str)) -> PathBuf {
    let objects = scratch.join("objects");
    fs::create_dir(&objects).unwrap();
    changed(&objects, "deployment.yaml", from, to);
    objects
}

/// The quickstart whose host plays foul.
fn with_fault(scratch: &Path, fault: &str) -> PathBuf {
    let tee = "    tee: SimulatedSNP\n";
    let faulty = format!("{tee}    simulation: {{fault: {fault}}}\n");
    with_deployment(scratch, (tee, &faulty))
}

/// A started command, killed if the test does not wait for it.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Receiver<String>,
    pub(crate) said: String,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let streams: [Box<dyn io::Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines() {
                    let Ok(line) = line else { return };
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Self {
            child,
            lines,
            said: String::new(),
        }
    }

    /// The first line with these words. The two streams come in any order.
    pub(crate) fn wait_for(&mut self, words: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(line) = self.said.lines().find(|line| line.contains(words)) {
                return line.to_owned();
            }
            let left = DEADLINE.saturating_sub(start.elapsed());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{words:?} did not come:\n{}", self.said)
            };
            self.said += &line;
            self.said.push('\n');
        }
    }

    pub(crate) fn interrupt(&self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first: it takes its guest with it.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.interrupt();
        }
        let _ = self.child.wait();
    }
}

fn get(address: &str, user: Option<&str>) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let authorization = user.map_or_else(String::new, |user| {
        format!("Authorization: Basic {user}\r\n")
    });
    let request =
        format!("GET / HTTP/1.1\r\nHost: web\r\n{authorization}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Asks the guest's web server without and with the password of its secret.
pub(crate) fn serves(address: &str) {
    // nginx listens a moment after it was started.
    let start = Instant::now();
    let refused = loop {
        match get(address, None) {
            Ok(answer) if !answer.is_empty() => break answer,
            failed => assert!(start.elapsed() < DEADLINE, "{failed:?}"),
        }
    };
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    // visitor:measured, the password of the secret.
    let page = get(address, Some("dmlzaXRvcjptZWFzdXJlZA==")).unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(
        page.contains("Hello from inside a measured guest"),
        "{page}"
    );
}

fn temporary_directories(scratch: &Path) -> Vec<String> {
    let entries = fs::read_dir(scratch).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("assay-run-"))
        .collect()
}

#[test]
fn the_quickstart_runs_attests_and_serves_without_a_cluster() {
    let Some(prepared) = prepared("run of the quickstart") else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let mut command = run(prepared, scratch.path(), &quickstart());
    let mut running = Running::start(command.arg("--artifact").arg(prepared.artifact()));
    let port = running.wait_for("for port 8080 of the guest");
    let address = port.split_whitespace().nth(1).unwrap().to_owned();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    running.wait_for("ACCEPTED (SIMULATED: protects nothing)");
    running.wait_for("htpasswd Released");
    running.wait_for("console | ");
    running.wait_for("its workload runs");
    assert_eq!(temporary_directories(scratch.path()).len(), 1);

    serves(&address);
    running.interrupt();
    running.wait_for("the guest is stopped");
    let status = running.child.wait().unwrap();
    assert!(status.success(), "{}", running.said);
    assert_eq!(temporary_directories(scratch.path()), [""; 0]);
}

#[test]
fn a_tampered_kernel_is_refused_with_its_cause() {
    let Some(prepared) = prepared("run of a tampered kernel") else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let objects = with_fault(scratch.path(), "TamperedKernelRehashed");
    let layout = scratch.path().join("layout");
    prepared.layout(&layout);
    let image = |name: &str| format!("{}:{name}", layout.display());
    let output = run(prepared, scratch.path(), &objects)
        .args(["--rootfs", &image("web"), "--kit", &image("kit")])
        .arg("--agent")
        .arg(&prepared.agent)
        .args(["--until-attested", "--timeout-seconds", TIMEOUT_SECONDS])
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "REJECTED: ",
        " failed: ",
        "expected sha384:",
        "observed sha384:",
        "diagnosis: ",
        "error: the guest's evidence was rejected: ",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("Released"), "{said}");
    assert_eq!(temporary_directories(scratch.path()), [""; 0]);
}

/// Two virtual CPUs: each has a state of its own in the file.
const IGVM_MACHINE: (&str, &str) = (
    "    vcpus: 1\n    memory: 512Mi\n",
    "    vcpus: 2\n    memory: 1Gi\n    boot: IGVM\n",
);

#[test]
fn a_guest_boots_from_an_igvm_file_and_is_attested() {
    let Some(prepared) = prepared("run from an IGVM file") else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let objects = with_deployment(scratch.path(), IGVM_MACHINE);
    let output = run_with(
        &prepared.qemu_igvm(scratch.path()),
        scratch.path(),
        &objects,
    )
    .arg("--artifact")
    .arg(prepared.artifact())
    .args(["--until-attested", "--timeout-seconds", TIMEOUT_SECONDS])
    .args(["--boot-timeout-seconds", TIMEOUT_SECONDS])
    .output()
    .unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    for words in [
        "vCPUs: 2, SimulatedSNP, boot IGVM)",
        "starts under TCG",
        "ACCEPTED (SIMULATED: protects nothing)",
        "htpasswd Released",
        "its workload runs",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // The verdict is about the digest that was computed before.
    let digest = said
        .split_whitespace()
        .find(|word| word.starts_with("sha384:"));
    assert_eq!(said.matches(digest.unwrap()).count(), 2, "{said}");
    assert_eq!(temporary_directories(scratch.path()), [""; 0]);
}

#[test]
fn qemu_without_igvm_files_is_refused_before_anything_is_built() {
    let Some(prepared) = prepared("QEMU without IGVM files") else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let objects = with_deployment(scratch.path(), IGVM_MACHINE);
    let output = run(prepared, scratch.path(), &objects).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "spec.machine.boot is IGVM",
        "igvm-cfg",
        "boot: DirectKernel",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("starts under"), "{said}");
}

/// A guest that says nothing does not wait for ever, and what to look at is told.
#[test]
fn a_guest_that_never_boots_is_ended_with_what_to_look_at() {
    let Some(prepared) = prepared("a guest that never boots") else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    // A host whose hashes table is of another UKI: the firmware stops.
    let objects = with_fault(scratch.path(), "TamperedKernel");
    let output = run(prepared, scratch.path(), &objects)
        .arg("--artifact")
        .arg(prepared.artifact())
        .args(["--boot-timeout-seconds", "20"])
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "error: the guest has not booted after 20 s",
        "the hashes table",
        "--boot-timeout-seconds",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("its agent runs"), "{said}");
    assert_eq!(temporary_directories(scratch.path()), [""; 0]);
}

#[test]
fn an_interrupted_pull_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    // A registry that accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let digest = format!("{host}/web@sha256:{}", "1".repeat(64));
    let mut command = assay();
    command
        .env("TMPDIR", scratch.path())
        .args(["run", "--qemu", "/bin/true", "--agent", "/bin/true"])
        .args(["--plain-http", &host, "--rootfs", &digest, "--kit", &digest])
        .arg("-f")
        .arg(quickstart());
    let mut running = Running::start(&mut command);
    running.wait_for("pull workload image");
    silent.accept().unwrap();
    assert_eq!(temporary_directories(scratch.path()).len(), 2);
    running.interrupt();
    running.wait_for("error: interrupted before the guest was started");
    assert_eq!(running.child.wait().unwrap().code(), Some(1));
    assert_eq!(temporary_directories(scratch.path()), [""; 0]);
}

#[test]
fn nothing_starts_that_cannot_be_attested() {
    let Some(prepared) = prepared("runs that are refused before they start") else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let whole = prepared.artifact();
    let artifact = scratch.path().join("artifact");
    fs::create_dir(&artifact).unwrap();
    for entry in fs::read_dir(&whole).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, artifact.join(path.file_name().unwrap())).unwrap();
    }
    let uki = artifact.join("uki.efi");
    let mut content = fs::read(&uki).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(&uki, content).unwrap();
    let rows: [(&str, &str, &str, &Path, &str); 5] = [
        (
            "policy.yaml",
            "tees: [SimulatedSNP]",
            "tees: [SNP]",
            whole.as_path(),
            "TeeNotAllowed: AttestationPolicy quickstart does not name SimulatedSNP in spec.tees",
        ),
        (
            "deployment.yaml",
            "memory: 512Mi",
            "memory: 64Mi",
            whole.as_path(),
            "SpecInvalid: spec.machine.memory: 64Mi must be between",
        ),
        (
            "secret.yaml",
            "name: web-users",
            "name: other",
            whole.as_path(),
            "spec.secrets[htpasswd]: there is no Secret quickstart/web-users",
        ),
        (
            "deployment.yaml",
            "name: web-1",
            "name: web-2",
            whole.as_path(),
            "spec.imageRef: there is no MeasuredImage quickstart/web-2; there is quickstart/web-1",
        ),
        ("policy.yaml", "20s", "20s", &artifact, "uki.sha256"),
    ];
    for (file, from, to, artifact, words) in rows {
        let objects = tempfile::tempdir().unwrap();
        changed(objects.path(), file, from, to);
        let output = run(prepared, scratch.path(), objects.path())
            .arg("--artifact")
            .arg(artifact)
            .arg("--until-attested")
            .output()
            .unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{words}: {said}");
        assert!(!said.contains("starts under"), "{said}");
        assert_eq!(temporary_directories(scratch.path()), [""; 0]);
    }
    // A mistake is found before anything is built.
    let objects = tempfile::tempdir().unwrap();
    changed(objects.path(), "deployment.yaml", "512Mi", "64Mi");
    let output = run(prepared, scratch.path(), objects.path()).output();
    let said = stderr(&output.unwrap());
    assert!(said.contains("64Mi must be between"), "{said}");
    // Without an artifact the placeholders are told.
    let output = run(prepared, scratch.path(), &quickstart())
        .output()
        .unwrap();
    let said = stderr(&output);
    for words in [
        "the digest of zeros is a placeholder",
        "--rootfs",
        "--artifact",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}
