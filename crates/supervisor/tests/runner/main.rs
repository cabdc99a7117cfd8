//! The launcher as a process, with a script in QEMU's place: exit codes, probes,
//! stopping, refusals.

#![allow(
    clippy::unwrap_used,
    reason = "what a test needs and has not is a failure"
)]

mod firmware;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use assay_launcher::spec::{
    ArtifactFiles, Console, Fault, FileRef, InstanceTemplate, LaunchSpec, Simulation,
};
use assay_measure::{MeasurementInputs, measure_snp};
use assay_psp_sim::Endorsement;
use assay_tee::guest_message::ReportResponse;
use assay_tee::hashes_table::KernelHashes;
use assay_tee::instance::VerifierEndpoint;
use assay_tee::{
    AttestationReport, BootMethod, GuestFeatures, GuestPolicy, LaunchShape, Sha256Digest,
    TcbVersion, Tee, VcpuCount,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_mins(1);

/// A launch whose files lie in a temporary directory.
struct Launch {
    dir: TempDir,
    spec: LaunchSpec,
    uki: Vec<u8>,
    status: SocketAddr,
}

impl Launch {
    fn new(tee: Tee) -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["artifact", "run"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let uki = firmware::uki();
        let firmware = firmware::ovmf();
        let shape = LaunchShape {
            tee,
            boot: BootMethod::DirectKernel,
            vcpus: VcpuCount::try_from(2).unwrap(),
            cpu_model: "EPYC-v4".to_owned(),
            guest_features: GuestFeatures::default(),
        };
        let hashes = KernelHashes::from_bytes(&uki, None, "");
        let measured = MeasurementInputs::from_bytes(&firmware, Some(hashes)).unwrap();
        let spec = LaunchSpec {
            version: LaunchSpec::VERSION,
            expected_digest: measure_snp(&measured, &shape).unwrap().digest,
            shape,
            guest_policy: GuestPolicy::default(),
            memory_mib: 512,
            artifact: ArtifactFiles {
                uki: FileRef {
                    path: "uki.efi".to_owned(),
                    sha256: Sha256Digest::of(&uki),
                },
                firmware: FileRef {
                    path: "firmware.fd".to_owned(),
                    sha256: Sha256Digest::of(&firmware),
                },
                root_disk: None,
            },
            ports: Vec::new(),
            console: Console::None,
            instance: InstanceTemplate {
                namespace: "shop".to_owned(),
                deployment: "web".to_owned(),
                policy_hash: Sha256Digest::of(b"policy"),
                verifier: VerifierEndpoint {
                    url: "https://broker".to_owned(),
                    addresses: Vec::new(),
                    ca: String::new(),
                },
                resources: Vec::new(),
                attestation_interval_seconds: 30,
            },
            simulation: (!tee.is_hardware()).then(simulation),
        };
        fs::write(dir.path().join("artifact/uki.efi"), &uki).unwrap();
        fs::write(dir.path().join("artifact/firmware.fd"), &firmware).unwrap();
        let free_port = TcpListener::bind("127.0.0.1:0").unwrap();
        let status = free_port.local_addr().unwrap();
        Self {
            dir,
            spec,
            uki,
            status,
        }
    }

    fn with_fault(fault: Fault) -> Self {
        let mut launch = Self::new(Tee::SimulatedSnp);
        launch.spec.simulation.as_mut().unwrap().fault = Some(fault);
        launch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, mode: &str) -> Running {
        fs::write(
            self.path("launch.json"),
            serde_json::to_vec(&self.spec).unwrap(),
        )
        .unwrap();
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runner/fake_qemu.py");
        let child = Command::new(env!("CARGO_BIN_EXE_assay-launcher"))
            .args(["--spec".as_ref(), self.path("launch.json").as_os_str()])
            .args(["--artifact".as_ref(), self.path("artifact").as_os_str()])
            .args(["--run-dir".as_ref(), self.path("run").as_os_str()])
            .args(["--qemu".as_ref(), fake.as_os_str()])
            .args(["--status-address", &self.status.to_string()])
            .args(["--grace-period-seconds", "1"])
            .args([
                "--pod-name",
                "web-0",
                "--pod-uid",
                "u-1",
                "--node-name",
                "node-1",
            ])
            .env("FAKE_QEMU", mode)
            .env("FAKE_QEMU_OUTPUT", self.path("output"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running {
            child: Some(child),
            status: self.status,
        }
    }

    fn run(&self, mode: &str) -> (Option<i32>, String) {
        self.start(mode).finish()
    }
}

fn simulation() -> Simulation {
    let tcb = TcbVersion {
        fmc: None,
        bootloader: 9,
        tee: 0,
        snp: 23,
        microcode: 72,
    };
    let endorsement = Endorsement::generate("runner", tcb, jiff::Timestamp::now()).unwrap();
    Simulation {
        vcek_key: endorsement.key_pem().unwrap(),
        vcek_chain: endorsement.chain_pem().unwrap(),
        fault: None,
    }
}

/// A started launcher, killed if the test does not wait for it.
struct Running {
    child: Option<Child>,
    status: SocketAddr,
}

impl Running {
    fn finish(mut self) -> (Option<i32>, String) {
        let Output { status, stderr, .. } = self.child.take().unwrap().wait_with_output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.child.as_ref().unwrap().id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    }

    /// Status line and body, or `None` while nobody listens.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.status).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        let (head, body) = response.split_once("\r\n\r\n")?;
        Some(format!("{} {body}", head.split(' ').nth(1)?))
    }

    fn wait_for(&self, path: &str, expected: &str) {
        let start = Instant::now();
        loop {
            let got = self.get(path);
            if got.as_deref() == Some(expected) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{path}: {got:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn the_exit_code_is_the_workloads_and_zero_only_when_the_guest_says_so() {
    let launch = Launch::new(Tee::Snp);
    for (mode, code, message) in [
        ("exits 0", 0, ""),
        ("exits 7", 7, ""),
        ("exits 137", 137, ""),
        ("exits 256", 1, ""),
        ("exits -1", 1, ""),
        (
            "powers off silently",
            1,
            "without reporting its workload's end (last phase: Booted)",
        ),
        ("fails", 1, "the guest failed: \"no root disk\""),
        (
            "dies at once",
            1,
            "exit status 1\n  could not open disk image",
        ),
        (
            "crashes after exit event",
            1,
            "QEMU died unexpectedly: signal 6",
        ),
        ("is killed", 1, "QEMU died unexpectedly: signal 9"),
    ] {
        let (got, stderr) = launch.run(mode);
        assert_eq!(got, Some(code), "{mode}: {stderr}");
        assert!(stderr.contains(message), "{mode}: {stderr}");
    }
}

#[test]
fn probes_follow_the_guest_and_stopping_presses_the_power_button() {
    let launch = Launch::new(Tee::Snp);
    let running = launch.start("obeys the power button");
    running.wait_for("/readyz", "200 phase=Running\n");
    running.wait_for("/healthz", "200 QEMU answers\n");
    running.terminate();
    let (code, stderr) = running.finish();
    assert_eq!(code, Some(3), "{stderr}");
}

#[test]
fn a_guest_that_ignores_the_power_button_is_ended_after_the_grace_period() {
    let launch = Launch::new(Tee::Snp);
    let running = launch.start("ignores the power button");
    running.wait_for("/readyz", "200 phase=Running\n");
    running.terminate();
    let (code, stderr) = running.finish();
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("did not power off in time"), "{stderr}");
}

#[test]
fn a_guest_that_never_booted_is_alive_not_ready_and_ended_at_once() {
    let launch = Launch::new(Tee::SimulatedSnp);
    let running = launch.start("loops in firmware");
    running.wait_for("/healthz", "200 QEMU answers\n");
    running.wait_for(
        "/readyz",
        "503 phase=Starting tee=SimulatedSNP (SIMULATION: protects nothing)\n",
    );
    running.terminate();
    let (code, stderr) = running.finish();
    assert_eq!(code, Some(1), "{stderr}");
    assert!(!stderr.contains("did not power off in time"), "{stderr}");
    assert!(
        stderr.contains("stopped before the guest reported"),
        "{stderr}"
    );
}

#[test]
fn a_simulated_guest_gets_reports_of_the_expected_launch() {
    let launch = Launch::new(Tee::SimulatedSnp);
    let (code, stderr) = launch.run("asks for a report");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stderr.contains("launch digest is the expected one"),
        "{stderr}"
    );
    let response = ReportResponse::parse(&fs::read(launch.path("output")).unwrap()).unwrap();
    let report = AttestationReport::parse(&response.report).unwrap();
    assert_eq!(report.launch_digest(), launch.spec.expected_digest);
    assert_eq!(report.report_data, [5; 64]);
    let instance = fs::read(launch.path("run/instance.json")).unwrap();
    assert_eq!(report.host_data, *Sha256Digest::of(&instance).as_bytes());
}

#[test]
fn a_tampered_kernel_keeps_the_hashes_table_and_so_the_digest() {
    let launch = Launch::with_fault(Fault::TamperedKernel);
    let (code, stderr) = launch.run("exits 0");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stderr.contains("SIMULATION: playing a hostile host"),
        "{stderr}"
    );
    assert!(
        stderr.contains("launch digest is the expected one"),
        "{stderr}"
    );
    let tampered = fs::read(launch.path("run/uki-tampered.efi")).unwrap();
    assert_eq!(differing_bytes(&tampered, &launch.uki), 1);
    let table = fs::read(launch.path("run/hashes.bin")).unwrap();
    assert_eq!(
        KernelHashes::parse_table(&table).unwrap().kernel,
        Sha256Digest::of(&launch.uki)
    );
}

#[test]
fn a_rehashed_tampered_kernel_changes_the_digest() {
    let launch = Launch::with_fault(Fault::TamperedKernelRehashed);
    let (code, stderr) = launch.run("exits 0");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stderr.contains("SIMULATION: playing a hostile host"),
        "{stderr}"
    );
    assert!(stderr.contains("LAUNCH DIGEST DIFFERS"), "{stderr}");
    let tampered = fs::read(launch.path("run/uki-tampered.efi")).unwrap();
    assert_eq!(differing_bytes(&tampered, &launch.uki), 1);
    let table = fs::read(launch.path("run/hashes.bin")).unwrap();
    assert_eq!(
        KernelHashes::parse_table(&table).unwrap().kernel,
        Sha256Digest::of(&tampered)
    );
}

fn differing_bytes(a: &[u8], b: &[u8]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

#[test]
fn a_changed_artifact_is_refused_before_anything_starts() {
    for name in ["uki.efi", "firmware.fd"] {
        let launch = Launch::new(Tee::Snp);
        let path = launch.path("artifact").join(name);
        let mut content = fs::read(&path).unwrap();
        content[0] ^= 1;
        fs::write(&path, content).unwrap();
        let (code, stderr) = launch.run("exits 0");
        assert_eq!(code, Some(1), "{stderr}");
        assert!(
            stderr.contains(name) && stderr.contains("the wrong image"),
            "{stderr}"
        );
        assert!(!stderr.contains("starting QEMU"), "{stderr}");
    }
}

#[test]
fn hardware_with_a_fault_is_refused() {
    let mut launch = Launch::with_fault(Fault::TamperedKernelRehashed);
    launch.spec.shape.tee = Tee::Snp;
    let (code, stderr) = launch.run("exits 0");
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("hardware is never simulated"), "{stderr}");
    assert!(!stderr.contains("starting QEMU"), "{stderr}");
}
