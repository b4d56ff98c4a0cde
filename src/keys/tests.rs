//! Keys on paper and in files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use proptest::prelude::*;

use super::*;

const PUBLIC: &str = "tlpub1sc7agqxn47zj35xg045dtfhzczmwa78wexvdqnlqykywsr4hsatqhqtaw9";
const SECRET: &str = include_str!("../../keys/hq.key");
const PSK: &str = include_str!("../../keys/hq-branch.psk");

fn reject(text: &str) -> KeyError {
    PublicKey::from_str(text).unwrap_err()
}

/// Everything the user could see of an error.
fn shown(error: &KeyFileError) -> String {
    format!("{error} | {} | {error:?}", error.help())
}

#[test]
fn public_key_is_that_of_rfc_7748_section_6_1() {
    let secret = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
    let public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
    let secret = SecretKey::from_bytes(hex::decode(secret).unwrap().try_into().unwrap());
    assert_eq!(hex::encode(secret.public().unwrap().as_bytes()), public);
}

#[test]
fn published_keys_are_what_they_say() {
    let secret = SecretKey::parse(SECRET).unwrap();
    assert_eq!(secret.public().unwrap().to_string(), PUBLIC);
    assert_eq!(*secret.encode(), SECRET.trim());
    assert!(secret.is_published());
    assert!(SecretKey::parse(include_str!("../../keys/branch.key")).unwrap().is_published());
    assert!(PresharedKey::parse(PSK).unwrap().is_published());
    assert!(PublicKey::from_str(PUBLIC).unwrap().is_published());

    let fresh = SecretKey::generate().unwrap();
    assert!(!fresh.is_published() && !fresh.public().unwrap().is_published());
    assert!(!PresharedKey::generate().unwrap().is_published());
}

#[test]
fn debug_shows_no_secret() {
    assert_eq!(format!("{:?}", SecretKey::parse(SECRET).unwrap()), "SecretKey(redacted)");
    assert_eq!(format!("{:?}", PresharedKey::parse(PSK).unwrap()), "PresharedKey(redacted)");
    assert_eq!(format!("{:?}", PublicKey::from_str(PUBLIC).unwrap()), PUBLIC);
}

#[test]
fn either_pure_case_is_read_and_mixed_case_is_not() {
    assert!(PublicKey::from_str(&PUBLIC.to_uppercase()).is_ok());
    assert!(SecretKey::parse(&SECRET.to_lowercase()).is_ok());
    let mixed = PUBLIC.replacen('s', "S", 1);
    assert_eq!(reject(&mixed), KeyError::MixedCase { kind: KeyKind::Public });
}

#[test]
fn each_wrong_string_has_its_own_error() {
    use KeyKind::{Preshared, Public, Secret};
    let expected = Public;
    assert_eq!(reject("  "), KeyError::Empty { expected });
    assert_eq!(reject("hello"), KeyError::NotAKey { expected });
    assert_eq!(reject(SECRET), KeyError::WrongKind { found: Secret, expected });
    assert_eq!(reject(PSK), KeyError::WrongKind { found: Preshared, expected });
    assert_eq!(reject("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="), KeyError::LooksLikeWireGuard { expected });
    let wrong_length = |found| KeyError::WrongLength { kind: Public, found, expected: 64 };
    assert_eq!(reject(&PUBLIC[..63]), wrong_length(63));
    assert_eq!(reject(&format!("{PUBLIC}q")), wrong_length(65));
    assert_eq!(reject("tlpub1"), wrong_length(6));
    assert_eq!(SecretKey::parse(PUBLIC).unwrap_err(), KeyError::WrongKind { found: Public, expected: Secret });
    assert_eq!(PresharedKey::parse(SECRET).unwrap_err(), KeyError::WrongKind { found: Secret, expected: Preshared });
}

#[test]
fn the_older_checksum_and_a_second_spelling_are_damaged() {
    let damaged = KeyError::Damaged { kind: KeyKind::Public };
    let hrp = Hrp::parse("tlpub").unwrap();
    let key = PublicKey::from_str(PUBLIC).unwrap();
    let bech32 = bech32::encode::<bech32::Bech32>(hrp, key.as_bytes()).unwrap();
    assert_eq!(reject(&bech32), damaged);

    let mut symbols: Vec<_> = key.as_bytes().iter().copied().bytes_to_fes().collect();
    let last = symbols.pop().unwrap();
    symbols.push(bech32::Fe32::try_from(last.to_u8() | 1).unwrap());
    let padded: String = symbols.into_iter().with_checksum::<Bech32m>(&hrp).chars().collect();
    assert_eq!(reject(&padded), damaged);
}

#[test]
fn low_order_points_are_rejected_and_really_are_of_low_order() {
    let private = agreement::PrivateKey::generate(&agreement::X25519).unwrap();
    let mut double_spelled = LOW_ORDER.to_vec();
    double_spelled.extend([P, {
        let mut one_more = P;
        one_more[0] += 1;
        one_more
    }]);
    for point in double_spelled {
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, point);
        assert!(agreement::agree(&private, peer, (), |_| Ok(())).is_err(), "{point:02x?}");
        let expected = if LOW_ORDER.contains(&point) { KeyError::LowOrder } else { KeyError::NonCanonical };
        assert_eq!(PublicKey::from_bytes(point).unwrap_err(), expected);
    }
}

#[test]
fn public_keys_from_the_prime_up_are_rejected() {
    let mut below = P;
    below[0] -= 2;
    assert!(PublicKey::from_bytes(below).is_ok());
    let mut top_bit = [9; 32];
    top_bit[31] |= 0x80;
    for bytes in [P, [0xff; 32], top_bit] {
        assert_eq!(PublicKey::from_bytes(bytes).unwrap_err(), KeyError::NonCanonical);
    }
}

#[test]
fn a_preshared_key_of_zeros_is_rejected() {
    assert_eq!(PresharedKey::from_bytes([0; 32]).unwrap_err(), KeyError::ZeroPsk);
    let text = encode_upper(KeyKind::Preshared, &[0; 32]);
    assert_eq!(PresharedKey::parse(&text).unwrap_err(), KeyError::ZeroPsk);
}

#[test]
fn secrets_are_masked_wherever_they_are() {
    let secret = SECRET.trim();
    let line = format!("private_key = \"{secret}\"   # mine");
    let masked = mask_secrets(&line);
    assert_eq!(masked.chars().count(), line.chars().count());
    assert_eq!(masked, format!("private_key = \"TLSECRET1{}\"   # mine", "*".repeat(58)));

    for hidden in [
        PSK.trim().to_lowercase(),
        secret.replacen("TLSECRET1", "TlSecret1", 1),
        secret.replacen("TLSECRET1", "TLSECRE", 1),
        secret[20..].to_owned(),
        format!("{} {}", &secret[..30], &secret[30..]),
        "é".to_owned() + secret,
    ] {
        let masked = mask_secrets(&format!("a = '{hidden}'\nb = 2"));
        let tail = &hidden[hidden.len() - 20..];
        assert!(!masked.contains(tail) && masked.ends_with("'\nb = 2"), "{masked}");
    }
    assert_eq!(mask_secrets(PUBLIC), PUBLIC);
    assert_eq!(mask_secrets("/a/long/path/of/many/parts/and/no/secrets"), "/a/long/path/of/many/parts/and/no/secrets");
}

#[test]
fn files_are_written_once_and_for_the_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.key");
    let key = SecretKey::generate().unwrap();
    key.write_file(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(SecretKey::read_file(&path).unwrap().as_bytes(), key.as_bytes());

    let error = SecretKey::generate().unwrap().write_file(&path).unwrap_err();
    assert!(matches!(error, KeyFileError::Exists { .. }), "{error}");
    assert_eq!(SecretKey::read_file(&path).unwrap().as_bytes(), key.as_bytes());

    let nowhere = folder.path().join("no/such/folder.key");
    assert!(matches!(key.write_file(&nowhere), Err(KeyFileError::Write { .. })));
}

#[test]
fn comments_and_blank_lines_are_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.key");
    for text in
        [format!("# made for hq\r\n\r\n  {SECRET}\r\n\n#end"), SECRET.trim().to_owned(), format!("\u{feff}{SECRET}")]
    {
        assert!(SecretKey::parse_file_bytes(text.as_bytes(), &path).is_ok());
        fs::write(&path, text).unwrap();
        assert!(SecretKey::read_file(&path).is_ok());
    }
}

#[test]
fn a_file_open_to_others_is_an_error_unless_its_key_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.key");
    SecretKey::generate().unwrap().write_file(&path).unwrap();
    for (mode, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        match SecretKey::read_file(&path) {
            Ok(_) => assert!(fine),
            Err(error) => {
                assert!(!fine && matches!(error, KeyFileError::Exposed { .. }));
                assert!(error.help().contains(&format!("`chmod 600 {}`", path.display())));
            }
        }
    }
    fs::write(&path, SECRET).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(SecretKey::read_file(&path).is_ok());
}

#[test]
fn each_unusable_file_has_its_own_error_and_shows_nothing_of_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let secret = SECRET.trim();
    let write = |name: &str, bytes: &[u8]| {
        fs::write(at(name), bytes).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("empty", b"# nothing\n");
    write("cut", &secret.as_bytes()[..60]);
    write("two", format!("{secret}\n{secret}\n").as_bytes());
    write("large", &b"#\n".repeat(10_000));
    write("binary", &[0xff; 32]);
    write("psk", PSK.as_bytes());
    let utf16 = |mark: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
        format!("{mark}{secret}").encode_utf16().flat_map(bytes).collect()
    };
    write("utf16", &utf16("\u{feff}", u16::to_le_bytes));
    write("utf16be", &utf16("", u16::to_be_bytes));
    let _socket = UnixListener::bind(at("socket")).unwrap();

    for (name, says) in [
        ("missing", "there is no such file"),
        ("empty", "empty:1: there is no key here"),
        ("cut", "cut:1: this secret key (TLSECRET1…) is 60 characters long, not 67"),
        ("two", "two:2: a second key"),
        ("large", "too large"),
        ("binary", "not text"),
        ("utf16", "utf16: this is UTF-16 text, and a key file is UTF-8"),
        ("utf16be", "utf16be: this is UTF-16 text"),
        ("psk", "psk:1: this is a preshared key (TLPSK1…); here a secret key (TLSECRET1…) belongs"),
        ("socket", "cannot read it"),
        (".", "not a regular file"),
    ] {
        let error = SecretKey::read_file(&at(name)).unwrap_err();
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert!(error.to_string().contains(folder.path().to_str().unwrap()) && !error.help().is_empty());
        assert!(!shown(&error).contains(&secret[9..20]) && !shown(&error).contains(&PSK[6..20]), "{error}");
    }
}

#[test]
fn a_pipe_does_not_make_us_wait() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(SecretKey::read_file(&pipe), Err(KeyFileError::NotAFile { .. })));
}

proptest! {
    #[test]
    fn what_is_encoded_is_read_back(bytes: [u8; 32]) {
        let secret = SecretKey::from_bytes(bytes);
        let again = SecretKey::parse(&secret.encode()).unwrap();
        prop_assert_eq!(again.as_bytes(), &bytes);
        if let Ok(psk) = PresharedKey::from_bytes(bytes) {
            let again = PresharedKey::parse(&psk.encode()).unwrap();
            prop_assert_eq!(again.as_bytes(), &bytes);
        }
        let public = secret.public().unwrap();
        prop_assert_eq!(PublicKey::from_str(&public.to_string()), Ok(public));
    }

    #[test]
    fn one_changed_character_is_noticed_and_never_shown(bytes: [u8; 32], at in 0_usize..67, with in "[!-~]") {
        let good = SecretKey::from_bytes(bytes).encode();
        let mut bad = good.to_string();
        bad.replace_range(at..=at, &with);
        prop_assume!(!bad.eq_ignore_ascii_case(&good));
        let error = SecretKey::parse(&bad).unwrap_err();
        let shown = format!("{error} {error:?} {}", error.help());
        prop_assert!(!shown.contains(&good[12..20]) && !shown.contains(&good[40..50]));
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>(), tail in "\\PC{0,70}") {
        let _ = (PublicKey::from_str(&text), SecretKey::parse(&format!("TLSECRET1{tail}")), mask_secrets(&text));
    }
}
