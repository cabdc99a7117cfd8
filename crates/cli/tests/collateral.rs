//! `assay collateral` and `assay verify --collateral` as a person uses them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use assay_attest::collateral::collateral_requests;
use assay_attest::{Evidence, TrustAnchors};
use assay_psp_sim::{
    Authority, KeyDistributionService, KeyTemplate, Processor, RevocationListTemplate,
};
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::{GuestPolicy, Product, Sha256Digest, TcbVersion};
use jiff::{Timestamp, ToSpan as _};
use tempfile::TempDir;

/// A report without certificates, and a directory of what it needs.
struct World {
    directory: TempDir,
    list: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let product = Product::Turin;
        let tcb = TcbVersion {
            fmc: Some(1),
            bootloader: 10,
            tee: 0,
            snp: 25,
            microcode: 200,
        };
        let now = Timestamp::now();
        let authority = Authority::generate(product, now - 24.hours()).unwrap();
        let chip = KeyTemplate::vcek(product, "chip", tcb);
        let chip = authority.issue_vcek(&chip).unwrap();
        let mut service = KeyDistributionService::new(
            &authority,
            RevocationListTemplate {
                this_update: now - 24.hours(),
                next_update: now + 2400.hours(),
                number: Some(7),
                revoked: vec![],
                critical_entries: false,
            },
        );
        service.publish(&chip).unwrap();

        let root = chip.chain().ark.clone();
        let processor = Processor::new(chip).unwrap();
        let launch = processor.launch_start(GuestPolicy::default()).unwrap();
        let guest = launch.launch_finish(Sha256Digest::of(b"instance")).unwrap();
        let request = ReportRequest::new([7; 64], 0).encode();
        let response = guest.extended_guest_request(&request).unwrap();
        let report = ReportResponse::parse(&response).unwrap().report.to_vec();

        let directory = TempDir::new().unwrap();
        let path = directory.path();
        fs::create_dir(path.join("bundle")).unwrap();
        fs::write(path.join("report.bin"), &report).unwrap();
        fs::write(path.join("root.der"), &root).unwrap();
        let anchors = TrustAnchors::with_simulated(Sha256Digest::of(&root));
        let mut list = Vec::new();
        for request in collateral_requests(&Evidence::new(report, Vec::new()), &anchors) {
            let (status, body) = service.respond(&request.path()).unwrap();
            assert_eq!(status, 200);
            if request.path().ends_with("/crl") {
                list.clone_from(&body);
            }
            fs::write(path.join("bundle").join(request.file_name()), body).unwrap();
        }
        Self { directory, list }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn assay(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_assay"))
            .current_dir(self.path())
            .args(arguments)
            .args(["--simulated-root", "root.der"])
            .output()
            .unwrap()
    }

    fn verify(&self, more: &[&str]) -> Output {
        let mut arguments = vec!["verify", "--report", "report.bin"];
        for option in ["--measurement", "--report-data", "--host-data"] {
            arguments.extend([option, "any"]);
        }
        arguments.extend(more);
        self.assay(&arguments)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_bundle_verifies_a_report_without_a_network() {
    let world = World::new();
    let without = world.verify(&[]);
    assert_eq!(without.status.code(), Some(3));
    assert!(text(&without.stderr).contains("EndorsementKeyMissing"));
    let with = world.verify(&["--collateral", "bundle"]);
    assert_eq!(with.status.code(), Some(0), "{}", text(&with.stdout));
    assert!(text(&with.stdout).contains("number 7"));

    let shown = world.assay(&["collateral", "show", "bundle"]);
    let shown = text(&shown.stdout);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(
        lines.iter().all(|line| line.contains(": valid, from")),
        "{shown}"
    );
    assert!(shown.contains("vcek-Turin.crl") && shown.contains("CRL number 7"));

    // A directory without a list is no reason to do without one.
    fs::remove_file(world.path().join("bundle/vcek-Turin.crl")).unwrap();
    let without = world.verify(&["--collateral", "bundle"]);
    assert!(text(&without.stderr).contains("RevocationListMissing"));
}

#[test]
fn a_bundle_is_whole_or_not_written() {
    let world = World::new();
    let bundle = |more: &[&str]| {
        let common = ["collateral", "bundle", "--output", "carry"];
        world.assay(&[&common, more].concat())
    };
    // What a report needs may be spread.
    let (here, other) = (world.path().join("bundle"), world.path().join("other"));
    fs::create_dir(&other).unwrap();
    for name in ["vcek-Turin.crl", "vcek-Turin-chain.pem"] {
        fs::copy(here.join(name), other.join(name)).unwrap();
    }
    fs::remove_file(here.join("vcek-Turin.crl")).unwrap();
    fs::write(here.join("notes.txt"), "of no meaning").unwrap();

    let lacking = bundle(&["--from", "bundle", "--report", "report.bin"]);
    assert_eq!(lacking.status.code(), Some(1));
    let said = text(&lacking.stderr);
    assert!(said.contains("vcek-Turin.crl, for report.bin"), "{said}");
    assert!(!world.path().join("carry").exists());

    let both = ["--from", "bundle", "--from", "other"];
    let whole = bundle(&[&both[..], &["--report", "report.bin"]].concat());
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    assert_eq!(text(&whole.stdout).lines().count(), 3);
    let with = world.verify(&["--collateral", "carry"]);
    assert_eq!(with.status.code(), Some(0), "{}", text(&with.stdout));

    // What has ended is of no use to anybody.
    let ended = [&both[..], &["--now", "2100-01-01T00:00:00Z"]].concat();
    let said = text(&bundle(&ended).stderr);
    assert!(said.contains("nothing that is valid"), "{said}");
}

#[test]
fn what_a_bundle_lacks_is_fetched_and_checked() {
    let world = World::new();
    let file = world.path().join("bundle/vcek-Turin.crl");
    fs::remove_file(&file).unwrap();
    for (body, accepted) in [(b"not a list".to_vec(), false), (world.list.clone(), true)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
            text(&request[..read])
        });
        let fetch = ["collateral", "fetch", "--report", "report.bin"];
        let fetch = [&fetch[..], &["--output", "bundle", "--url", &url]].concat();
        let output = world.assay(&fetch);
        let asked = answer.join().unwrap();
        assert!(
            asked.starts_with("GET /vcek/v1/Turin/crl HTTP/1.1"),
            "{asked}"
        );
        assert_eq!(
            output.status.success(),
            accepted,
            "{}",
            text(&output.stderr)
        );
        assert_eq!(file.exists(), accepted);
        if !accepted {
            assert!(text(&output.stderr).contains("RevocationListInvalid"));
        }
    }
}

#[test]
fn a_chip_that_cannot_be_is_refused_before_anything_is_fetched() {
    let world = World::new();
    let mut arguments = vec!["collateral", "fetch", "--product", "Turin"];
    arguments.extend(["--chip", "01", "--tcb", "1.2.3.4.5", "--output", "bundle"]);
    let output = world.assay(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--chip and --tcb"));
}
