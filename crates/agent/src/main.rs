//! `assay-agent`: PID 1 of a confidential guest.

use assay_agent::{init, workload};

fn main() {
    if std::env::args_os()
        .next()
        .is_some_and(|name| name == workload::STAGE_NAME)
    {
        std::process::exit(workload::run_stage());
    }
    // Its plan mounts over /dev and powers the machine off at its end.
    if std::process::id() != 1 {
        eprintln!("assay-agent: runs only as PID 1 of a guest");
        std::process::exit(2);
    }
    init::run()
}
