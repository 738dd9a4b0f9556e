//! Page tables of format `x86-4level`.
#![no_main]

use ioasid::pgtable::Format;

libfuzzer_sys::fuzz_target!(|input: &[u8]| ioasid_fuzz::check_walk(Format::X86Level4, input));
