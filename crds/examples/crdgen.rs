//! Writes the definitions of every kind as YAML into the directory given as the
//! only argument, one file each. `cargo xtask crdgen` calls it.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("usage: crdgen DIRECTORY")?);
    std::fs::create_dir_all(&directory)?;
    for definition in assay_crds::definitions() {
        let name = definition
            .metadata
            .name
            .clone()
            .ok_or("definition without a name")?;
        let mut yaml = String::from("# Generated from crds/src by `cargo xtask crdgen`.\n");
        serde_saphyr::to_fmt_writer(&mut yaml, &definition)?;
        std::fs::write(directory.join(format!("{name}.yaml")), yaml)?;
    }
    Ok(())
}
