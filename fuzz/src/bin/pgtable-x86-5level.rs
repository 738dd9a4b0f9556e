//! Page tables of format `x86-5level`.
#![no_main]

use ioasid::pgtable::Format;

libfuzzer_sys::fuzz_target!(|input: &[u8]| ioasid_fuzz::check_walk(Format::X86Level5, input));
