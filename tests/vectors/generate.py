#!/usr/bin/env python3
"""Writes tieline-v1.json, the test vectors of the tieline protocol, version 1.

    pip install cryptography kyber-py
    python3 generate.py            # writes tieline-v1.json beside this file
    python3 generate.py --check    # writes nothing; fails if the file differs

Every input is fixed, so the output is the same on every run and machine.
"""

import json
import sys
from pathlib import Path

import tieline as tl
from drops import cold_drops, control_rejects, transport_drops
from noise import NAME
from runs import A, B, PUBLIC, cold_cases, fixed, keys, lane_counts, other, rekey_cases, report, settings, u64

FILE = Path(__file__).with_name("tieline-v1.json")
CIPHER_NAMES = {1: "aes-256-gcm", 2: "chacha20-poly1305"}


# -- control and transport ------------------------------------------------------------------------

def mtu(own, has, ask):
    """Two offers, each (size, MTU)."""
    own, has = (dict(zip(("size", "mtu"), offer)) for offer in (own, has))
    return {"kind": "mtu", "own": own, "has": has, "ask": ask}


def control_cases(rekeys):
    first = rekeys[0][0]["outputs"]
    zeros = dict.fromkeys(lane_counts(0), u64(0))
    messages = [
        {"kind": "rekey_init", "part": 0, "parts": 3, "bytes": first["m1_parts"][0]},
        {"kind": "rekey_init", "part": 2, "parts": 3, "bytes": first["m1_parts"][2]},
        {"kind": "rekey_init", "part": 0, "parts": 1, "bytes": rekeys[3][0]["outputs"]["m1"]},
        {"kind": "rekey_resp", "part": 2, "parts": 3, "bytes": first["m2_parts"][2]},
        {"kind": "rekey_resp", "part": 0, "parts": 1, "bytes": rekeys[3][0]["outputs"]["m2"]},
        report(0, [lane_counts(0)], 7, 8, 9),
        report(1, [zeros]),
        report(2, [lane_counts(0)], 0xFFFFFFFF, 2**64 - 1, 2**63, 255),
        report(3, [lane_counts(i) for i in range(2)], 1500, 5_000_000, 4_900_000, 30),
        report(3, [lane_counts(i) for i in range(16)], 250, 123_456_789, 123_400_000),
        {"kind": "path_check", "lane": 1, "cookie": fixed("cookie", 8).hex()},
        {"kind": "path_answer", "lane": 1, "cookie": fixed("cookie", 8).hex()},
        {"kind": "probe", "size": 1472},
        {"kind": "probe_ack", "size": 1472},
        mtu((1472, None), (None, None), True),
        mtu((548, 1280), (9248, 9000), False),
        mtu((None, 1500), (1372, None), True),
        {"kind": "same_key", "here": "192.0.2.2:7311", "there": "[2001:db8::7]:40000"},
        {"kind": "goodbye"},
    ]
    return [{"inputs": m, "outputs": {"plaintext": tl.control(m).hex()}} for m in messages]


LAST_PACKET = (1 << 28) // 2 - 1  # the last counter a lane of two may seal
FAR = 0xFEDCBA9876543210  # past every limit; opens all the same


def transport_cases(sessions):
    def case(name, session, sender, kind, flags, lane, counter, plaintext):
        s = sessions[session]
        key, iv = s.lane_key(sender, lane)
        datagram = s.seal(sender, kind, flags, lane, counter, plaintext)
        return {
            "name": f"{name}, {CIPHER_NAMES[s.agreed['cipher']]}",
            "inputs": {
                "session": session,
                "sender": sender,
                "cipher": s.agreed["cipher"],
                "dir": s.direction(sender),
                "type": kind,
                "flags": flags,
                "lane": lane,
                "index": s.indexes[other(sender)],
                "counter": u64(counter),
                "key": key.hex(),
                "iv": iv.hex(),
                "plaintext": plaintext.hex(),
            },
            "outputs": {
                "header": datagram[:16].hex(),
                "nonce": tl.lane_nonce(iv, counter).hex(),
                "datagram": datagram.hex(),
            },
        }

    packet = bytes.fromhex("45000054000040004001269c0a6300010a630002") + fixed("inner packet", 64)
    goodbye = tl.control({"kind": "goodbye"})
    out = []
    # "first hybrid" runs AES-256-GCM with two lanes, "hybrid psk chacha" ChaCha20-Poly1305 with one.
    for session, lanes in (("first hybrid", 2), ("hybrid psk chacha", 1)):
        status = tl.control(report(3, [lane_counts(i) for i in range(lanes)], 1500, 5_000_000, 4_900_000))
        out += [
            case("data, counter 0", session, A, 5, 0, 0, 0, packet),
            case("data, back", session, B, 5, 0, 0, 0, packet),
            case("data, last lane, last counter of two lanes", session, A, 5, 1, lanes - 1, LAST_PACKET, packet),
            case("data, all flags, counter far away", session, B, 5, 7, 0, FAR, packet),
            case("lane keepalive", session, A, 5, 0, 0, 1, b""),
            case("report, counter 0", session, A, 6, 0, 255, 0, status),
            case("report, back, counter far away", session, B, 6, 0, 255, FAR, status),
            case("goodbye", session, B, 6, 0, 255, 1, goodbye),
        ]
    return out


def rekey_datagrams(sessions, rekeys):
    """The parts of a whole exchange, sealed under the parent's control lane."""
    out = []
    for vector, _ in rekeys:
        parent, starter = sessions[vector["inputs"]["parent"]], vector["inputs"]["starter"]
        for kind, sender, key in (("rekey_init", starter, "m1_parts"), ("rekey_resp", other(starter), "m2_parts")):
            pieces = vector["outputs"][key]
            for i, piece in enumerate(pieces):
                plaintext = tl.control({"kind": kind, "part": i, "parts": len(pieces), "bytes": piece})
                out.append({
                    "name": f"{vector['name']}: {kind} {i}",
                    "inputs": {"session": parent.name, "sender": sender, "counter": u64(i), "rekey": vector["name"],
                               "plaintext": plaintext.hex()},
                    "outputs": {"datagram": parent.seal(sender, 6, 0, 255, i, plaintext).hex()},
                })
    return out


# -- windows, ranks, parameters -------------------------------------------------------------------

def window_cases():
    """Counters that arrive in order, all authentic, and what the window says to each."""
    def case(size, steps):
        return {"inputs": {"size": size, "counters": [u64(c) for c, _ in steps]},
                "outputs": {"verdicts": [v for _, v in steps]}}

    new, seen, late = "new", "duplicate", "late"
    out = []
    for size in (1024, 65536):
        out += [
            case(size, [(0, new), (0, seen), (2, new), (1, new), (1, seen), (2, seen)]),
            case(size, [(size - 1, new), (0, new), (0, seen)]),
            case(size, [(size, new), (0, late), (1, new), (1, seen)]),
            case(size, [(5, new), (5 + size, new), (5, late), (6, new), (3 * size, new), (2 * size + 1, new),
                        (2 * size, late), (5 + size, late)]),
            case(size, [(2**64 - 1, new), (2**64 - 1, seen), (2**64 - size, new), (2**64 - size - 1, late)]),
        ]
    return out


def rank_cases():
    def value(epoch_i, epoch_r, initiator):
        got = tl.rank(epoch_i, epoch_r, PUBLIC[initiator], PUBLIC[other(initiator)])
        return {"epoch_initiator": epoch_i, "epoch_responder": epoch_r, "initiator": initiator}, got

    triples = [(1, 1, A), (1, 1, B), (2, 1, A), (1, 2, B), (3, 3, B), (1 << 31, 1, A), (1, 1 << 31, B)]
    values = [value(*t) for t in triples]
    order = {-1: "less", 0: "equal", 1: "greater"}
    return {
        "values": [{"inputs": i, "outputs": {"epoch": r[0], "t": r[1]}} for i, r in values],
        "comparisons": [
            {"inputs": {"left": i, "right": j}, "outputs": {"order": order[(r > s) - (r < s)]}}
            for i, r in values
            for j, s in values
        ],
    }


def negotiate_cases():
    out = []

    def case(name, own, peer):
        answer, agreed = tl.choose(own, peer)
        out.append({
            "name": name,
            "inputs": {"initiator_settings": own, "responder_settings": peer},
            "outputs": {"ciphers": answer["ciphers"], "status": answer["status"], "agreed": agreed},
        })

    def pair(**kw):
        one = {k: v[0] for k, v in kw.items()}
        two = {k: v[1] for k, v in kw.items()}
        return settings(1, 1, **one), settings(2, 1, **two)

    for mine in (1, 2, 3):
        for theirs in (1, 2, 3):
            case(f"ciphers {mine} and {theirs}", *pair(ciphers=(mine, theirs)))
    case("a cipher yet unknown is offered too", *pair(ciphers=(0x82, 0x43)))
    flags = {1: "hybrid", 2: "partial checksum", 4: "psk configured", 8: "ethernet", 16: "cut frames"}
    for flag, name in flags.items():
        for mine, theirs in ((0, flag), (flag, 0), (flag, flag)):
            case(f"{name}: flags {mine} and {theirs}", *pair(flags=(mine, theirs)))
    case("unknown flags", *pair(flags=(0xE0, 0x60)))
    for mine, theirs in ((1, 16), (16, 1), (4, 4), (3, 2)):
        case(f"lanes {mine} and {theirs}", *pair(lanes=(mine, theirs)))
    for mine, theirs in ((50, 60_000), (1000, 1000), (1000, 300)):
        case(f"interval {mine} and {theirs}", *pair(interval_ms=(mine, theirs)))
    case("no common cipher and layers differ: the cipher is looked at first", *pair(ciphers=(1, 2), flags=(8, 0)))
    return out


# -- the file -----------------------------------------------------------------------------------

def build():
    colds = cold_cases()
    sessions = {s.name: s for _, s in colds if s}
    rekeys = rekey_cases(sessions)
    sessions.update({s.name: s for _, s in rekeys})
    return {
        "format": "tieline test vectors",
        "protocol_version": 1,
        "noise": NAME.decode(),
        "keys": keys(),
        "cold": [v for v, _ in colds],
        "rekey": [v for v, _ in rekeys],
        "rekey_datagrams": rekey_datagrams(sessions, rekeys),
        "transport": transport_cases(sessions),
        "control": control_cases(rekeys),
        "control_rejects": control_rejects(),
        "cold_drops": cold_drops({v["name"]: (v, s) for v, s in colds}),
        "transport_drops": transport_drops(sessions),
        "window": window_cases(),
        "rank": rank_cases(),
        "negotiate": negotiate_cases(),
    }


def main(arguments):
    text = json.dumps(build(), indent=1) + "\n"
    if arguments == ["--check"]:
        if FILE.read_text() != text:
            sys.exit(f"{FILE.name} is not what generate.py makes: run it without --check")
        return
    if arguments:
        sys.exit(__doc__)
    FILE.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
