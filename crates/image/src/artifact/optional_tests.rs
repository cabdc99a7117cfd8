//! Sections that a UKI has where somebody asks for them, from recipe to reader.

use super::tests::{inputs, kit, kit_files, recipe, secure_boot};
use super::*;
use crate::pcr_signature::tests::signer;
use crate::pcr_signature::{PcrSignatureSummary, PcrSignedBy, PcrSigner};
use crate::read::{ReadArtifactError, read_artifact_content};
use crate::recipe::Recipe;
use crate::uki::tests::{microcode, splash};

const OS_RELEASE: &str = "ID=web\n";

fn with_files() -> BuildInputs {
    let mut files = kit_files();
    let mut file = |path: &str, content: Bytes| {
        files.insert(path.to_owned(), content);
    };
    file("usr/lib/os-release", OS_RELEASE.into());
    file("usr/share/splash.bmp", splash());
    file("usr/lib/ucode.cpio", microcode(&["AuthenticAMD.bin"]));
    let recipe = Recipe {
        uki: UkiFiles {
            os_release: Some("/usr/lib/os-release".to_owned()),
            splash: Some("/usr/share/splash.bmp".to_owned()),
            microcode: Some("/usr/lib/ucode.cpio".to_owned()),
        },
        ..recipe()
    };
    BuildInputs {
        recipe: recipe.validate().unwrap(),
        boot_kit: kit(&files),
        ..inputs()
    }
}

fn pcrs(signer: &PcrSigner) -> Signers<'_> {
    Signers {
        secure_boot: None,
        pcrs: Some(signer),
    }
}

#[test]
fn files_of_the_boot_kit_become_sections_and_change_no_other() {
    let plain = build(&inputs()).unwrap().manifest;
    let artifact = build(&with_files()).unwrap();
    let manifest = &artifact.manifest;
    let added: Vec<_> = manifest
        .uki
        .sections
        .iter()
        .filter(|section| {
            let same = |it: &&Section| (&it.name, it.sha256) == (&section.name, section.sha256);
            plain.uki.sections.iter().find(same).is_none()
        })
        .map(|section| section.name.as_str())
        .collect();
    assert_eq!(added, [".osrel", ".splash", ".ucode"]);
    let sections = plain.uki.sections.len() + 3;
    assert_eq!(manifest.uki.sections.len(), sections);
    assert_eq!(manifest.root_disk, plain.root_disk);
    assert_ne!(manifest.measurement, plain.measurement);
    assert_ne!(manifest.uki.pcrs.get(&11), plain.uki.pcrs.get(&11));

    let content = artifact.content();
    let read = read_artifact_content(&content).unwrap();
    assert_eq!(read.manifest.inputs.uki, with_files().recipe.uki);
    let again = crate::provenance::recipe_of(manifest, "registry.example/guest").unwrap();
    assert_eq!(again.validate().unwrap(), with_files().recipe);

    // A manifest that is silent about one of them is not true.
    let mut silent = artifact.manifest.clone();
    silent.inputs.uki.microcode = None;
    let manifest = serde_json::to_vec(&silent).unwrap().into();
    let error = read_artifact_content(&ArtifactContent {
        manifest,
        ..content
    });
    let error = error.unwrap_err();
    assert!(
        matches!(
            error,
            ReadArtifactError::Untrue {
                field: "inputs.uki",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_file_that_the_kit_lacks_or_that_is_another_is_named() {
    let mut inputs = with_files();
    inputs.recipe.uki.splash = Some("/nowhere.bmp".to_owned());
    let error = build(&inputs).unwrap_err().to_string();
    assert_eq!(error, "uki.splash: the boot kit has no file /nowhere.bmp");
    inputs.recipe.uki.splash = Some("/usr/lib/os-release".to_owned());
    let error = build(&inputs).unwrap_err();
    let BuildError::Uki(source) = error else {
        panic!("{error}")
    };
    assert_eq!(source.to_string(), "section .splash: is no BMP image");
}

#[test]
fn signed_pcr_values_are_read_and_built_again() {
    let signer = signer(&["", "enter-initrd"]);
    let artifact = build_signed(&with_files(), pcrs(&signer)).unwrap();
    let content = artifact.content();
    let read = read_artifact_content(&content).unwrap();
    let signatures = read.manifest.uki.pcr_signatures.clone().unwrap();
    assert_eq!(signatures.key, signer.key.fingerprint());
    assert_eq!(signatures.phases, signer.phases);

    // The key is measured, the signatures are not.
    let nobody = PcrSigner {
        key: signer.key.clone(),
        phases: signer.phases.clone(),
        by: PcrSignedBy::Nobody,
    };
    let unsigned = build_signed(&with_files(), pcrs(&nobody)).unwrap();
    let pcr_11 = |artifact: &Artifact| artifact.manifest.uki.pcrs[&11];
    assert_eq!(pcr_11(&unsigned), pcr_11(&artifact));
    assert_ne!(pcr_11(&build(&with_files()).unwrap()), pcr_11(&artifact));
    assert_eq!(unsigned.manifest.uki.pcr_signatures, None);

    let again = |inputs: &BuildInputs| {
        build_signed_as(inputs, &content.uki, &signatures.phases)
            .unwrap()
            .content()
    };
    assert_eq!(again(&with_files()).uki, content.uki);
    assert_eq!(again(&with_files()).manifest, content.manifest);
    // They are not put to another UKI.
    let mut other = with_files();
    other.agent = Bytes::from_static(b"\x7fELF\x02\x01other");
    let unsigned = build_signed(&other, pcrs(&nobody)).unwrap().content();
    assert_eq!(again(&other).uki, unsigned.uki);

    // A manifest that names other phases, or none.
    for phases in [None, Some(vec![String::new()])] {
        let mut manifest = artifact.manifest.clone();
        manifest.uki.pcr_signatures = phases.map(|phases| PcrSignatureSummary {
            phases,
            ..signatures.clone()
        });
        let manifest = serde_json::to_vec(&manifest).unwrap().into();
        let error = read_artifact_content(&ArtifactContent {
            manifest,
            ..content.clone()
        });
        let error = error.unwrap_err();
        assert!(
            matches!(error, ReadArtifactError::PcrSignatures(_)),
            "{error}"
        );
    }
}

#[test]
fn secure_boot_signs_the_signatures_of_pcr_values_too() {
    let (image_signer, pcr_signer) = (crate::authenticode::tests::signer(), signer(&[""]));
    let both = Signers {
        pcrs: Some(&pcr_signer),
        ..secure_boot(&image_signer)
    };
    let content = build_signed(&inputs(), both).unwrap().content();
    let read = read_artifact_content(&content).unwrap();
    assert_eq!(read.manifest.uki.signers.len(), 1);
    let again = build_signed_as(&inputs(), &content.uki, &[String::new()]);
    assert_eq!(again.unwrap().content().uki, content.uki);
}
