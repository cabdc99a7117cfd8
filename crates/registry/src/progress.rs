//! How far a transfer is.

/// Who is told how a transfer goes on.
pub trait TransferProgress: Sync {
    /// The transfer is about so many more bytes.
    fn expect(&self, bytes: u64);
    /// So many more of them are there.
    fn advance(&self, bytes: u64);
    /// So many of them are of no use and go again.
    fn retreat(&self, bytes: u64);
}

/// Nobody is told.
#[derive(Debug, Clone, Copy)]
pub struct NoProgress;

impl TransferProgress for NoProgress {
    fn expect(&self, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn retreat(&self, _bytes: u64) {}
}
