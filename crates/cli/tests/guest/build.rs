use std::fs;
use std::path::Path;

use assay_broker::manifests::{Object, parse_document};
use assay_tee::canonical::encode_canonical;
use assay_workload::recipe::build_recipe;

use crate::registry::Registry;
use crate::{assay, assert_well, prepared, stderr};

/// The recipe that a build Job gets.
fn recipe(yaml: &str) -> Vec<u8> {
    let document = serde_saphyr::from_str(yaml).unwrap();
    let Some(Object::Image(image)) = parse_document(document, 1).unwrap().pop() else {
        panic!("no MeasuredImage: {yaml}")
    };
    encode_canonical(&build_recipe(image.spec.source.build.as_ref().unwrap())).unwrap()
}

pub(crate) fn same_files(a: &Path, b: &Path) {
    let names = |directory: &Path| {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for name in ["firmware.fd", "manifest.json", "rootfs.img", "uki.efi"] {
        assert!(names(a).contains(&name.into()), "{name}");
    }
    assert_eq!(names(a), names(b));
    for name in names(a) {
        let same = fs::read(a.join(&name)).unwrap() == fs::read(b.join(&name)).unwrap();
        assert!(same, "{}", name.display());
    }
}

#[test]
fn a_person_builds_what_the_job_builds_and_pulls_it_once() {
    let Some(prepared) = prepared("build -f") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    prepared.layout(&path("layout"));
    let registry = Registry::serve(&path("layout"));
    let host = registry.address.to_string();
    let yaml = prepared.image_yaml(&host);
    fs::write(path("image.yaml"), &yaml).unwrap();
    fs::write(path("recipe.json"), recipe(&yaml)).unwrap();
    let build = |output: &str| {
        let mut command = assay();
        command
            .env("XDG_CACHE_HOME", path("cache"))
            .args(["build", "--progress", "plain", "--plain-http", &host])
            .arg("--agent")
            .arg(&prepared.agent)
            .arg("-o")
            .arg(path(output));
        command
    };

    let by_person = build("person").arg("-f").arg(path("image.yaml")).output();
    let by_person = by_person.unwrap();
    assert_well(&by_person);
    assert!(registry.requests() > 0);
    let by_job = build("job")
        .arg("--recipe")
        .arg(path("recipe.json"))
        .output();
    let by_job = by_job.unwrap();
    assert_well(&by_job);
    assert!(registry.requests() > 0, "a Job has no cache of a person");
    same_files(&path("person"), &path("job"));
    assert_eq!(by_person.stdout, by_job.stdout);
    let reference = String::from_utf8(by_person.stdout).unwrap();
    let repository = "registry.example/quickstart/web-measured@sha256:";
    assert!(reference.starts_with(repository), "{reference}");

    let again = build("again").arg("-f").arg(path("image.yaml")).output();
    assert_well(&again.unwrap());
    assert_eq!(registry.requests(), 0, "everything was in the cache");
    same_files(&path("person"), &path("again"));

    // What broke off goes on, and what was damaged on the way is not believed.
    let layer = prepared.web.layers[0].digest().to_hex();
    let blob = path("cache/assay/oci/blobs/sha256").join(&layer);
    let content = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    let mut partial = content[..content.len() / 2].to_vec();
    partial[0] ^= 1;
    fs::write(path("cache/assay/oci/partial").join(&layer), partial).unwrap();
    let resumed = build("resumed").arg("-f").arg(path("image.yaml")).output();
    assert_well(&resumed.unwrap());
    assert!(registry.requests() > 0);
    assert!(fs::read(&blob).unwrap() == content);
}

#[test]
fn what_cannot_be_built_is_named_with_the_remedy() {
    let image = fs::read_to_string(crate::quickstart().join("image.yaml")).unwrap();
    let oci = "apiVersion: assay.dev/v1alpha1\nkind: MeasuredImage\nmetadata: {name: pulled}\n\
               spec: {source: {type: OCI, oci: {reference: \"r.example/web@sha256:11\"}}}\n";
    let oci = oci.replace("sha256:11", &format!("sha256:{}", "1".repeat(64)));
    let both = format!("{image}---\n{oci}");
    let directory = tempfile::tempdir().unwrap();
    for (text, name, words) in [
        (
            &image,
            None,
            "MeasuredImage quickstart/web-1: spec.source.build.rootfs.image: the digest of zeros",
        ),
        (
            &both,
            None,
            "there are several: quickstart/web-1, default/pulled; choose one MeasuredImage with \
             --name",
        ),
        (
            &both,
            Some("pulled"),
            "MeasuredImage default/pulled: spec.source.type is OCI: there is nothing to build; \
             fetch it with `assay pull r.example/web@sha256:1111",
        ),
        (
            &image.replace("bootKit", "bootkit"),
            None,
            "MeasuredImage quickstart/web-1: spec.source.build",
        ),
        (
            &"apiVersion: v1\nkind: Namespace\n".to_owned(),
            None,
            "there is no MeasuredImage; give a file that holds one",
        ),
    ] {
        let file = directory.path().join("image.yaml");
        fs::write(&file, text).unwrap();
        let mut command = assay();
        command.args(["build", "-o", "nowhere", "-f"]).arg(&file);
        let output = command
            .args(name.map(|name| ["--name", name]).into_iter().flatten())
            .output()
            .unwrap();
        assert!(!output.status.success());
        let said = stderr(&output);
        assert!(said.contains(words), "{words}: {said}");
    }
}

/// With a key at hand in one step, or with one elsewhere in three.
#[test]
fn signed_pcr_values_are_the_same_wherever_the_key_is() {
    let Some(prepared) = prepared("build --pcr-private-key") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    prepared.layout(&path("layout"));
    fs::write(path("image.yaml"), prepared.image_yaml("registry.invalid")).unwrap();
    let key = format!(
        "{}/../image/tests/keys/secure-boot.key.pem",
        env!("CARGO_MANIFEST_DIR")
    );
    let build = |output: &str, arguments: &[&str]| {
        let mut command = assay();
        command
            .current_dir(directory.path())
            .args(["build", "-f", "image.yaml", "--progress", "plain"])
            .args(["--rootfs-layout", "layout", "--kit-layout", "layout"])
            .arg("--agent")
            .arg(&prepared.agent)
            .args(["-o", output])
            .args(arguments);
        command.output().unwrap()
    };
    let run = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        let output = command
            .current_dir(directory.path())
            .args(arguments)
            .output()
            .unwrap();
        assert_well(&output);
        output
    };
    let openssl = |arguments: &[&str]| run("openssl", arguments);
    let assay_program = env!("CARGO_BIN_EXE_assay");
    let phases = ["--pcr-phase", "", "--pcr-phase", "enter-initrd"];
    let here = [&["--pcr-private-key", &key], &phases[..]].concat();
    assert_well(&build("here", &here));

    openssl(&["pkey", "-in", &key, "-pubout", "-out", "public.pem"]);
    let public = [&["--pcr-public-key", "public.pem"], &phases[..]].concat();
    assert_well(&build("unsigned", &public));
    for (phase, todo, signature) in [("", "todo-0", "sig-0"), ("enter-initrd", "todo-1", "sig-1")] {
        let uki = "unsigned/uki.efi";
        let policy = ["pcrs", uki, "--phase", phase, "--policy-digest", todo];
        run(assay_program, &policy);
        openssl(&["dgst", "-sha256", "-sign", &key, "-out", signature, todo]);
    }
    let given = ["--pcr-signature", "sig-0", "--pcr-signature", "sig-1"];
    assert_well(&build("there", &[&public[..], &given].concat()));
    same_files(&path("here"), &path("there"));
    let pcrs = |artifact: &str| {
        let output = run(assay_program, &["pcrs", &format!("{artifact}/uki.efi")]);
        let text = String::from_utf8(output.stdout).unwrap();
        let pcr_11 = text.lines().find(|line| line.starts_with("11:"));
        pcr_11.unwrap().to_owned()
    };
    assert_eq!(pcrs("here"), pcrs("unsigned"));

    let reversed = ["--pcr-signature", "sig-1", "--pcr-signature", "sig-0"];
    let refused = build("refused", &[&public[..], &reversed].concat());
    assert_eq!(refused.status.code(), Some(65));
    let said = stderr(&refused);
    assert!(
        said.contains("the signature for phase \"\" is not"),
        "{said}"
    );
    assert!(!path("refused").exists());

    let verified = run(
        assay_program,
        &["verify-image", "here", "--inputs", "layout"],
    );
    let said = String::from_utf8(verified.stdout).unwrap();
    assert!(said.starts_with("reproduced"), "{said}");
    assert!(said.contains("PCR values by key sha256:"), "{said}");
}
