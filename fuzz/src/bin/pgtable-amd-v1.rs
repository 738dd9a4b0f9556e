//! Page tables of format `amd-v1`.
#![no_main]

use ioasid::pgtable::Format;

libfuzzer_sys::fuzz_target!(|input: &[u8]| ioasid_fuzz::check_walk(Format::AmdV1, input));
