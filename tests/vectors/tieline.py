"""tieline version 1 as docs/PROTOCOL.md gives it: encodings and key schedule, nothing else.

Written from that text alone and sharing no code with the Rust implementation, so that the
two can disagree. No state machines: each function computes one value.
Section numbers are those of docs/PROTOCOL.md.
"""

import ipaddress
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from noise import dh, hmac256, sha256

AES_256_GCM, CHACHA20_POLY1305 = 1, 2
CONTROL_LANE = 255
PART = 512

FLAG_HYBRID, FLAG_CHECKSUM, FLAG_PSK, FLAG_ETHERNET, FLAG_CUT = 1, 2, 4, 8, 16
STATUS_FINE, STATUS_NO_CIPHER, STATUS_LAYERS = 0, 1, 2


# -- primitives (1.2) ---------------------------------------------------------------------------

def mac16(key, data):
    return hmac256(key, data)[:16]


def extract(salt, ikm):
    """RFC 5869 section 2.2."""
    return hmac256(salt, ikm)


def expand(prk, info, length):
    """RFC 5869 section 2.3."""
    out, block, i = b"", b"", 1
    while len(out) < length:
        block = hmac256(prk, block + info + bytes([i]))
        out, i = out + block, i + 1
    return out[:length]


def hkdf(salt, ikm, info, length):
    return expand(extract(salt, ikm), info, length)


# -- at start (3) -------------------------------------------------------------------------------

def static_shared(secret, their_public):
    return dh(secret, their_public)


def open_key(ss, sender_public, receiver_public):
    """K(sender->receiver)."""
    return hkdf(b"tieline v1 open", ss, sender_public + receiver_public, 32)


# -- cold open (4) ------------------------------------------------------------------------------

def hdr4(kind):
    return bytes([kind, 1, 0, 0])


def sealed_by_mac(key, body):
    return body + mac16(key, body)


def ip16(ip):
    address = ipaddress.ip_address(ip)
    if address.version == 4:
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def endpoint18(text):
    host, port = text.rsplit(":", 1)
    return ip16(host.strip("[]")) + struct.pack(">H", int(port))


def make_token(t_secret, t0, now_ns, nonce, ip, port):
    stamp = struct.pack(">Q", t0 + now_ns)
    return stamp + mac16(t_secret, b"token" + stamp + nonce + ip16(ip) + struct.pack(">H", port))


def knock(key, nonce):
    return sealed_by_mac(key, hdr4(1) + nonce + bytes(28))


def challenge(key, nonce, token):
    return sealed_by_mac(key, hdr4(2) + nonce + token + bytes(4))


def init(key, nonce, token, noise1):
    return sealed_by_mac(key, hdr4(3) + nonce + token + noise1)


def response(key, nonce, noise2):
    return sealed_by_mac(key, hdr4(4) + nonce + noise2)


def cold_prologue(nonce, token):
    return b"tieline v1 cold" + nonce + token


def payload16(p):
    return struct.pack(
        ">IIBBBBI", p["index"], p["epoch"], p["ciphers"], p["flags"], p["lanes"], p["status"], p["interval_ms"]
    )


def choose(initiator, responder):
    """What R answers and what both agree on. Both arguments are what each end is configured for."""
    common = initiator["ciphers"] & responder["ciphers"]
    if common & AES_256_GCM:
        cipher = AES_256_GCM
    elif common & CHACHA20_POLY1305:
        cipher = CHACHA20_POLY1305
    else:
        cipher = 0
    status = STATUS_FINE
    if cipher == 0:
        status = STATUS_NO_CIPHER
    elif (initiator["flags"] ^ responder["flags"]) & FLAG_ETHERNET:
        status, cipher = STATUS_LAYERS, 0
    answer = dict(responder, ciphers=cipher, status=status)
    if status != STATUS_FINE:
        return answer, None
    both, either = initiator["flags"] & responder["flags"], initiator["flags"] | responder["flags"]
    return answer, {
        "cipher": cipher,
        "hybrid": bool(either & FLAG_HYBRID),
        "partial_checksum": bool(both & FLAG_CHECKSUM),
        "ethernet": bool(both & FLAG_ETHERNET),
        "cut_frames": bool(both & FLAG_CUT),
        "lanes": min(initiator["lanes"], responder["lanes"]),
        "detection_ms": 3 * max(initiator["interval_ms"], responder["interval_ms"]),
    }


# -- session keys and rank (5, 6) ---------------------------------------------------------------

def session_secrets(h, k1, k2):
    prk = extract(h, k1 + k2)
    return prk, expand(prk, b"tieline v1 chain", 32)


def lane_key(prk, cipher, direction, lane):
    tail = bytes([cipher, direction, lane])
    return expand(prk, b"tieline v1 key" + tail, 32), expand(prk, b"tieline v1 iv" + tail, 12)


def rank(epoch_i, epoch_r, initiator_public, responder_public):
    return max(epoch_i, epoch_r), int(initiator_public < responder_public)


# -- rekey (7) ----------------------------------------------------------------------------------

def rekey_prologue(h_parent, ek):
    return b"tieline v1 rekey" + h_parent + sha256(ek)


def payload8(p):
    return struct.pack(">II", p["index"], p["epoch"])


def child_psk(chain_parent, k, psk, ek, ct):
    return hkdf(chain_parent, k + psk, b"tieline v1 psk" + sha256(ek + ct), 32)


def parts(message):
    return [message[i:i + PART] for i in range(0, len(message), PART)]


# -- transport (8) ------------------------------------------------------------------------------

def header16(kind, flags, lane, index, counter):
    return struct.pack(">BBBBIQ", kind, flags, lane, 0, index, counter)


def lane_nonce(iv, counter):
    return bytes(a ^ b for a, b in zip(iv, bytes(4) + struct.pack(">Q", counter)))


def seal(cipher, key, iv, header, plaintext):
    counter = int.from_bytes(header[8:], "big")
    aead = {AES_256_GCM: AESGCM, CHACHA20_POLY1305: ChaCha20Poly1305}[cipher](key)
    return header + aead.encrypt(lane_nonce(iv, counter), plaintext, header)


# -- control (9) --------------------------------------------------------------------------------

def control(message):
    """The plaintext of one Control message given by its fields."""
    name, m = message["kind"], message
    if name in ("rekey_init", "rekey_resp"):
        kind = 1 if name == "rekey_init" else 2
        return bytes([kind, m["part"], m["parts"], 0]) + bytes.fromhex(m["bytes"])
    if name == "report":
        head = struct.pack(">BBBBI", 3, m["state"], len(m["lanes"]), m["held_s"], m["hold_us"])
        head += bytes.fromhex(m["time_us"]) + bytes.fromhex(m["echo"])
        names = ("sent", "received", "duplicate", "late", "failed")
        return head + b"".join(bytes.fromhex(lane[n]) for lane in m["lanes"] for n in names)
    if name in ("path_check", "path_answer"):
        return bytes([4 if name == "path_check" else 5, m["lane"], 0, 0]) + bytes.fromhex(m["cookie"])
    if name == "probe":
        # The whole datagram has `size` bytes: header 16, tag 16, and these four, come off.
        return struct.pack(">BBH", 6, 0, m["size"]) + bytes(m["size"] - 36)
    if name == "probe_ack":
        return struct.pack(">BBH", 7, 0, m["size"])
    if name == "mtu":
        # 0 stands for what is not said.
        own, has = ((offer["size"] or 0, offer["mtu"] or 0) for offer in (m["own"], m["has"]))
        return struct.pack(">BBHHHHH", 11, 1 if m["ask"] else 0, 0, *own, *has)
    if name == "goodbye":
        return bytes([8])
    if name == "same_key":
        return bytes([12, 0, 0, 0]) + endpoint18(m["here"]) + endpoint18(m["there"])
    raise ValueError(name)
