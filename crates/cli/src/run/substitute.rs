//! Another workload or boot kit than the MeasuredImage names, for an author who
//! has just built one.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use assay_crds::v1alpha1::MeasuredImage;
use assay_crds::v1alpha1::measured_image::ImageByDigest;
use assay_image::recipe::PinnedReference;
use assay_registry::{is_layout, list_layout};
use assay_tee::Sha256Digest;

use super::say;
use crate::inputs::Layouts;
use crate::objects::full_name;

/// An image by reference, or in an OCI layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Substitute {
    Registry(PinnedReference),
    Layout {
        directory: PathBuf,
        name: Option<String>,
    },
}

impl FromStr for Substitute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(reference) = text.parse() {
            return Ok(Self::Registry(reference));
        }
        let layout = |directory: &str, name: Option<&str>| Self::Layout {
            directory: directory.into(),
            name: name.map(str::to_owned),
        };
        if Path::new(text).is_dir() {
            return Ok(layout(text, None));
        }
        match text.rsplit_once(':') {
            Some((directory, name)) if Path::new(directory).is_dir() && !name.is_empty() => {
                Ok(layout(directory, Some(name)))
            }
            _ => Err(
                "must be host/repository@sha256:…, or the directory of an OCI layout: DIR or \
                 DIR:NAME"
                    .to_owned(),
            ),
        }
    }
}

impl Substitute {
    /// The reference, and the layout that stands for its registry. An image of a
    /// layout is known by the repository that it takes the place in.
    fn resolve(&self, original: &str) -> Result<(PinnedReference, Option<&Path>)> {
        match self {
            Self::Registry(reference) => Ok((reference.clone(), None)),
            Self::Layout { directory, name } => {
                let digest = digest_of(directory, name.as_deref())?;
                let original: PinnedReference =
                    original.parse().with_context(|| original.to_owned())?;
                let reference = PinnedReference::new(original.repository(), digest)?;
                Ok((reference, Some(directory)))
            }
        }
    }
}

fn digest_of(directory: &Path, name: Option<&str>) -> Result<Sha256Digest> {
    let shown = directory.display();
    ensure!(
        is_layout(directory),
        "{shown} is no OCI layout; `docker buildx build -o type=oci,tar=false,dest=DIR` and \
         `skopeo copy … oci:DIR` write one"
    );
    let images = list_layout(directory)?;
    let names: Vec<&str> = images.iter().filter_map(|(n, _)| n.as_deref()).collect();
    let meant: Vec<Sha256Digest> = images
        .iter()
        .filter(|(other, _)| name.is_none() || other.as_deref() == name)
        .map(|(_, digest)| *digest)
        .collect();
    match (meant.as_slice(), name) {
        ([digest], _) => Ok(*digest),
        (_, None) => bail!(
            "{shown} holds {} images ({}); say which with {shown}:NAME",
            images.len(),
            names.join(", ")
        ),
        (meant, Some(name)) => bail!(
            "{shown} holds {} images called {name}; there are {}",
            meant.len(),
            names.join(", ")
        ),
    }
}

/// Puts the substitutes into the image, and returns the layouts that they are in.
pub(super) fn apply<'a>(
    image: &mut MeasuredImage,
    rootfs: Option<&'a Substitute>,
    kit: Option<&'a Substitute>,
    layouts: Layouts<'a>,
) -> Result<Layouts<'a>> {
    if rootfs.is_none() && kit.is_none() {
        return Ok(layouts);
    }
    let name = full_name(&image.metadata);
    let build = image.spec.source.build.as_mut().with_context(|| {
        format!(
            "MeasuredImage {name}: spec.source.type is OCI, so --rootfs and --kit replace nothing"
        )
    })?;
    let place = |option: &str, what: &mut ImageByDigest, with: &'a Substitute| {
        let (reference, layout) = with
            .resolve(&what.image)
            .with_context(|| option.to_owned())?;
        what.image = reference.to_string();
        say(
            "instead",
            format_args!("{option} {reference}, and not what MeasuredImage {name} names"),
        );
        anyhow::Ok(layout)
    };
    let mut layouts = layouts;
    if let Some(rootfs) = rootfs {
        layouts.rootfs = place("--rootfs", &mut build.rootfs, rootfs)?;
    }
    if let Some(kit) = kit {
        layouts.boot_kit = place("--kit", &mut build.boot_kit, kit)?;
    }
    Ok(layouts)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use assay_image::oci::{ImageOptions, Layer, OciImage};
    use assay_image::tarball::{Owner, TarBuilder};
    use assay_registry::LayoutWriter;

    use super::*;
    use crate::objects::Objects;

    const REFERENCE: &str = "registry.example/web@sha256:\
        1111111111111111111111111111111111111111111111111111111111111111";

    fn image(content: &[u8]) -> OciImage {
        let mut tar = TarBuilder::new();
        tar.file("x", 0o644, Owner::ROOT, content.to_vec());
        OciImage::assemble(ImageOptions::default(), &[Layer::tar(tar.finish())]).unwrap()
    }

    fn measured() -> MeasuredImage {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart");
        Objects::load(&directory).unwrap().images.remove(0)
    }

    #[test]
    fn an_image_takes_the_place_of_the_one_that_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let (web, kit) = (image(b"web"), image(b"kit"));
        let mut layout = LayoutWriter::create(directory.path()).unwrap();
        layout.add("web", &web).unwrap();
        let only: Substitute = path.parse().unwrap();
        let applied = |substitute: &Substitute| {
            let mut image = measured();
            let layouts = apply(&mut image, Some(substitute), None, Layouts::default());
            let layouts = layouts.map_err(|error| format!("{error:#}"))?;
            let layout = layouts.rootfs.map(Path::to_owned);
            Ok::<_, String>((image.spec.source.build.unwrap().rootfs.image, layout))
        };
        let expected = format!("registry.example/quickstart/web@{}", web.manifest_digest);
        let in_layout = Some(directory.path().to_owned());
        assert_eq!(applied(&only), Ok((expected.clone(), in_layout.clone())));

        layout.add("kit", &kit).unwrap();
        let error = applied(&only).unwrap_err();
        assert!(
            error.contains("holds 2 images (web, kit); say which"),
            "{error}"
        );
        let named = format!("{path}:web").parse().unwrap();
        assert_eq!(applied(&named), Ok((expected, in_layout)));
        let other = format!("{path}:other").parse().unwrap();
        let error = applied(&other).unwrap_err();
        assert!(
            error.contains("0 images called other; there are web, kit"),
            "{error}"
        );

        let pulled = REFERENCE.parse().unwrap();
        assert_eq!(applied(&pulled), Ok((REFERENCE.to_owned(), None)));
        fs::remove_file(directory.path().join("oci-layout")).unwrap();
        let error = applied(&only).unwrap_err();
        assert!(error.contains("is no OCI layout"), "{error}");
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for text in ["registry.example/web:latest", "/nonexistent", "/tmp:", ""] {
            assert!(text.parse::<Substitute>().is_err(), "{text}");
        }
    }
}
