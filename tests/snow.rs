//! What snow does where its documentation is silent and the protocol depends on it (`docs/PROTOCOL.md` §16.2), seen
//! through the handshake both ends use.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use support::SeededEntropy;
use tieline::{
    keys::{PublicKey, SecretKey},
    protocol::{
        crypto::{sha256, x25519, x25519_public},
        handshake::{Handshake, NOISE, Statics, Unreadable},
    },
};

const PROLOGUE: &[u8] = b"a prologue";
const PSK: [u8; 32] = [5; 32];

fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

fn public(n: u8) -> PublicKey {
    secret(n).public().unwrap()
}

fn initiator(own: u8, peer: u8, psk: &[u8; 32]) -> Handshake {
    Statics::new(&secret(own), public(peer)).initiate(PROLOGUE, psk, &mut SeededEntropy::new(1)).unwrap()
}

fn responder(own: u8, peer: u8, psk: &[u8; 32]) -> Handshake {
    Statics::new(&secret(own), public(peer)).respond(PROLOGUE, psk, &mut SeededEntropy::new(2)).unwrap()
}

/// Both messages, from 1 to 2 and back, and both ends' handshakes just before message 2 is read.
fn until_message_2() -> (Handshake, Handshake, [u8; 64]) {
    let (mut i, mut r) = (initiator(1, 2, &PSK), responder(2, 1, &PSK));
    let one: [u8; 64] = i.write(&[11; 16]).unwrap();
    assert_eq!(r.read::<16>(&one), Ok([11; 16]));
    let two = r.write(&[22; 16]).unwrap();
    (i, r, two)
}

fn same_keys(i: Handshake, r: Handshake) {
    let (i, r) = (i.split().unwrap(), r.split().unwrap());
    assert_eq!(i.h, r.h);
    assert_eq!(i.chain, r.chain);
    assert_eq!(*i.lane(1, 0, 255).unwrap().key, *r.lane(1, 0, 255).unwrap().key);
}

#[test]
fn garbage_message_2_then_the_real_one() {
    let (mut i, r, two) = until_message_2();
    let mut other_ephemeral = two;
    other_ephemeral[..32].copy_from_slice(public(9).as_bytes());
    let mut other_text = two;
    other_text[40] ^= 1;
    let zero_ephemeral = [[0; 32], [7; 32]].concat();
    for garbage in [&[0xa5; 64][..], &other_ephemeral, &other_text, &zero_ephemeral, &two[..63], &two[..10], &[]] {
        assert_eq!(i.read::<16>(garbage), Err(Unreadable));
    }
    assert_eq!(i.read::<16>(&two), Ok([22; 16]));
    same_keys(i, r);
}

#[test]
fn the_preshared_key_may_be_set_as_late_as_message_2() {
    let (mut i, mut r) = (initiator(1, 2, &[0; 32]), responder(2, 1, &[0; 32]));
    let one: [u8; 64] = i.write(&[11; 16]).unwrap();
    r.read::<16>(&one).unwrap();
    r.set_psk(&PSK).unwrap();
    let two: [u8; 64] = r.write(&[22; 16]).unwrap();
    assert_eq!(i.read::<16>(&two), Err(Unreadable), "the preshared key set at first still counts");
    i.set_psk(&PSK).unwrap();
    assert_eq!(i.read::<16>(&two), Ok([22; 16]));
    same_keys(i, r);
}

#[test]
fn a_wrong_preshared_key_shows_at_message_2() {
    let (mut i, mut r) = (initiator(1, 2, &[6; 32]), responder(2, 1, &PSK));
    let one: [u8; 64] = i.write(&[11; 16]).unwrap();
    assert_eq!(r.read::<16>(&one), Ok([11; 16]), "message 1 does not depend on it");
    let two: [u8; 64] = r.write(&[22; 16]).unwrap();
    assert_eq!(i.read::<16>(&two), Err(Unreadable));
    assert!(i.split().is_err());
}

#[test]
fn a_wrong_static_key_or_prologue_shows_at_message_1() {
    // Who initiates is not who R thinks; R is not who I thinks; both.
    for (i, r) in [((3, 2), (2, 1)), ((1, 3), (2, 1)), ((3, 2), (2, 9)), ((1, 2), (2, 9))] {
        let one: [u8; 64] = initiator(i.0, i.1, &PSK).write(&[11; 16]).unwrap();
        assert_eq!(responder(r.0, r.1, &PSK).read::<16>(&one), Err(Unreadable), "{i:?} to {r:?}");
    }
    let statics = Statics::new(&secret(1), public(2));
    let mut i = statics.initiate(b"another prologue", &PSK, &mut SeededEntropy::new(1)).unwrap();
    let one: [u8; 64] = i.write(&[11; 16]).unwrap();
    assert_eq!(responder(2, 1, &PSK).read::<16>(&one), Err(Unreadable));
}

#[test]
fn no_split_before_the_end() {
    assert!(initiator(1, 2, &PSK).split().is_err());
    assert!(responder(2, 1, &PSK).split().is_err());
    let (i, r, _) = until_message_2();
    assert!(i.split().is_err(), "message 2 was not read yet");
    assert!(r.split().is_ok());
}

#[test]
fn nothing_out_of_turn_and_nothing_twice() {
    let (mut i, mut r) = (initiator(1, 2, &PSK), responder(2, 1, &PSK));
    assert_eq!(i.read::<16>(&[0; 64]), Err(Unreadable), "I reads before it wrote");
    assert!(r.write::<64>(&[0; 16]).is_err(), "R writes before it read");
    let one: [u8; 64] = i.write(&[11; 16]).unwrap();
    assert!(i.write::<64>(&[11; 16]).is_err(), "message 1 written twice");
    r.read::<16>(&one).unwrap();
    assert_eq!(r.read::<16>(&one), Err(Unreadable), "message 1 read twice");
    let two: [u8; 64] = r.write(&[22; 16]).unwrap();
    assert!(r.write::<64>(&[22; 16]).is_err(), "message 2 written twice");
    assert_eq!(i.read::<16>(&two), Ok([22; 16]));
    assert_eq!(i.read::<16>(&two), Err(Unreadable), "message 2 read twice");
    same_keys(i, r);
}

#[test]
fn a_payload_of_another_length_is_unreadable() {
    let one: [u8; 72] = initiator(1, 2, &PSK).write(&[11; 24]).unwrap();
    assert_eq!(responder(2, 1, &PSK).read::<16>(&one), Err(Unreadable));
    let one: [u8; 56] = initiator(1, 2, &PSK).write(&[11; 8]).unwrap();
    assert_eq!(responder(2, 1, &PSK).read::<16>(&one), Err(Unreadable));
    assert!(initiator(1, 2, &PSK).write::<60>(&[11; 16]).is_err(), "the message does not fit");
}

/// Message 1 by hand (`docs/PROTOCOL.md` §16.1), with an ephemeral whose DH with R's static key gives `es`.
fn message_1(e: &[u8; 32], es: &[u8; 32], ss: &[u8; 32], payload: &[u8]) -> Vec<u8> {
    let mix = |h: [u8; 32], x: &[u8]| sha256(&[&h, x]);
    // HKDF with an empty info gives HKDF2's two outputs one after the other.
    let mix_key = |ck: [u8; 32], x: &[u8]| {
        let prk = hmac(&ck, x); // HKDF with an empty info and two outputs
        let first = hmac(&prk, &[1]);
        (first, hmac(&prk, &[&first[..], &[2]].concat()))
    };
    let mut h = sha256(&[NOISE.as_bytes()]);
    let mut ck = h;
    for part in [PROLOGUE, public(1).as_bytes(), public(2).as_bytes(), e] {
        h = mix(h, part);
    }
    let mut key = [0; 32];
    for input in [e, es, ss] {
        (ck, key) = mix_key(ck, input);
    }
    let mut text = payload.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).unwrap());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(&h), &mut text).unwrap();
    [&e[..], &text].concat()
}

fn hmac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let tag = aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key), message);
    tag.as_ref().try_into().unwrap()
}

#[test]
fn an_all_zero_dh_is_refused() {
    let ss = x25519(secret(1).as_bytes(), public(2).as_bytes()).unwrap();
    // By hand as it should be: so what follows is refused for its zeros, and for nothing else.
    let e = x25519_public(&[77; 32]).unwrap();
    let es = x25519(&[77; 32], public(2).as_bytes()).unwrap();
    assert_eq!(responder(2, 1, &PSK).read::<16>(&message_1(&e, &es, &ss, &[11; 16])), Ok([11; 16]));
    // Points of low order: with them es is 32 zeros, whatever R's secret is, and whoever has ss could make message 1.
    let mut order_8 = [0; 32];
    order_8.copy_from_slice(&hex::decode("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800").unwrap());
    let one = [&[1][..], &[0; 31]].concat().try_into().unwrap();
    for e in [[0; 32], one, order_8] {
        assert!(x25519(secret(2).as_bytes(), &e).is_err());
        assert_eq!(responder(2, 1, &PSK).read::<16>(&message_1(&e, &[0; 32], &ss, &[11; 16])), Err(Unreadable));
    }
}
