"""Noise_KKpsk2_25519_ChaChaPoly_SHA256, from the Noise Protocol Framework, revision 34.

Only this one pattern, only what two messages need. It knows nothing of tieline:
prologue, keys, ephemerals and payloads are arguments.

    -> s
    <- s
    ...
    -> e, es, ss
    <- e, ee, se, psk
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

NAME = b"Noise_KKpsk2_25519_ChaChaPoly_SHA256"


def public(secret):
    """The X25519 public key of a 32-byte secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def dh(secret, their_public):
    """X25519 (RFC 7748 section 5). Raises when the result is all zeros."""
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(their_public))


def sha256(data):
    return hashlib.sha256(data).digest()


def hmac256(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def noise_hkdf(chaining_key, ikm, outputs):
    """HKDF as Noise section 4.3 defines it: 2 or 3 outputs of 32 bytes."""
    temp = hmac256(chaining_key, ikm)
    out, last = [], b""
    for i in range(1, outputs + 1):
        last = hmac256(temp, last + bytes([i]))
        out.append(last)
    return out


class Symmetric:
    """The SymmetricState and its CipherState (Noise sections 5.1 and 5.2)."""

    def __init__(self, name):
        self.h = name.ljust(32, b"\0") if len(name) <= 32 else sha256(name)
        self.ck = self.h
        self.k = None
        self.n = 0

    def mix_hash(self, data):
        self.h = sha256(self.h + data)

    def mix_key(self, ikm):
        self.ck, self.k = noise_hkdf(self.ck, ikm, 2)
        self.n = 0

    def mix_key_and_hash(self, ikm):
        self.ck, temp_h, self.k = noise_hkdf(self.ck, ikm, 3)
        self.mix_hash(temp_h)
        self.n = 0

    def _nonce(self):
        # ChaChaPoly, Noise section 12.3: 32 zero bits, then n little-endian.
        nonce = bytes(4) + self.n.to_bytes(8, "little")
        self.n += 1
        return nonce

    def encrypt_and_hash(self, plaintext):
        ciphertext = ChaCha20Poly1305(self.k).encrypt(self._nonce(), plaintext, self.h)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext):
        plaintext = ChaCha20Poly1305(self.k).decrypt(self._nonce(), ciphertext, self.h)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self):
        return noise_hkdf(self.ck, b"", 2)


class KKpsk2:
    """One end of one handshake. `s` and `e` are own secrets, `rs` the peer's static public key."""

    def __init__(self, initiator, s, rs, e, prologue):
        self.initiator, self.s, self.rs, self.e = initiator, s, rs, e
        self.re = None
        self.sym = Symmetric(NAME)
        self.sym.mix_hash(prologue)
        own = public(s)
        for pre in (own, rs) if initiator else (rs, own):
            self.sym.mix_hash(pre)

    def _e_token(self, e_public):
        # In a psk handshake every "e" is mixed into the key as well (Noise section 9.2).
        self.sym.mix_hash(e_public)
        self.sym.mix_key(e_public)

    def write1(self, payload):
        self._e_token(public(self.e))
        self.sym.mix_key(dh(self.e, self.rs))  # es
        self.sym.mix_key(dh(self.s, self.rs))  # ss
        return public(self.e) + self.sym.encrypt_and_hash(payload)

    def read1(self, message):
        self.re = message[:32]
        self._e_token(self.re)
        self.sym.mix_key(dh(self.s, self.re))  # es
        self.sym.mix_key(dh(self.s, self.rs))  # ss
        return self.sym.decrypt_and_hash(message[32:])

    def write2(self, payload, psk):
        self._e_token(public(self.e))
        self.sym.mix_key(dh(self.e, self.re))  # ee
        self.sym.mix_key(dh(self.e, self.rs))  # se
        self.sym.mix_key_and_hash(psk)
        return public(self.e) + self.sym.encrypt_and_hash(payload)

    def read2(self, message, psk):
        self.re = message[:32]
        self._e_token(self.re)
        self.sym.mix_key(dh(self.e, self.re))  # ee
        self.sym.mix_key(dh(self.s, self.re))  # se
        self.sym.mix_key_and_hash(psk)
        return self.sym.decrypt_and_hash(message[32:])

    @property
    def h(self):
        """The handshake hash so far; final after message 2."""
        return self.sym.h

    def split(self):
        return self.sym.split()
