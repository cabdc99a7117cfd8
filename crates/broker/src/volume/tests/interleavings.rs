//! A volume under thousands of interleavings of what guests, networks, disks,
//! clocks and people do. Whatever the order:
//! - no two guests get the same generation, and none comes back;
//! - no disk that is older than the data opens the volume;
//! - nobody gets the keys while another guest's lease lasts;
//! - some disk always opens the volume in the end: without copies, the only one.
//!
//! The runs are the same every time.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

const RUNS: u32 = 3_000;
const STEPS: std::ops::RangeInclusive<usize> = 4..=40;

#[derive(Debug, Clone)]
enum Step {
    /// A guest boots with a disk; the one that had it is dead.
    Boot { disk: Index },
    /// A guest opens the volume with what its disk says; the answer may be lost.
    Open { guest: Index, lost: bool },
    /// A guest writes what it was granted to its disk.
    Persist { guest: Index },
    /// A guest closes the volume.
    Close { guest: Index },
    /// Someone copies a disk.
    Clone { disk: Index },
    /// Time passes, or a clock is set back.
    Advance { seconds: i64 },
    /// The key holder wants another key.
    Rotate,
    /// The broker knows what its disk says.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let one = any::<Index>;
    prop_oneof![
        3 => one().prop_map(|disk| Step::Boot { disk }),
        8 => (one(), prop::bool::weighted(0.2))
            .prop_map(|(guest, lost)| Step::Open { guest, lost }),
        5 => one().prop_map(|guest| Step::Persist { guest }),
        1 => one().prop_map(|guest| Step::Close { guest }),
        1 => one().prop_map(|disk| Step::Clone { disk }),
        3 => prop_oneof![3 => 1..400i64, 1 => Just(700), 1 => -60..0i64]
            .prop_map(|seconds| Step::Advance { seconds }),
        1 => Just(Step::Rotate),
        1 => Just(Step::Restart),
    ]
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Disk {
    generation: Option<u64>,
    key_version: Option<u32>,
}

struct Machine {
    report_id: String,
    disk: usize,
    /// What an answer told it.
    granted: Option<Disk>,
}

/// How often each thing happened in all runs.
#[derive(Default)]
struct Seen {
    opened: Cell<usize>,
    renewed: Cell<usize>,
    held: Cell<usize>,
    stale: Cell<usize>,
    rotated: Cell<usize>,
    forgotten: Cell<usize>,
}

fn count(cell: &Cell<usize>) {
    cell.set(cell.get() + 1);
}

struct Run<'a> {
    broker: World,
    disks: Vec<Disk>,
    machines: Vec<Machine>,
    booted: usize,
    /// Who got each generation.
    given: BTreeMap<u64, String>,
    /// The generation under which data was written last.
    data: Option<u64>,
    seen: &'a Seen,
}

impl<'a> Run<'a> {
    fn new(seen: &'a Seen) -> Self {
        Self {
            broker: World::new(),
            disks: vec![Disk::default()],
            machines: Vec::new(),
            booted: 0,
            given: BTreeMap::new(),
            data: None,
            seen,
        }
    }

    fn boot(&mut self, disk: usize) -> usize {
        self.machines.retain(|machine| machine.disk != disk);
        self.booted += 1;
        self.machines.push(Machine {
            report_id: format!("guest-{}", self.booted),
            disk,
            granted: None,
        });
        self.machines.len() - 1
    }

    fn open(&mut self, machine: usize, lost: bool) -> Result<Opening, VolumeRefusal> {
        let Machine {
            report_id, disk, ..
        } = &self.machines[machine];
        let (report_id, disk) = (report_id.clone(), self.disks[*disk]);
        let before = self.broker.volume.clone();
        let result = self
            .broker
            .open(&report_id, disk.generation, disk.key_version);
        let (opening, generation) = match result {
            Ok(granted) => granted,
            Err(refusal) => {
                match refusal {
                    VolumeRefusal::Held => count(&self.seen.held),
                    VolumeRefusal::GenerationStale => count(&self.seen.stale),
                    VolumeRefusal::KeyVersionUnknown => {}
                    refusal => panic!("{refusal}"),
                }
                return Err(refusal);
            }
        };
        count(match opening {
            Opening::Created | Opening::Opened => &self.seen.opened,
            Opening::Renewed => &self.seen.renewed,
        });
        assert!(disk.generation >= self.data, "a disk without the data");
        let owner = self.given.entry(generation).or_insert(report_id.clone());
        assert_eq!(*owner, report_id, "generation {generation} given twice");
        if let Some(before) = before {
            let version = self.broker.volume.as_ref().unwrap().key_version;
            if version > before.key_version {
                count(&self.seen.rotated);
            }
            assert!(generation >= before.generation);
            let volume = self.broker.volume.as_ref().unwrap();
            if before.keys.keys().any(|key| !volume.keys.contains_key(key)) {
                count(&self.seen.forgotten);
            }
            let until = before.holder.lease_until;
            let over = until.is_none_or(|until| self.broker.now >= until);
            assert!(
                over || before.holder.report_id == report_id,
                "two guests at a time"
            );
        }
        let volume = self.broker.volume.as_ref().unwrap();
        if !lost {
            let granted = Disk {
                generation: Some(generation),
                key_version: Some(volume.key_version),
            };
            self.machines[machine].granted = Some(granted);
            if disk.generation == Some(generation) {
                self.data = Some(generation);
            }
        }
        Ok(opening)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Boot { disk } => {
                self.boot(disk.index(self.disks.len()));
            }
            Step::Clone { disk } => self.disks.push(self.disks[disk.index(self.disks.len())]),
            Step::Advance { seconds } => self.broker.now += seconds.seconds(),
            Step::Rotate => self.broker.declared.key_version += 1,
            Step::Restart => {
                let json = serde_json::to_vec(&self.broker.volume).unwrap();
                self.broker.volume = serde_json::from_slice(&json).unwrap();
            }
            Step::Open { .. } | Step::Persist { .. } | Step::Close { .. }
                if self.machines.is_empty() => {}
            Step::Open { guest, lost } => {
                let _ = self.open(guest.index(self.machines.len()), *lost);
            }
            Step::Persist { guest } => {
                let machine = &self.machines[guest.index(self.machines.len())];
                if let Some(granted) = machine.granted {
                    self.disks[machine.disk] = granted;
                }
            }
            Step::Close { guest } => {
                let machine = &self.machines[guest.index(self.machines.len())];
                if let Some(generation) = self.disks[machine.disk].generation {
                    let _ = self.broker.close(&machine.report_id, generation);
                }
            }
        }
    }

    /// New guests with every disk, one after the other, when every lease is over:
    /// the first that is let in is enough.
    fn end(&mut self) {
        self.broker.now += 1.hour();
        let opens = (0..self.disks.len()).any(|disk| {
            let machine = self.boot(disk);
            self.open(machine, false).is_ok()
        });
        assert!(opens, "locked out: {:?}", self.disks);
    }
}

#[test]
fn no_order_of_events_gives_a_generation_twice_or_locks_the_last_guest_out() {
    let config = Config {
        cases: RUNS,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let seen = Seen::default();
    runner
        .run(&prop::collection::vec(step(), STEPS), |steps| {
            let mut run = Run::new(&seen);
            for step in &steps {
                run.step(step);
            }
            run.end();
            Ok(())
        })
        .unwrap();
    // The runs show something.
    for (name, cell) in [
        ("opened", &seen.opened),
        ("renewed", &seen.renewed),
        ("held", &seen.held),
        ("stale", &seen.stale),
        ("rotated", &seen.rotated),
        ("forgotten", &seen.forgotten),
    ] {
        assert!(cell.get() >= 20, "{name}: {}", cell.get());
    }
}
