//! TD quotes: a value or an error, and what was signed is how they begin.
#![no_main]

use assay_tee::td_quote::TdQuote;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(quote) = TdQuote::parse(data) {
        assert!(data.starts_with(quote.signed_bytes));
    }
});
