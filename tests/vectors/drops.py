"""Datagrams and control plaintexts that must be refused, and what counts each."""

import tieline as tl
from noise import KKpsk2
from runs import A, B, K, NO_PSK, PSK, PUBLIC, SECRET, fixed, lane_counts, report, u64

def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


def set_byte(data, at, value):
    return data[:at] + bytes([value]) + data[at + 1:]


def remac(key, datagram):
    """The datagram as one who has the MAC key would send it."""
    return tl.sealed_by_mac(key, datagram[:-16])


def cold_drops(cases):
    """Datagrams of the case "hybrid" gone wrong, each for an end fresh but for what came before it."""
    vector = cases["hybrid"][0]
    inputs, good = vector["inputs"], {k: v for k, v in vector["outputs"].items() if isinstance(v, str)}
    good = {k: bytes.fromhex(v) for k, v in good.items()}
    nonce, token = bytes.fromhex(inputs["nonce"]), good["token"]
    t_secret, t0 = bytes.fromhex(inputs["t_secret"]), int(inputs["t0"], 16)
    knock_ns, init_ns = int(inputs["knock_at_ns"], 16), int(inputs["init_at_ns"], 16)
    own = inputs["initiator_settings"]
    e_i, e_r = bytes.fromhex(inputs["initiator_ephemeral"]), bytes.fromhex(inputs["responder_ephemeral"])
    source = (inputs["source_ip"], inputs["source_port"])
    there, back = K[A, B], K[B, A]

    def init_with(payload=own, token=token, prologue_token=None):
        prologue = tl.cold_prologue(nonce, prologue_token or token)
        noise = KKpsk2(True, SECRET[A], PUBLIC[B], e_i, prologue)
        return tl.init(there, nonce, token, noise.write1(tl.payload16(payload)))

    def response_with(payload, psk=NO_PSK):
        noise = KKpsk2(False, SECRET[B], PUBLIC[A], e_r, good["prologue"])
        noise.read1(good["noise1"])
        return tl.response(back, nonce, noise.write2(tl.payload16(payload), psk))

    assert init_with() == good["init"] and response_with(vector["outputs"]["responder_payload"]) == good["response"]
    foreign = tl.make_token(fixed("another T"), t0, knock_ns, nonce, *source)
    second = tl.make_token(t_secret, t0, knock_ns + 1, nonce, *source)
    answer = vector["outputs"]["responder_payload"]

    def case(name, at, datagram, drop, at_ns=init_ns, source=source):
        return {
            "name": name,
            "inputs": {"case": "hybrid", "receiver": at, "at_ns": u64(at_ns), "source_ip": source[0],
                       "source_port": source[1], "datagram": datagram.hex()},
            "outputs": {"drop": drop},
        }

    knock, challenge, init, response = (good[n] for n in ("knock", "challenge", "init", "response"))
    late = knock_ns + 10_000_000_001
    out = [
        case("knock one byte short", B, knock[:-1], "malformed"),
        case("knock one byte long", B, knock + b"\0", "malformed"),
        case("knock, mac flipped", B, flip(knock, 63), "unauthentic"),
        case("knock, nonce flipped", B, flip(knock, 4), "unauthentic"),
        case("knock, zeros flipped, good mac", B, remac(there, flip(knock, 47)), "malformed"),
        case("knock, version 2, good mac", B, remac(there, set_byte(knock, 1, 2)), "malformed"),
        case("knock, header byte 3 set, good mac", B, remac(there, set_byte(knock, 3, 1)), "malformed"),
        case("knock under the key of the other direction", B, remac(back, knock), "unauthentic"),
        case("knock reflected to its sender", A, knock, "unauthentic"),
        case("challenge reflected to its sender", B, challenge, "unauthentic"),
        case("init one byte short", B, init[:-1], "malformed"),
        case("init, mac flipped", B, flip(init, 123), "unauthentic"),
        case("init from another port", B, init, "unauthentic", source=(source[0], source[1] + 1)),
        case("init from another address", B, init, "unauthentic", source=("203.0.113.8", source[1])),
        case("init with a token of another process", B, init_with(token=foreign), "unauthentic"),
        case("init, token age exactly 10 s: taken", B, init, None, at_ns=late - 1),
        case("init, token older than 10 s", B, init, "replayed", at_ns=late),
        case("init, stamp ahead of the clock", B, init, "replayed", at_ns=knock_ns - 1),
        case("init, message 1 under another token", B, init_with(token=second, prologue_token=token), "unauthentic"),
        case("init, message 1 broken, good mac", B, remac(there, flip(init, 90)), "unauthentic"),
        case("init, index 0", B, init_with(dict(own, index=0)), "malformed"),
        case("init, epoch 2^31", B, init_with(dict(own, epoch=1 << 31)), None),
        case("init, epoch over 2^31", B, init_with(dict(own, epoch=(1 << 31) + 1)), "malformed"),
        case("init, lanes 0", B, init_with(dict(own, lanes=0)), "malformed"),
        case("init, lanes 17", B, init_with(dict(own, lanes=17)), "malformed"),
        case("init, interval 49 ms", B, init_with(dict(own, interval_ms=49)), "malformed"),
        case("init, interval 60,001 ms", B, init_with(dict(own, interval_ms=60_001)), "malformed"),
        case("init, unknown flags: taken", B, init_with(dict(own, flags=own["flags"] | 0xE0)), None),
        case("challenge one byte short", A, challenge[:-1], "malformed"),
        case("challenge, mac flipped", A, flip(challenge, 60), "unauthentic"),
        case("challenge of another attempt", A, tl.challenge(back, fixed("other nonce", 16), token), "replayed"),
        case("response one byte long", A, response + b"\0", "malformed"),
        case("response, mac flipped", A, flip(response, 99), "unauthentic"),
        case("response of another attempt", A,
             tl.response(back, fixed("other nonce", 16), good["noise2"]), "replayed"),
        case("response, message 2 broken, good mac", A, remac(back, flip(response, 70)), "unauthentic"),
        case("response under another preshared key", A, response_with(answer, PSK), "unauthentic"),
        case("response, index 0", A, response_with(dict(answer, index=0)), "malformed"),
        case("response, lanes 0", A, response_with(dict(answer, lanes=0)), "malformed"),
        case("response, two ciphers", A, response_with(dict(answer, ciphers=3)), "malformed"),
        case("response, no cipher and status 0", A, response_with(dict(answer, ciphers=0)), "malformed"),
        case("response, status 3", A, response_with(dict(answer, status=3)), "malformed"),
    ]
    assert len({c["name"] for c in out}) == len(out)
    return out


def transport_drops(sessions):
    """At b, which holds the session "first hybrid" (two lanes) and has opened nothing under it yet."""
    s, packet = sessions["first hybrid"], fixed("dropped packet", 40)
    good = s.seal(A, 5, 0, 0, 0, packet)
    own_index = s.indexes[B].to_bytes(4, "big")

    def made(kind=5, flags=0, lane=0, path=0, index=own_index, key_lane=0):
        header = bytes([kind, flags, lane, path]) + index + bytes(8)
        return tl.seal(s.agreed["cipher"], *s.lane_key(A, key_lane), header, packet)

    assert made() == good
    cases = [
        ("31 bytes", good[:31], "malformed"),
        ("type 7", made(kind=7), "malformed"),
        ("type 0", made(kind=0), "malformed"),
        ("data, flag 8", made(flags=8), "malformed"),
        ("control, flag 1", made(kind=6, flags=1, lane=255, key_lane=255), "malformed"),
        ("path 1", made(path=1), "malformed"),
        ("unknown index", made(index=b"\xde\xad\xbe\xef"), "no_session"),
        ("unknown index and a lane too high: the index is looked at first",
         made(lane=9, index=b"\0\0\0\1"), "no_session"),
        ("data on lane 2 of 2", made(lane=2, key_lane=2), "malformed"),
        ("data on lane 255", made(lane=255, key_lane=255), "malformed"),
        ("control on lane 0", made(kind=6), "malformed"),
        ("tag flipped", flip(good, len(good) - 1), "unauthentic"),
        ("counter changed", flip(good, 15), "unauthentic"),
        ("sealed with the key of another lane", made(lane=1), "unauthentic"),
        ("the receiver's own datagram with its index put in",
         s.seal(B, 5, 0, 0, 0, packet)[:4] + own_index + s.seal(B, 5, 0, 0, 0, packet)[8:], "unauthentic"),
    ]
    return [{"name": n, "inputs": {"session": "first hybrid", "receiver": B, "datagram": d.hex()},
             "outputs": {"drop": drop}} for n, d, drop in cases]


def control_rejects():
    """Plaintexts that open and must then be dropped as malformed, in a hybrid session of two lanes."""
    two = tl.control(report(3, [lane_counts(i) for i in range(2)]))
    one = tl.control(report(3, [lane_counts(0)]))
    cases = [
        ("empty", b""),
        ("kind 0", bytes(4)),
        ("kind 9, unknown", bytes([9, 0, 0, 0])),
        ("RekeyInit, part 3 of 3", bytes([1, 3, 3, 0]) + bytes(512)),
        ("RekeyInit, parts that never occur", bytes([1, 0, 2, 0]) + bytes(512)),
        ("RekeyInit, the one part of an exchange that is not hybrid", bytes([1, 0, 1, 0]) + bytes(56)),
        ("RekeyInit, first of 3 parts one byte short", bytes([1, 0, 3, 0]) + bytes(511)),
        ("RekeyInit, last of 3 parts one byte long", bytes([1, 2, 3, 0]) + bytes(217)),
        ("RekeyResp, last of 3 parts one byte short", bytes([2, 2, 3, 0]) + bytes(119)),
        ("Report cut short", two[:-1]),
        ("Report with a byte too many", two + b"\0"),
        ("Report of one lane", one),
        ("Report, state 4", two[:1] + b"\4" + two[2:]),
        ("Report, state 255", two[:1] + b"\xff" + two[2:]),
        ("PathCheck cut short", bytes([4]) + bytes(10)),
        ("PathCheck of a lane that is not there", bytes([4, 2]) + bytes(10)),
        ("PathAnswer with a byte too many", bytes([5]) + bytes(12)),
        ("ProbeAck cut short", bytes([7, 0, 5])),
        ("Goodbye with a byte too many", bytes([8, 0])),
        ("Mtu cut short", bytes([11, 1, 0, 0]) + bytes(7)),
        ("Mtu with a byte too many", bytes([11, 1, 0, 0]) + bytes(9)),
        ("Mtu, a size of 547", bytes([11, 1, 0, 0]) + (547).to_bytes(2, "big") + bytes(6)),
        ("Mtu, a size of 9,249", bytes([11, 1, 0, 0]) + (9249).to_bytes(2, "big") + bytes(6)),
        ("Mtu, an MTU of 1,279", bytes([11, 1, 0, 0, 0, 0]) + (1279).to_bytes(2, "big") + bytes(4)),
        ("Mtu, an MTU of 9,001 that the receiver has", bytes([11, 0, 0, 0]) + bytes(6) + (9001).to_bytes(2, "big")),
        ("SameKey cut short", bytes([12]) + bytes(38)),
        ("SameKey with a byte too many", bytes([12]) + bytes(40)),
    ]
    return [
        {
            "name": name,
            "inputs": {"plaintext": plaintext.hex(), "lanes": 2, "hybrid": True},
            "outputs": {"drop": "malformed"},
        }
        for name, plaintext in cases
    ]
