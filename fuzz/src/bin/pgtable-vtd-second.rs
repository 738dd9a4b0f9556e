//! Page tables of format `vtd-second`.
#![no_main]

use ioasid::pgtable::Format;

libfuzzer_sys::fuzz_target!(|input: &[u8]| ioasid_fuzz::check_walk(Format::VtdSecond, input));
