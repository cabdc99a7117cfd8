//! `assay policy` as a person uses it, and OpenSSL in the place of a hardware
//! security module and of a verifier without assay.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use assay_tee::{LaunchDigest, Sha256Digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Within the validity that `export` is asked for.
const FROM: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-01-15T00:00:00Z";

fn key(name: &str) -> String {
    format!("{}/../attest/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn assay(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .current_dir(directory)
        .arg("policy")
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn succeed(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = assay(directory, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    output.stdout
}

#[track_caller]
fn refuse(directory: &Path, code: i32, arguments: &[&str], parts: &[&str]) {
    let output = assay(directory, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

/// A List, as `kubectl get measuredimages,attestationpolicies -o json` prints it.
fn objects(snp_minimum: u8, state: &str) -> Value {
    let file = |path: &str, digit: &str| {
        json!({
            "path": path,
            "sha256": format!("sha256:{}", digit.repeat(32)),
            "sizeBytes": 4096,
        })
    };
    let reference = format!("registry.example/web@sha256:{}", "11".repeat(32));
    json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [{
            "apiVersion": "assay.dev/v1alpha1",
            "kind": "MeasuredImage",
            "metadata": {"name": "web-1", "namespace": "shop", "generation": 2},
            "spec": {
                "source": {"type": "OCI", "oci": {"reference": reference}},
                "lifecycle": {"state": state},
            },
            "status": {
                "observedGeneration": 2,
                "artifact": {
                    "reference": reference,
                    "uki": file("uki.efi", "aa"),
                    "firmware": file("firmware.fd", "bb"),
                },
                "launchDigests": [{
                    "id": "ovmf-bbbbbbbbbbbb.EPYC-Genoa.2.0x1.SNP",
                    "firmware": "ovmf-bbbbbbbbbbbb",
                    "cpuModel": "EPYC-Genoa",
                    "vcpus": 2,
                    "guestFeatures": "0x1",
                    "tee": "SNP",
                    "digest": format!("sha384:{}", "22".repeat(48)),
                    "state": "Accepted",
                }],
            },
        }, {
            "apiVersion": "assay.dev/v1alpha1",
            "kind": "AttestationPolicy",
            "metadata": {"name": "strict", "namespace": "shop"},
            "spec": {
                "tees": ["SNP"],
                "snp": {"products": [{
                    "name": "Genoa",
                    "minimumTCB":
                        {"bootLoader": 10, "tee": 0, "snp": snp_minimum, "microcode": 84},
                }]},
                "release": [{"resource": "password"}],
            },
        }],
    })
}

fn with_objects() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| {
        fs::write(directory.path().join(name), value.to_string()).unwrap();
    };
    write("objects.json", &objects(25, "Active"));
    write("older.json", &objects(24, "Active"));
    write("revoked.json", &objects(25, "Revoked"));
    directory
}

fn export(directory: &Path, private: &str, name: &str) {
    let arguments = ["export", "objects.json", "--not-before", FROM, "--key"];
    let bundle = succeed(directory, &[&arguments[..], &[&key(private)]].concat());
    fs::write(directory.join(name), bundle).unwrap();
}

#[test]
fn what_is_exported_comes_back_as_strict() {
    let directory = with_objects();
    let path = directory.path();
    export(path, "p384.sec1.pem", "bundle.json");
    let public = key("p384.public.pem");
    let import = ["import", "bundle.json", "--key", &public, "--now", NOW];
    let yaml = succeed(path, &import);
    fs::write(path.join("imported.yaml"), &yaml).unwrap();
    succeed(path, &["diff", "objects.json", "imported.yaml"]);
    succeed(path, &["diff", "bundle.json", "imported.yaml"]);
    let yaml = String::from_utf8(yaml).unwrap();
    assert!(!yaml.contains("password"), "{yaml}");

    // The same from standard input, byte for byte: signatures are deterministic.
    let private = key("p384.sec1.pem");
    let mut child = Command::new(env!("CARGO_BIN_EXE_assay"))
        .args([
            "policy",
            "export",
            "-",
            "--not-before",
            FROM,
            "--key",
            &private,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = fs::read(path.join("objects.json")).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let again = child.wait_with_output().unwrap();
    assert_eq!(again.stdout, fs::read(path.join("bundle.json")).unwrap());
}

#[test]
fn nothing_is_imported_that_is_not_believed() {
    let directory = with_objects();
    let path = directory.path();
    export(path, "p384.sec1.pem", "bundle.json");
    let (p256, p384) = (key("p256.public.pem"), key("p384.public.pem"));
    let import = |key, now| ["import", "bundle.json", "--key", key, "--now", now];
    refuse(
        path,
        1,
        &import(&p256, NOW),
        &["none of the given keys", "hint"],
    );
    refuse(
        path,
        1,
        &import(&p384, "2027-01-01T00:00:00Z"),
        &["notAfter", "expired"],
    );
    refuse(
        path,
        1,
        &import(&p384, "2025-01-01T00:00:00Z"),
        &["notBefore"],
    );
    refuse(
        path,
        1,
        &["import", "objects.json", "--key", &p384],
        &["is no bundle"],
    );
    refuse(path, 2, &["import", "bundle.json"], &["--key"]);
    let both = [
        &import(&p384, NOW)[..],
        &["--key", &p256, "--threshold", "2"],
    ]
    .concat();
    refuse(path, 1, &both, &["1 of the given keys signed"]);
    export(path, "p256.sec1.pem", "second.json");
    succeed(path, &[&both[..], &["second.json"]].concat());
}

#[test]
fn export_says_what_is_missing() {
    let directory = with_objects();
    let path = directory.path();
    refuse(path, 1, &["export", "objects.json"], &["--key is missing"]);
    let public = key("p384.public.pem");
    refuse(
        path,
        1,
        &["export", "objects.json", "--key", &public],
        &["public key"],
    );
    let two = ["export", "objects.json", "older.json", "--unsigned"];
    refuse(path, 1, &two, &["several AttestationPolicies", "--policy"]);
    let unknown = ["export", "objects.json", "--unsigned", "--image", "web-9"];
    refuse(path, 1, &unknown, &["--image web-9"]);
    fs::write(path.join("pod.yaml"), "apiVersion: v1\nkind: Pod\n").unwrap();
    refuse(
        path,
        1,
        &["export", "pod.yaml", "--unsigned"],
        &["kind Pod"],
    );
    let items = objects(25, "Active")["items"].clone();
    fs::write(path.join("image.yaml"), items[0].to_string()).unwrap();
    refuse(
        path,
        1,
        &["export", "image.yaml", "--unsigned"],
        &["no AttestationPolicy"],
    );
    let mut stale = objects(25, "Active");
    stale["items"][0]["metadata"]["generation"] = json!(3);
    fs::write(path.join("stale.json"), stale.to_string()).unwrap();
    refuse(
        path,
        1,
        &["export", "stale.json", "--unsigned"],
        &["observedGeneration"],
    );
}

#[test]
fn diff_names_what_differs_and_exits_like_diff() {
    let directory = with_objects();
    let path = directory.path();
    assert_eq!(
        succeed(path, &["diff", "objects.json", "objects.json"]),
        b""
    );
    let lower = assay(path, &["diff", "objects.json", "older.json"]);
    assert_eq!(lower.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(lower.stdout).unwrap(),
        "policy.snp.products[Genoa].minimumTCB.snp: A has 25, B has 24\n"
    );
    let revoked = assay(path, &["diff", "revoked.json", "objects.json", "--json"]);
    assert_eq!(revoked.status.code(), Some(1));
    let revoked: Value = serde_json::from_slice(&revoked.stdout).unwrap();
    assert_eq!(revoked[0]["acceptedBy"], "B");
    assert_eq!(revoked[0]["digest"], format!("sha384:{}", "22".repeat(48)));
    assert_eq!(revoked[1]["field"], "images[web-1].state");
    refuse(
        path,
        2,
        &["diff", "objects.json", "none.json"],
        &["none.json"],
    );
}

/// What was derived some time ago, against what would be derived now.
#[test]
fn diff_reads_what_other_verifiers_have() {
    let directory = with_objects();
    let path = directory.path();
    for form in ["rvps", "rvps-message", "corim"] {
        let derived = succeed(
            path,
            &["export", "objects.json", "--format", form, "--unsigned"],
        );
        fs::write(path.join(form), derived).unwrap();
        for pair in [["objects.json", form], [form, "objects.json"], [form, form]] {
            let diff = ["diff", pair[0], pair[1]];
            assert_eq!(succeed(path, &diff), b"", "{pair:?}");
        }
        let older = assay(path, &["diff", form, "older.json"]);
        assert_eq!(older.status.code(), Some(1));
        let older = String::from_utf8(older.stdout).unwrap();
        let expected = if form == "corim" {
            // The profile's one number, with SNP 25 and 24 in its middle.
            "measurement 7.svn: A has "
        } else {
            "snp_snp_svn: A has \"25 to 255\", B has \"24 to 255\"\n"
        };
        assert!(older.contains(expected), "{form}: {older}");
    }
    let digest = format!("sha384:{}", "22".repeat(48));
    let values = fs::read_to_string(path.join("rvps")).unwrap();
    let values = values.replace(&"22".repeat(48), &"23".repeat(48));
    fs::write(path.join("other"), &values).unwrap();
    let other = assay(path, &["diff", "objects.json", "other"]);
    let other = String::from_utf8(other.stdout).unwrap();
    assert!(
        other.contains(&format!("only A accepts Snp {digest}\n")),
        "{other}"
    );
    assert!(other.contains("only B accepts Snp sha384:2323"), "{other}");

    // When it ends counts where both say so.
    let from = ["--not-before", FROM, "--unsigned"];
    let statement = succeed(path, &[&["export", "objects.json"][..], &from].concat());
    fs::write(path.join("statement.json"), statement).unwrap();
    let later = assay(path, &["diff", "statement.json", "corim"]);
    let later = String::from_utf8(later.stdout).unwrap();
    assert!(later.starts_with("validity: A has"), "{later}");
    assert_eq!(later.lines().count(), 1);
    // A signature changes nothing of what it says.
    let signed = ["export", "statement.json", "--format", "corim", "--key"];
    let signed = succeed(path, &[&signed[..], &[&key("p256.sec1.pem")]].concat());
    fs::write(path.join("signed"), signed).unwrap();
    assert_eq!(succeed(path, &["diff", "statement.json", "signed"]), b"");

    fs::write(path.join("rvps-damaged"), values.replace("2323", "x")).unwrap();
    let twice = values.replace("snp_bootloader", "snp_microcode");
    fs::write(path.join("rvps-twice"), twice).unwrap();
    let corim = fs::read(path.join("corim")).unwrap();
    fs::write(path.join("corim-damaged"), &corim[..corim.len() / 2]).unwrap();
    for (a, b, words) in [
        ("rvps", "corim", "compare either with the statement"),
        ("rvps", "rvps-damaged", "no hexadecimal SHA-384"),
        ("corim", "corim-damaged", "cannot read the CoRIM"),
        ("rvps-twice", "rvps", "snp_microcode is there twice"),
    ] {
        refuse(path, 2, &["diff", a, b], &[words]);
    }
    refuse(
        path,
        1,
        &["export", "rvps", "--unsigned"],
        &["give the statement"],
    );
}

#[test]
fn trustee_and_veraison_get_their_files() {
    let directory = with_objects();
    let path = directory.path();
    let values = succeed(path, &["export", "objects.json", "--format", "rvps"]);
    let values: Value = serde_json::from_slice(&values).unwrap();
    let named = |name: &str| {
        let values = values.as_array().unwrap();
        values.iter().find(|value| value["name"] == name).unwrap()["value"].clone()
    };
    assert_eq!(named("snp_launch_measurement"), json!(["22".repeat(48)]));
    let message = succeed(
        path,
        &["export", "objects.json", "--format", "rvps-message"],
    );
    let message: Value = serde_json::from_slice(&message).unwrap();
    assert_eq!(message["type"], "sample");
    let p256 = key("p256.sec1.pem");
    let signed = [
        "export",
        "objects.json",
        "--format",
        "corim",
        "--key",
        &p256,
    ];
    assert_eq!(
        succeed(path, &signed).first(),
        Some(&0xd2),
        "tag 18: COSE_Sign1"
    );
    let rvps = ["export", "objects.json", "--format", "rvps", "--key", &p256];
    refuse(path, 1, &rvps, &["leave out --key"]);
    let none = ["export", "revoked.json", "--format", "rvps"];
    refuse(path, 1, &none, &["accepts no launch digest"]);

    // From a bundle too, once it is verified.
    export(path, "p256.sec1.pem", "bundle.json");
    let public = key("p256.public.pem");
    let derive = ["export", "bundle.json", "--format", "rvps"];
    refuse(path, 1, &derive, &["nobody verified", "--statement"]);
    let statement = [
        "import",
        "bundle.json",
        "--key",
        &public,
        "--now",
        NOW,
        "--statement",
    ];
    fs::write(path.join("statement.json"), succeed(path, &statement)).unwrap();
    succeed(path, &["export", "statement.json", "--format", "rvps"]);
}

fn openssl(directory: &Path, arguments: &[&str]) -> bool {
    Command::new("openssl")
        .current_dir(directory)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .success()
}

/// The key stays elsewhere, and a verifier needs nothing of ours.
#[test]
fn openssl_signs_and_verifies() {
    let directory = with_objects();
    let path = directory.path();
    for (curve, hash) in [("p256", "-sha256"), ("p384", "-sha384")] {
        let private = key(&format!("{curve}.sec1.pem"));
        let public = key(&format!("{curve}.public.pem"));
        let statement = succeed(
            path,
            &[
                "export",
                "objects.json",
                "--not-before",
                FROM,
                "--unsigned",
                "--to-be-signed",
                "pae",
            ],
        );
        fs::write(path.join("statement.json"), &statement).unwrap();
        assert!(openssl(
            path,
            &["dgst", hash, "-sign", &private, "-out", "signature", "pae"]
        ));
        let assemble = [
            "assemble",
            "--statement",
            "statement.json",
            "--public-key",
            &public,
            "--signature",
            "signature",
        ];
        let bundle = succeed(path, &assemble);
        fs::write(path.join("bundle.json"), &bundle).unwrap();
        succeed(
            path,
            &["import", "bundle.json", "--key", &public, "--now", NOW],
        );
        fs::write(
            path.join("statement.json"),
            [&statement[..], b"\n"].concat(),
        )
        .unwrap();
        refuse(path, 1, &assemble, &["does not belong", "canonical"]);

        // A CoRIM, whose header names the key.
        let corim = [
            "export",
            "objects.json",
            "--not-before",
            FROM,
            "--format",
            "corim",
        ];
        let elsewhere = [
            &corim[..],
            &[
                "--unsigned",
                "--to-be-signed",
                "tbs",
                "--public-key",
                &public,
            ],
        ];
        succeed(path, &elsewhere.concat());
        assert!(openssl(
            path,
            &["dgst", hash, "-sign", &private, "-out", "signature", "tbs"]
        ));
        let assemble = [
            "assemble",
            "--corim",
            "tbs",
            "--public-key",
            &public,
            "--signature",
            "signature",
        ];
        let signed = succeed(path, &assemble);
        let ours = succeed(path, &[&corim[..], &["--key", &private]].concat());
        // ECDSA has many signatures of a message; the rest is the same.
        let len = if curve == "p256" { 64 } else { 96 };
        let body = |signed: &[u8]| signed[..signed.len() - len].to_vec();
        assert_eq!(body(&signed), body(&ours));
        let other = if curve == "p256" { "p384" } else { "p256" };
        let mut of_another = assemble;
        let other = key(&format!("{other}.public.pem"));
        of_another[4] = &other;
        refuse(path, 1, &of_another, &["does not belong", "another key"]);
        let unnamed = ["--unsigned", "--to-be-signed", "tbs"];
        refuse(path, 1, &[&corim[..], &unnamed].concat(), &["--public-key"]);

        // What `assay` signs, as docs/reference-values.md verifies it.
        export(path, &format!("{curve}.pkcs8.pem"), "ours.json");
        let ours: Value =
            serde_json::from_slice(&fs::read(path.join("ours.json")).unwrap()).unwrap();
        let envelope = &ours["dsseEnvelope"];
        let decode = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
        let payload = decode(&envelope["payload"]);
        let payload_type = envelope["payloadType"].as_str().unwrap();
        let mut signed = format!(
            "DSSEv1 {} {payload_type} {} ",
            payload_type.len(),
            payload.len()
        )
        .into_bytes();
        signed.extend(payload);
        fs::write(path.join("pae"), &signed).unwrap();
        fs::write(
            path.join("signature"),
            decode(&envelope["signatures"][0]["sig"]),
        )
        .unwrap();
        let verify = [
            "dgst",
            hash,
            "-verify",
            &public,
            "-signature",
            "signature",
            "pae",
        ];
        assert!(openssl(path, &verify));
        fs::write(path.join("pae"), [&signed[..], b" "].concat()).unwrap();
        assert!(!openssl(path, &verify));
    }
}

/// The digest that a processor reported and signed, from a manifest's inputs.
#[test]
fn a_manifest_is_measured_for_the_shapes_that_are_named() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../measure/vectors/hardware.toml");
    let vectors: Value = toml::from_str(&fs::read_to_string(vectors).unwrap()).unwrap();
    let case = &vectors["case"][0];
    let sha256 = |name: &str| format!("sha256:{}", case[name].as_str().unwrap());
    let cmdline = format!("{}\0", case["cmdline"].as_str().unwrap());
    let pinned = format!("registry.example/web@sha256:{}", "11".repeat(32));
    let zero = format!("sha256:{}", "00".repeat(32));
    let manifest = json!({
        "version": 1,
        "uki": {
            "path": "uki.efi", "sha256": sha256("kernel_sha256"), "size": 1, "sections": [],
            "cmdline": case["cmdline"], "uname": "6.12", "pcrs": {},
        },
        "firmware": {"path": "firmware.fd", "sha256": zero, "size": 4096},
        "layout": "DmVerity",
        "rootDisk": {
            "path": "rootfs.img", "sha256": zero, "size": 8192,
            "root": {
                "type": "dmVerity", "serial": "assay-root", "blockSize": 4096, "dataBlocks": 1,
                "hashStartBlock": 1, "rootHash": zero, "salt": "",
            },
        },
        "measurement": {
            "firmware": case["firmware_inputs"],
            "kernelHashes": {
                "kernel": sha256("kernel_sha256"),
                "initrd": sha256("initrd_sha256"),
                "cmdline": Sha256Digest::of(cmdline.as_bytes()),
            },
        },
        "hardening": {},
        "inputs": {"rootfs": pinned, "bootKit": pinned, "agent": zero},
        "builder": {"version": "0.1.0"},
    });
    let directory = with_objects();
    let path = directory.path();
    fs::write(path.join("manifest.json"), manifest.to_string()).unwrap();
    let policy = objects(25, "Active")["items"][1].to_string();
    fs::write(path.join("policy.json"), policy).unwrap();
    let named = [
        "export",
        "manifest.json",
        "policy.json",
        "--unsigned",
        "--name",
        "web",
    ];
    refuse(path, 1, &named, &["--reference is missing"]);
    let named = [&named[..], &["--reference", &pinned]].concat();
    refuse(path, 1, &named, &["--vcpus", "--vcpu-type"]);
    let tagged = [&named[..6], &["--reference", "registry.example/web:v1"]].concat();
    refuse(path, 1, &tagged, &["names other bytes"]);
    let shape = [&named[..], &["--vcpus", "2", "--vcpu-type", "EPYC-v4"]].concat();
    let statement: Value = serde_json::from_slice(&succeed(path, &shape)).unwrap();
    let image = &statement["predicate"]["images"][0];
    assert_eq!(
        image["launchDigests"][0]["digest"],
        format!("sha384:{}", case["digest"].as_str().unwrap())
    );
    assert_eq!(
        image["launchDigests"][0]["id"],
        "ovmf-000000000000.EPYC-v4.2.0x1.SNP"
    );
    assert_eq!(image["parts"][2]["serial"], "assay-root");
    let igvm = [&shape[..], &["--boot", "DirectKernel,IGVM"]].concat();
    refuse(path, 1, &igvm, &["--boot IGVM", "the inputs have none"]);
    let mut with_igvm = manifest.clone();
    with_igvm["measurement"]["igvmDigest"] = LaunchDigest::new([7; 48]).to_string().into();
    fs::write(path.join("manifest.json"), with_igvm.to_string()).unwrap();
    let statement: Value = serde_json::from_slice(&succeed(path, &igvm)).unwrap();
    let rows = statement["predicate"]["images"][0]["launchDigests"].clone();
    let rows: Vec<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["id"].as_str().unwrap(), row["boot"].as_str()))
        .collect();
    assert_eq!(
        rows,
        [
            ("ovmf-000000000000.EPYC-v4.2.0x1.SNP", None),
            ("ovmf-000000000000.EPYC-v4.2.0x1.SNP.IGVM", Some("IGVM")),
        ]
    );
    let unknown = [&named[..], &["--vcpus", "2", "--vcpu-type", "i386"]].concat();
    refuse(path, 1, &unknown, &["--vcpu-type", "i386"]);
}
