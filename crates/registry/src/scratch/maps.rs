//! Mapped files, of which little is resident at a time.
//!
//! The kernel takes mapped pages back when it needs them, and where a container has
//! a limit it is enough that it can. Who counts the memory of a process sees them as
//! its own, however: so they are given back before that.

use std::fs::{self, File};
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};

/// Resident file pages of the process at which all mapped ones are given back.
const MOST_RESIDENT_PAGES: u64 = (96 << 20) / 4096;
/// Time between two looks. Hashing reads some twenty megabytes in it.
const INTERVAL: Duration = Duration::from_millis(10);

/// The maps that are in use.
#[derive(Debug, Default)]
pub(super) struct Maps {
    maps: Mutex<Vec<Weak<Mmap>>>,
}

/// Keeps a map alive as long as its bytes are used.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Maps {
    /// The content of a file without a name, which nobody writes to any more.
    pub(super) fn map(self: &Arc<Self>, file: &File) -> io::Result<Bytes> {
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::new());
        }
        #[expect(unsafe_code, reason = "a mapping keeps the content out of memory")]
        // SAFETY: the file has no name and its only descriptor is the caller's, who
        // has written all of it: nothing changes or truncates it while it is mapped.
        let map = Arc::new(unsafe { Mmap::map(file) }?);
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if maps.is_empty() {
            self.start_giving_back()?;
        }
        maps.push(Arc::downgrade(&map));
        Ok(Bytes::from_owner(Owner(map)))
    }

    /// Gives pages back until there are no maps.
    fn start_giving_back(self: &Arc<Self>) -> io::Result<()> {
        let maps = Arc::clone(self);
        thread::Builder::new()
            .name("scratch".to_owned())
            .spawn(move || {
                while maps.are_in_use() {
                    if resident_file_pages().is_none_or(|pages| pages > MOST_RESIDENT_PAGES) {
                        maps.give_back();
                    }
                    thread::sleep(INTERVAL);
                }
            })?;
        Ok(())
    }

    fn are_in_use(&self) -> bool {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.retain(|map| map.strong_count() > 0);
        !maps.is_empty()
    }

    pub(super) fn give_back(&self) {
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        for map in maps.iter().filter_map(Weak::upgrade) {
            #[expect(unsafe_code, reason = "the advice destroys what is not in a file")]
            // SAFETY: the map is a file's, shared and read-only: whoever reads a page
            // that is gone finds it in the file again.
            let given_back = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
            // What could not be given back stays, and the kernel takes it by itself.
            drop(given_back);
        }
    }
}

/// Third figure of `/proc/self/statm` (proc_pid_statm(5)).
fn resident_file_pages() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    statm.split_whitespace().nth(2)?.parse().ok()
}
