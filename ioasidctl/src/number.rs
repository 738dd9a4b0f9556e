//! Numbers and bytes as they are written on a command line.

/// Reads a number: decimal or `0x` hexadecimal, optionally followed by `K`, `M`, `G` or `T` for
/// powers of 1024. The result fits in 64 bits or is refused.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (digits, 10),
    };
    // from_str_radix would take a sign.
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(format!("`{text}` is no number (examples: 4096, 0x1000, 4K, 2M)"));
    }
    u64::from_str_radix(digits, radix)
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("`{text}` does not fit in 64 bits"))
}

/// As [`number`], for what the interface holds in 32 bits.
pub(crate) fn number32(text: &str) -> Result<u32, String> {
    number(text)?.try_into().map_err(|_| format!("`{text}` does not fit in 32 bits"))
}

/// Writes a number of bytes for people, with a unit in which it is less than 1024.
pub(crate) fn amount(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1024.0 is of the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Reads bytes written as pairs of hexadecimal digits; blanks and colons between pairs are skipped.
pub(crate) fn hex(text: &str) -> Result<Vec<u8>, String> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_ascii_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).ok_or_else(|| format!("`{c}` is no hexadecimal digit")))
        .collect::<Result<_, _>>()?;
    if !digits.len().is_multiple_of(2) {
        return Err("an odd number of hexadecimal digits".into());
    }
    Ok(digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}

/// Writes bytes as pairs of hexadecimal digits, as [`hex`] reads them.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal_with_a_binary_suffix() {
        for (text, value) in [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("0X1f", 31),
            ("4K", 4096),
            ("4k", 4096),
            ("0x10K", 16 << 10),
            ("2M", 2 << 20),
            ("3G", 3 << 30),
            ("1T", 1 << 40),
            ("0xffffffffffffffff", u64::MAX),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(number(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "K", "0x", "0xK", "-1", "+1", "1.5M", "1KB", "12a", "0x1g2", "1 K", "é"] {
            assert!(number(text).unwrap_err().contains("no number"), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for text in ["18446744073709551616", "0x10000000000000000", "16777216T"] {
            assert!(number(text).unwrap_err().contains("64 bits"), "{text}");
        }
        assert!(number32("4G").unwrap_err().contains("32 bits"));
        assert_eq!(number32("0xffffffff"), Ok(u32::MAX));
    }

    #[test]
    fn amounts_have_a_unit_in_which_they_are_small() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }

    #[test]
    fn hexadecimal_bytes_round_trip() {
        assert_eq!(hex("00ff10"), Ok(vec![0, 255, 16]));
        assert_eq!(hex("0xDEAD be:ef"), Ok(vec![0xde, 0xad, 0xbe, 0xef]));
        assert_eq!(hex(""), Ok(vec![]));
        assert_eq!(to_hex(&hex("0123456789abcdef").unwrap()), "0123456789abcdef");
        assert!(hex("abc").unwrap_err().contains("odd"));
        assert!(hex("zz").unwrap_err().contains("`z`"));
    }
}
