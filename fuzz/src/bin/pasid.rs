//! PASID tables of all formats: the first byte of an input says which, the next four how many
//! bits a PASID has and which one is looked for, the rest is memory by entries.
#![no_main]

use ioasid::pgtable::Root;
use ioasid::pgtable::pasid::{PasidFormat, PasidTarget, find};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&[format, bits, low, middle, high], rest)) = input.split_first_chunk() else {
        return;
    };
    let format = PasidFormat::ALL[usize::from(format) % PasidFormat::ALL.len()];
    let pasid = u32::from_le_bytes([low, middle, high, 0]);
    let mut memory = ioasid_fuzz::Memory::new(0x1000, rest);
    let Ok(found) = find(format, 0, bits.into(), pasid, &mut memory);
    if let Some(PasidTarget::Table(root)) = found {
        // Such a root can be had in no other way.
        let same = Root::new(root.format(), root.address(), root.address_width());
        assert_eq!(same, Ok(root));
    }
});
