//! The recipe of a MeasuredImage that is built.

use assay_crds::v1alpha1::measured_image::{self, BuildSource};
use assay_image::hardening::{Exception, Hardening, Setting};
use assay_image::recipe::{Compression, GitSource, ImageSource, Layout, Output, Recipe, UkiFiles};

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
        hardening: recipe_hardening(&source.hardening),
        git: source.git.as_ref().map(|git| GitSource {
            repository: git.repository.clone(),
            commit: git.commit.clone(),
        }),
        cmdline: source.extra_cmdline.clone(),
        uki: UkiFiles {
            os_release: source.uki.os_release.clone(),
            splash: source.uki.splash.clone(),
            microcode: source.uki.microcode.clone(),
        },
        output: Output {
            repository: source.output.repository.clone(),
        },
    }
}

fn recipe_hardening(hardening: &measured_image::Hardening) -> Hardening {
    use measured_image::HardeningSetting as Asked;

    let exceptions = hardening.exceptions.iter().map(|exception| Exception {
        setting: match exception.setting {
            Asked::PanicReboot => Setting::PanicReboot,
            Asked::Lockdown => Setting::Lockdown,
            Asked::ModuleSignatures => Setting::ModuleSignatures,
            Asked::InitOnAlloc => Setting::InitOnAlloc,
            Asked::ReadOnlyRoot => Setting::ReadOnlyRoot,
            Asked::NoExec => Setting::NoExec,
        },
        reason: exception.reason.clone(),
    });
    Hardening {
        exceptions: exceptions.collect(),
    }
}
