"""The runs everything else builds on: fixed keys, whole cold opens, whole rekeys."""

import hashlib
import struct

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from kyber_py.ml_kem import ML_KEM_768

import tieline as tl
from noise import KKpsk2, public

A, B = "a", "b"
MS = 1_000_000
BOTH_CIPHERS = tl.AES_256_GCM | tl.CHACHA20_POLY1305


def fixed(label, length=32):
    """Fixed bytes that look random: SHAKE256 of a label."""
    return hashlib.shake_256(b"tieline test vector: " + label.encode()).digest(length)


def u64(value):
    return struct.pack(">Q", value).hex()


SECRET = {A: fixed("static a"), B: fixed("static b")}
PUBLIC = {end: public(secret) for end, secret in SECRET.items()}
SS = tl.static_shared(SECRET[A], PUBLIC[B])
K = {
    (A, B): tl.open_key(SS, PUBLIC[A], PUBLIC[B]),
    (B, A): tl.open_key(SS, PUBLIC[B], PUBLIC[A]),
}
PSK = fixed("preshared key")
NO_PSK = bytes(32)


def other(end):
    return B if end == A else A


# -- keys ---------------------------------------------------------------------------------------

def keys():
    assert SS == tl.static_shared(SECRET[B], PUBLIC[A])
    return {
        "inputs": {"secret_a": SECRET[A].hex(), "secret_b": SECRET[B].hex()},
        "outputs": {
            "public_a": PUBLIC[A].hex(),
            "public_b": PUBLIC[B].hex(),
            "ss": SS.hex(),
            "k_a_to_b": K[A, B].hex(),
            "k_b_to_a": K[B, A].hex(),
        },
    }


# -- sessions: what cold opens and rekeys leave behind --------------------------------------------

class Session:
    """One derived session, kept so that later vectors can build on it."""

    def __init__(self, name, initiator, agreed, psk, h, k1, k2, epochs, indexes, bootstrap):
        self.name, self.initiator, self.agreed, self.psk, self.h = name, initiator, agreed, psk, h
        self.bootstrap, self.indexes = bootstrap, indexes
        self.k1, self.k2 = k1, k2
        self.prk, self.chain = tl.session_secrets(h, k1, k2)
        self.rank = tl.rank(*epochs, PUBLIC[initiator], PUBLIC[other(initiator)])

    def lanes(self):
        data = [] if self.bootstrap else list(range(self.agreed["lanes"]))
        return data + [tl.CONTROL_LANE]

    def direction(self, sender):
        return 0 if sender == self.initiator else 1

    def lane_key(self, sender, lane, cipher=None):
        return tl.lane_key(self.prk, cipher or self.agreed["cipher"], self.direction(sender), lane)

    def seal(self, sender, kind, flags, lane, counter, plaintext, cipher=None):
        cipher = cipher or self.agreed["cipher"]
        header = tl.header16(kind, flags, lane, self.indexes[other(sender)], counter)
        return tl.seal(cipher, *self.lane_key(sender, lane, cipher), header, plaintext)

    def outputs(self):
        # Keys for both ciphers, though only the agreed one is ever derived by a real end.
        table = [
            {"cipher": cipher, "dir": direction, "lane": lane, "key": key.hex(), "iv": iv.hex()}
            for cipher in (tl.AES_256_GCM, tl.CHACHA20_POLY1305)
            for direction in (0, 1)
            for lane in self.lanes()
            for key, iv in [tl.lane_key(self.prk, cipher, direction, lane)]
        ]
        return {
            "kind": "bootstrap" if self.bootstrap else "data",
            "rank": {"epoch": self.rank[0], "t": self.rank[1]},
            "h": self.h.hex(),
            "k1": self.k1.hex(),
            "k2": self.k2.hex(),
            "prk": self.prk.hex(),
            "chain": self.chain.hex(),
            "keys": table,
        }


def settings(index, epoch, ciphers=BOTH_CIPHERS, flags=0, lanes=1, interval_ms=1000):
    return {
        "index": index,
        "epoch": epoch,
        "ciphers": ciphers,
        "flags": flags,
        "lanes": lanes,
        "status": 0,
        "interval_ms": interval_ms,
    }


# -- cold open ----------------------------------------------------------------------------------

def cold(name, initiator, own, peer, psk=None, source=("203.0.113.7", 7311)):
    """One whole cold open. `own` and `peer` are the settings of initiator and responder."""
    responder = other(initiator)
    out_key, back_key = K[initiator, responder], K[responder, initiator]
    nonce, t_secret = fixed(name + " nonce", 16), fixed(name + " T")
    t0 = int.from_bytes(fixed(name + " t0", 8), "big") >> 2
    e_i, e_r = fixed(name + " initiator ephemeral"), fixed(name + " responder ephemeral")
    knock_ns = 5_000_000_000
    init_ns = knock_ns + 12 * MS
    psk_used = psk or NO_PSK

    knock = tl.knock(out_key, nonce)
    token = tl.make_token(t_secret, t0, knock_ns, nonce, *source)
    challenge = tl.challenge(back_key, nonce, token)

    prologue = tl.cold_prologue(nonce, token)
    noise_i = KKpsk2(True, SECRET[initiator], PUBLIC[responder], e_i, prologue)
    noise_r = KKpsk2(False, SECRET[responder], PUBLIC[initiator], e_r, prologue)
    payload1 = tl.payload16(own)
    noise1 = noise_i.write1(payload1)
    init = tl.init(out_key, nonce, token, noise1)
    assert noise_r.read1(noise1) == payload1

    answer, agreed = tl.choose(own, peer)
    payload2 = tl.payload16(answer)
    noise2 = noise_r.write2(payload2, psk_used)
    response = tl.response(back_key, nonce, noise2)
    assert noise_i.read2(noise2, psk_used) == payload2
    assert noise_i.h == noise_r.h and noise_i.split() == noise_r.split()
    assert [len(d) for d in (knock, challenge, init, response)] == [64, 64, 124, 100]

    session = None
    if agreed:
        session = Session(
            name, initiator, agreed, psk_used, noise_r.h, *noise_r.split(),
            epochs=(own["epoch"], peer["epoch"]),
            indexes={initiator: own["index"], responder: peer["index"]},
            bootstrap=agreed["hybrid"],
        )
    vector = {
        "name": name,
        "inputs": {
            "initiator": initiator,
            "psk": psk.hex() if psk else None,
            "nonce": nonce.hex(),
            "t_secret": t_secret.hex(),
            "t0": u64(t0),
            "knock_at_ns": u64(knock_ns),
            "init_at_ns": u64(init_ns),
            "source_ip": source[0],
            "source_port": source[1],
            "initiator_ephemeral": e_i.hex(),
            "responder_ephemeral": e_r.hex(),
            "initiator_settings": own,
            "responder_settings": peer,
        },
        "outputs": {
            "knock": knock.hex(),
            "stamp": token[:8].hex(),
            "source_ip16": tl.ip16(source[0]).hex(),
            "token": token.hex(),
            "challenge": challenge.hex(),
            "prologue": prologue.hex(),
            "payload1": payload1.hex(),
            "noise1": noise1.hex(),
            "init": init.hex(),
            "responder_payload": answer,
            "payload2": payload2.hex(),
            "noise2": noise2.hex(),
            "response": response.hex(),
            "agreed": agreed,
            "session": session.outputs() if session else None,
        },
    }
    return vector, session


def cold_cases():
    hybrid, checksum, psk_bit, ethernet = tl.FLAG_HYBRID, tl.FLAG_CHECKSUM, tl.FLAG_PSK, tl.FLAG_ETHERNET
    return [
        cold("hybrid", A,
             settings(0x11111111, 1, flags=hybrid | checksum, lanes=2),
             settings(0x22222222, 1, flags=hybrid | checksum, lanes=2, interval_ms=500)),
        cold("hybrid psk", B,
             settings(0xB0B0B0B0, 7, flags=hybrid | psk_bit, ciphers=tl.CHACHA20_POLY1305),
             settings(0x0A0A0A0A, 3, flags=psk_bit, lanes=16, interval_ms=60_000),
             psk=PSK, source=("2001:db8::7", 49152)),
        cold("plain aes", A,
             settings(0x31323334, 2, flags=checksum, lanes=2, interval_ms=50),
             settings(0x41424344, 9, flags=checksum, lanes=4, interval_ms=50),
             source=("::ffff:198.51.100.1", 1)),
        cold("plain psk chacha", B,
             settings(0xFFFFFFFF, 0x7FFFFFFF, flags=psk_bit | ethernet, lanes=16),
             settings(0x00000001, 1, flags=psk_bit | ethernet, lanes=1, ciphers=tl.CHACHA20_POLY1305),
             psk=PSK, source=("192.0.2.255", 65535)),
        cold("no common cipher", A,
             settings(0x51515151, 1, ciphers=tl.AES_256_GCM),
             settings(0x61616161, 1, ciphers=tl.CHACHA20_POLY1305)),
        cold("layers differ", A,
             settings(0x71717171, 4, flags=ethernet),
             settings(0x72727272, 4)),
    ]


# -- rekey --------------------------------------------------------------------------------------

def kem(name):
    """ML-KEM-768 from fixed d, z, m, computed by kyber-py and decapsulated by OpenSSL or its like."""
    d, z, m = fixed(name + " d"), fixed(name + " z"), fixed(name + " m")
    ek, dk = ML_KEM_768.key_derive(d + z)
    k, ct = ML_KEM_768._encaps_internal(ek, m)
    check = MLKEM768PrivateKey.from_seed_bytes(d + z)
    assert check.public_key().public_bytes_raw() == ek and check.decapsulate(ct) == k
    return {"d": d, "z": z, "m": m, "ek": ek, "dk": dk, "ct": ct, "k": k}


def rekey(name, parent, starter, own, peer):
    responder = other(starter)
    hybrid = parent.agreed["hybrid"]
    kem_values = kem(name) if hybrid else dict.fromkeys(("d", "z", "m", "ek", "dk", "ct", "k"), b"")
    ek, ct, k = kem_values["ek"], kem_values["ct"], kem_values["k"]
    e_i, e_r = fixed(name + " initiator ephemeral"), fixed(name + " responder ephemeral")

    prologue = tl.rekey_prologue(parent.h, ek)
    noise_i = KKpsk2(True, SECRET[starter], PUBLIC[responder], e_i, prologue)
    noise_r = KKpsk2(False, SECRET[responder], PUBLIC[starter], e_r, prologue)
    noise1 = noise_i.write1(tl.payload8(own))
    assert noise_r.read1(noise1) == tl.payload8(own)
    psk = tl.child_psk(parent.chain, k, parent.psk, ek, ct)
    noise2 = noise_r.write2(tl.payload8(peer), psk)
    assert noise_i.read2(noise2, psk) == tl.payload8(peer)
    assert noise_i.h == noise_r.h and noise_i.split() == noise_r.split()
    m1, m2 = noise1 + ek, noise2 + ct
    assert (len(m1), len(m2)) == ((1240, 1144) if hybrid else (56, 56))

    session = Session(
        name, starter, parent.agreed, parent.psk, noise_r.h, *noise_r.split(),
        epochs=(own["epoch"], peer["epoch"]),
        indexes={starter: own["index"], responder: peer["index"]},
        bootstrap=False,
    )
    vector = {
        "name": name,
        "inputs": {
            "parent": parent.name,
            "parent_h": parent.h.hex(),
            "parent_chain": parent.chain.hex(),
            "starter": starter,
            "psk": None if parent.psk == NO_PSK else parent.psk.hex(),
            "hybrid": hybrid,
            "cipher": parent.agreed["cipher"],
            "lanes": parent.agreed["lanes"],
            "initiator_ephemeral": e_i.hex(),
            "responder_ephemeral": e_r.hex(),
            "initiator_payload": own,
            "responder_payload": peer,
            **{f"mlkem_{n}": kem_values[n].hex() for n in ("d", "z", "m")},
        },
        "outputs": {
            "mlkem_dk": kem_values["dk"].hex(),
            "mlkem_ek": ek.hex(),
            "mlkem_ct": ct.hex(),
            "mlkem_k": k.hex(),
            "h_ek": tl.sha256(ek).hex(),
            "h_ek_ct": tl.sha256(ek + ct).hex(),
            "prologue": prologue.hex(),
            "payload1": tl.payload8(own).hex(),
            "noise1": noise1.hex(),
            "psk": psk.hex(),
            "payload2": tl.payload8(peer).hex(),
            "noise2": noise2.hex(),
            "m1": m1.hex(),
            "m2": m2.hex(),
            "m1_parts": [p.hex() for p in tl.parts(m1)],
            "m2_parts": [p.hex() for p in tl.parts(m2)],
            "session": session.outputs(),
        },
    }
    return vector, session


def rekey_cases(sessions):
    def payload(index, epoch):
        return {"index": index, "epoch": epoch}

    cases = [rekey("first hybrid", sessions["hybrid"], A, payload(0x10000001, 2), payload(0x20000001, 2))]
    # The responder of the parent starts this one; the other end has seen one epoch more.
    cases.append(rekey("second hybrid", cases[0][1], B, payload(0x20000002, 3), payload(0x10000002, 4)))
    cases.append(rekey("hybrid psk chacha", sessions["hybrid psk"], B,
                       payload(0xB0B0B0B1, 8), payload(0x0A0A0A0B, 8)))
    cases.append(rekey("plain", sessions["plain aes"], A, payload(0x31323335, 10), payload(0x41424345, 10)))
    cases.append(rekey("plain psk", sessions["plain psk chacha"], A, payload(2, 0x80000000), payload(3, 0x80000000)))
    return cases


# -- reports --------------------------------------------------------------------------------------

def lane_counts(seed):
    names = ("sent", "received", "duplicate", "late", "failed")
    return {n: fixed(f"report {seed} {n}", 8).hex() for n in names}


def report(state, lanes, hold_us=0, time_us=0, echo=0, held_s=0):
    return {"kind": "report", "state": state, "held_s": held_s, "hold_us": hold_us, "time_us": u64(time_us), "echo": u64(echo),
            "lanes": lanes}
