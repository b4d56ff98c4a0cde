//! The bytes of a file that someone has written, as text: UTF-8, and what it is instead where it is not.

/// Why bytes are no text that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotText {
    /// UTF-16, by the name that iconv(1) has for it.
    Utf16(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// The text of a file without its byte order mark, which some editors put before it and which is no part of it.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, NotText> {
    if let Some(name) = utf16(bytes) {
        return Err(NotText::Utf16(name));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| NotText::Unknown)?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Whether it is UTF-16: by its byte order mark, or because every other byte of most characters is 0, as it is in text that is
/// mostly ASCII.
fn utf16(bytes: &[u8]) -> Option<&'static str> {
    let marked = |mark: [u8; 2], unit: fn([u8; 2]) -> u16| {
        let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
        bytes.starts_with(&mark) && bytes.len().is_multiple_of(2) && char::decode_utf16(units).all(|c| c.is_ok())
    };
    if marked([0xff, 0xfe], u16::from_le_bytes) || marked([0xfe, 0xff], u16::from_be_bytes) {
        return Some("UTF-16");
    }
    let units = bytes.chunks_exact(2).take(256);
    let most = units.len() / 2;
    let (mut little, mut big) = (0, 0);
    for unit in units {
        little += usize::from(unit[0] != 0 && unit[1] == 0);
        big += usize::from(unit[0] == 0 && unit[1] != 0);
    }
    match (little > most, big > most) {
        (true, _) => Some("UTF-16LE"),
        (_, true) => Some("UTF-16BE"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16_of(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        assert_eq!(utf8("\u{feff}[link]".as_bytes()), Ok("[link]"));
        assert_eq!(utf8(b"[link]"), Ok("[link]"));
        assert_eq!(utf8(b""), Ok(""));
    }

    #[test]
    fn utf_16_is_told_apart_with_and_without_its_mark() {
        let text = "# größer\r\n[link]\r\n";
        for (mark, little, big) in [("\u{feff}", "UTF-16", "UTF-16"), ("", "UTF-16LE", "UTF-16BE")] {
            let text = format!("{mark}{text}");
            assert_eq!(utf8(&utf16_of(&text, u16::to_le_bytes)), Err(NotText::Utf16(little)));
            assert_eq!(utf8(&utf16_of(&text, u16::to_be_bytes)), Err(NotText::Utf16(big)));
        }
    }

    #[test]
    fn what_is_neither_is_not_called_utf_16() {
        assert_eq!(utf8(&[0xc3; 40]), Err(NotText::Unknown));
        assert!(utf8(&[0; 40]).is_ok(), "zeros are for those who parse them");
        assert!(utf8("größer".repeat(100).as_bytes()).is_ok());
    }
}
