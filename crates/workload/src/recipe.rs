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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field of a build with another value than its default, and the recipe's
    /// words for it: values have the same names in both.
    #[test]
    fn every_field_of_a_build_reaches_the_recipe() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let mut source = serde_json::json!({
            "rootfs": {"image": format!("r.example/web@{digest}")},
            "bootKit": {"image": format!("r.example/kit@{digest}")},
            "layout": "Initramfs",
            "compression": "Lz4hc",
            "extraCmdline": "a=1",
            "uki": {"osRelease": "/a", "splash": "/b", "microcode": "/c"},
            "hardening": {"exceptions": [{"setting": "NoExec", "reason": "a test"}]},
            "git": {"repository": "https://git.example/web", "commit": "0".repeat(40)},
            "verifyRebuild": true,
            "output": {"repository": "r.example/guest", "secretRef": {"name": "push"}},
        });
        let parsed: BuildSource = serde_json::from_value(source.clone()).unwrap();
        // Nothing of it is unknown to the type.
        assert_eq!(serde_json::to_value(&parsed).unwrap(), source);
        let recipe = serde_json::to_value(build_recipe(&parsed)).unwrap();

        // What differs between them, by name.
        let fields = source.as_object_mut().unwrap();
        let cmdline = fields.remove("extraCmdline").unwrap();
        fields.insert("cmdline".to_owned(), cmdline);
        fields.insert("version".to_owned(), 1.into());
        // How the Job is run, not what it makes.
        fields.remove("verifyRebuild");
        fields["output"]
            .as_object_mut()
            .unwrap()
            .remove("secretRef");
        assert_eq!(recipe, source);
    }

    #[test]
    fn choices_have_the_same_names_in_both() {
        let recipe_of = |field: &str, value: &str| {
            let digest = format!("sha256:{}", "1".repeat(64));
            let image = serde_json::json!({"image": format!("r.example/x@{digest}")});
            let mut source = serde_json::json!({
                "rootfs": image, "bootKit": image, "output": {"repository": "r.example/guest"},
            });
            source[field] = value.into();
            let source: BuildSource = serde_json::from_value(source).unwrap();
            build_recipe(&source)
        };
        for layout in [Layout::DmVerity, Layout::Initramfs] {
            let name = serde_json::to_value(layout).unwrap();
            assert_eq!(recipe_of("layout", name.as_str().unwrap()).layout, layout);
        }
        for compression in [Compression::None, Compression::Lz4hc, Compression::Zstd] {
            let name = serde_json::to_value(compression).unwrap();
            let recipe = recipe_of("compression", name.as_str().unwrap());
            assert_eq!(recipe.compression, compression);
        }
    }
}
