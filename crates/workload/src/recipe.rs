//! The recipe of a MeasuredImage that is built.

use assay_crds::v1alpha1::measured_image::{self, BuildSource};
use assay_image::recipe::{Compression, ImageSource, Layout, Output, Recipe};

/// The recipe of a build.
pub fn build_recipe(source: &BuildSource) -> Recipe {
    Recipe {
        version: Recipe::VERSION,
        rootfs: ImageSource {
            image: source.rootfs.image.clone(),
        },
        boot_kit: ImageSource {
            image: source.boot_kit.image.clone(),
        },
        layout: match source.layout {
            measured_image::Layout::DmVerity => Layout::DmVerity,
            measured_image::Layout::Initramfs => Layout::Initramfs,
        },
        compression: match source.compression {
            measured_image::Compression::None => Compression::None,
            measured_image::Compression::Lz4hc => Compression::Lz4hc,
            measured_image::Compression::Zstd => Compression::Zstd,
        },
        cmdline: source.extra_cmdline.clone(),
        output: Output {
            repository: source.output.repository.clone(),
        },
    }
}
