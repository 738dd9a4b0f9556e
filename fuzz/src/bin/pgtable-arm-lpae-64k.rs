//! Page tables of format `arm-lpae-64k`.
#![no_main]

use ioasid::pgtable::Format;

libfuzzer_sys::fuzz_target!(|input: &[u8]| ioasid_fuzz::check_walk(Format::ArmLpae64k, input));
