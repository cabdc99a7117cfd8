//! A kit as a table.

use std::fmt::Write as _;

use assay_image::boot_kit::KitReport;
use assay_image::kernel_config::Ability;

/// What a person reads.
pub(super) fn show(report: &KitReport) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<18} {value}");
    };
    row("kernel", &report.release);
    row("", &report.kernel.to_string());
    row("systemd-stub", &report.stub.to_string());
    row("firmware", &report.firmware.to_string());
    row("modules", &report.modules.join(" "));
    for package in &report.packages {
        row("package", &format!("{} {}", package.name, package.version));
    }
    for ability in Ability::ALL {
        let Some(found) = report.abilities.get(&ability) else {
            continue;
        };
        match found.missing.split_first() {
            None => row(ability.title(), "yes"),
            Some((first, rest)) => {
                row(ability.title(), &format!("no: {first}"));
                for more in rest {
                    row("", &format!("    {more}"));
                }
            }
        }
    }
    for note in &report.notes {
        row("note", note);
    }
    match report.problems.split_first() {
        None => row("guests on SEV-SNP", "run"),
        Some((first, rest)) => {
            row("guests on SEV-SNP", &format!("do not run: {first}"));
            for more in rest {
                row("", &format!("            {more}"));
            }
        }
    }
    out
}
