//! What the operating system says, for people: the words without the number behind them.

use std::io;

/// `Permission denied` rather than `Permission denied (os error 13)`.
pub(crate) fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error ") {
        Some((words, number)) if number.trim_end_matches(')').parse::<i32>().is_ok() => words.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_left_out() {
        assert_eq!(in_words(&io::Error::from_raw_os_error(libc::EACCES)), "Permission denied");
        assert_eq!(in_words(&io::Error::from_raw_os_error(libc::ENETUNREACH)), "Network is unreachable");
        assert_eq!(in_words(&io::Error::other("it closed the connection")), "it closed the connection");
        assert_eq!(in_words(&io::Error::other("tun (os error 5) of two")), "tun (os error 5) of two");
        assert_eq!(in_words(&io::Error::other(io::Error::from_raw_os_error(libc::EBUSY))), "Device or resource busy");
    }
}
