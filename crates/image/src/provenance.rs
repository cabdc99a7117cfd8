//! Provenance of an artifact: an in-toto Statement (v1) with SLSA's provenance
//! predicate (v1).
//!
//! It says nothing that the artifact's manifest does not say, in the words that
//! policy engines read, and holds no time, so that the same build gives the same
//! statement. Who vouches for it is a matter of its signature.

use std::collections::BTreeMap;

use assay_tee::Sha256Digest;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use serde::Serialize;

use crate::hardening::parse_states;
use crate::manifest::Manifest;
use crate::recipe::{ImageSource, Output, PinnedReference, Recipe};

/// `_type` of an in-toto Statement, version 1.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// `predicateType` of SLSA's provenance, version 1.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// `buildType`: external parameters are a recipe, and the artifact is what
/// `assay build` makes of it.
pub const BUILD_TYPE: &str = "https://assay.dev/build/v1";
/// `builder.id` of a build that names none.
pub const UNNAMED_BUILDER: &str = "https://assay.dev/builder/unnamed";

/// A manifest that leads back to no recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the manifest's command line does not start with what its hardening says")]
pub struct NoRecipeError;

/// No statement can be made of a manifest.
#[derive(Debug, thiserror::Error)]
pub enum EncodeProvenanceError {
    /// Nobody can tell what was built.
    #[error("the manifest leads back to no recipe")]
    Recipe(#[source] NoRecipeError),
    /// The statement has no JSON form.
    #[error("cannot encode the statement")]
    Encode(#[source] EncodeCanonicalError),
}

/// The statement, in canonical JSON (RFC 8785).
///
/// `repository` and `digest` name the artifact's OCI image, `builder` who built
/// it.
///
/// # Errors
/// See [`EncodeProvenanceError`].
pub fn encode_provenance(
    manifest: &Manifest,
    repository: &str,
    digest: Sha256Digest,
    builder: &str,
) -> Result<Vec<u8>, EncodeProvenanceError> {
    let recipe = recipe_of(manifest, repository).map_err(EncodeProvenanceError::Recipe)?;
    let inputs = &manifest.inputs;
    let mut dependencies = vec![
        Dependency::image("rootfs", &inputs.rootfs),
        Dependency::image("bootKit", &inputs.boot_kit),
        Dependency {
            name: "agent",
            uri: None,
            digest: sha256(inputs.agent),
        },
    ];
    if let Some(git) = &inputs.git {
        dependencies.push(Dependency {
            name: "git",
            uri: Some(format!("git+{}", git.repository)),
            digest: [("gitCommit", git.commit.clone())].into(),
        });
    }
    let mut version = manifest.builder.codecs.clone();
    version.insert("assay".to_owned(), manifest.builder.version.clone());
    let file = |path: &str, digest: Sha256Digest| Subject {
        name: path.to_owned(),
        digest: sha256(digest),
    };
    let mut byproducts = vec![
        file(&manifest.uki.path, manifest.uki.sha256),
        file(&manifest.firmware.path, manifest.firmware.sha256),
    ];
    let disk = manifest.root_disk.as_ref();
    byproducts.extend(disk.map(|disk| file(&disk.path, disk.sha256)));
    encode_canonical(&Statement {
        type_: STATEMENT_TYPE,
        subject: [file(repository, digest)],
        predicate_type: PREDICATE_TYPE,
        predicate: Predicate {
            build_definition: BuildDefinition {
                build_type: BUILD_TYPE,
                external_parameters: ExternalParameters { recipe },
                internal_parameters: BTreeMap::new(),
                resolved_dependencies: dependencies,
            },
            run_details: RunDetails {
                builder: Builder {
                    id: builder,
                    version,
                },
                byproducts,
            },
        },
    })
    .map_err(EncodeProvenanceError::Encode)
}

/// The recipe that an artifact was built from, with `repository` as its output.
///
/// # Errors
/// For a manifest that contradicts itself.
pub fn recipe_of(manifest: &Manifest, repository: &str) -> Result<Recipe, NoRecipeError> {
    let hardening = parse_states(&manifest.hardening).ok_or(NoRecipeError)?;
    let extra = manifest.uki.cmdline.strip_prefix(&hardening.cmdline());
    let cmdline = match extra.ok_or(NoRecipeError)? {
        "" => None,
        extra => Some(extra.strip_prefix(' ').ok_or(NoRecipeError)?.to_owned()),
    };
    let image = |reference: &PinnedReference| ImageSource {
        image: reference.to_string(),
    };
    let disk = manifest.root_disk.as_ref();
    Ok(Recipe {
        version: Recipe::VERSION,
        rootfs: image(&manifest.inputs.rootfs),
        boot_kit: image(&manifest.inputs.boot_kit),
        layout: manifest.layout,
        compression: disk.map(|disk| disk.compression).unwrap_or_default(),
        hardening: hardening.to_recipe(),
        git: manifest.inputs.git.clone(),
        cmdline,
        uki: manifest.inputs.uki.clone(),
        output: Output {
            repository: repository.to_owned(),
        },
    })
}

/// An in-toto DigestSet.
type DigestSet = BTreeMap<&'static str, String>;

fn sha256(digest: Sha256Digest) -> DigestSet {
    [("sha256", digest.to_hex())].into()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statement<'a> {
    #[serde(rename = "_type")]
    type_: &'static str,
    subject: [Subject; 1],
    predicate_type: &'static str,
    predicate: Predicate<'a>,
}

#[derive(Serialize)]
struct Subject {
    name: String,
    digest: DigestSet,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Predicate<'a> {
    build_definition: BuildDefinition,
    run_details: RunDetails<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BuildDefinition {
    build_type: &'static str,
    external_parameters: ExternalParameters,
    internal_parameters: BTreeMap<&'static str, String>,
    resolved_dependencies: Vec<Dependency>,
}

#[derive(Serialize)]
struct ExternalParameters {
    recipe: Recipe,
}

#[derive(Serialize)]
struct Dependency {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uri: Option<String>,
    digest: DigestSet,
}

impl Dependency {
    fn image(name: &'static str, reference: &PinnedReference) -> Self {
        Self {
            name,
            uri: Some(format!("oci://{reference}")),
            digest: sha256(reference.digest()),
        }
    }
}

#[derive(Serialize)]
struct RunDetails<'a> {
    builder: Builder<'a>,
    byproducts: Vec<Subject>,
}

#[derive(Serialize)]
struct Builder<'a> {
    id: &'a str,
    version: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::artifact::build;
    use crate::artifact::tests::{initramfs_inputs, inputs, switched_off};
    use crate::hardening::Setting;
    use crate::recipe::GitSource;

    fn statement(manifest: &Manifest) -> Value {
        let digest = Sha256Digest::of(b"artifact");
        let bytes = encode_provenance(manifest, "registry.example/guest", digest, "urn:x");
        serde_json::from_slice(&bytes.unwrap()).unwrap()
    }

    #[test]
    fn a_statement_names_artifact_inputs_and_builder() {
        let mut manifest = build(&inputs()).unwrap().manifest;
        manifest.inputs.git = Some(GitSource {
            repository: "https://git.example/web".to_owned(),
            commit: "c".repeat(40),
        });
        let said = statement(&manifest);
        assert_eq!(said["_type"], STATEMENT_TYPE);
        assert_eq!(said["predicateType"], PREDICATE_TYPE);
        assert_eq!(said["subject"][0]["name"], "registry.example/guest");
        assert_eq!(
            said["subject"][0]["digest"]["sha256"],
            Sha256Digest::of(b"artifact").to_hex()
        );
        let definition = &said["predicate"]["buildDefinition"];
        let dependencies = definition["resolvedDependencies"].as_array().unwrap();
        let names: Vec<_> = dependencies
            .iter()
            .map(|it| it["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["rootfs", "bootKit", "agent", "git"]);
        assert_eq!(
            dependencies[0]["uri"],
            format!("oci://{}", manifest.inputs.rootfs)
        );
        assert_eq!(
            dependencies[2]["digest"]["sha256"],
            manifest.inputs.agent.to_hex()
        );
        assert_eq!(dependencies[3]["digest"]["gitCommit"], "c".repeat(40));
        assert_eq!(said["predicate"]["runDetails"]["builder"]["id"], "urn:x");
        let byproducts = said["predicate"]["runDetails"]["byproducts"]
            .as_array()
            .unwrap();
        assert_eq!(byproducts.len(), 3);
        assert_eq!(
            byproducts[0]["digest"]["sha256"],
            manifest.uki.sha256.to_hex()
        );
    }

    #[test]
    fn a_recipe_is_read_back_from_what_was_built() {
        let mut off = inputs();
        off.recipe = switched_off(Setting::Lockdown);
        let mut plain = inputs();
        plain.recipe.cmdline = plain.recipe.hardening.cmdline();
        for inputs in [inputs(), initramfs_inputs(), off, plain] {
            let manifest = build(&inputs).unwrap().manifest;
            let recipe = recipe_of(&manifest, &inputs.recipe.output_repository).unwrap();
            assert_eq!(recipe.validate().unwrap(), inputs.recipe);
        }
        let mut lie = build(&inputs()).unwrap().manifest;
        lie.uki.cmdline = "console=ttyS0".to_owned();
        assert_eq!(
            recipe_of(&lie, "registry.example/guest"),
            Err(NoRecipeError)
        );
    }
}
