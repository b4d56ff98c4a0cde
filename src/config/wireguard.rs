//! The words of WireGuard's configuration (`man 8 wg`, `man 8 wg-quick`), and what each is here: many who write a config have
//! written those before.

/// What to write instead of this word, which is in lower case; or why there is nothing like it.
pub(super) fn counterpart(word: &str) -> Option<&'static str> {
    let help = match word {
        "interface" => {
            "write what WireGuard has there in [link] (the interface) and [local] (this end's key and port); `tieline init` \
             makes both files"
        }
        "peer" => "write [peer], in lower case: a link has exactly one peer",
        "privatekey" => {
            "write `private_key = \"FILE\"` in [local]; `tieline keygen --out FILE` makes the file: WireGuard's keys cannot be \
             used"
        }
        "publickey" => {
            "write `public_key = \"tlpub1…\"` in [peer]; `tieline pubkey FILE` prints it at the other end: WireGuard's keys \
             cannot be used"
        }
        "presharedkey" => "write `preshared_key = \"FILE\"` in [peer]; `tieline psk --out FILE` makes the file",
        "allowedips" => "write `routes = [\"…\"]` in [link]: the networks behind the other end",
        "endpoint" => "write `endpoint = \"HOST:PORT\"` in [peer]",
        "persistentkeepalive" => {
            "take it out: a link always sends reports, every `interval` of [liveness], which keeps NAT mappings open"
        }
        "listenport" => "write `listen = \"[::]:PORT\"` in [local]",
        "address" => "write `address = [\"…\"]` in [link]",
        "mtu" => "write `mtu` in [link]: \"auto\" or a number from 1280 to 9000",
        "fwmark" => "write `fwmark` in [local]",
        "dns" => {
            "take it out: tieline leaves this machine's name servers alone; `up` in [hooks] can run a program that sets them"
        }
        "table" => {
            "take it out: routes go into the main routing table, default routes into one of their own; without `routes` in \
             [link] routing is left to you"
        }
        "preup" | "postup" => {
            "write `up = [\"PROGRAM\", \"ARGUMENT\", …]` in [hooks]: it is run without a shell, once the peer is there"
        }
        "predown" | "postdown" => {
            "write `down = [\"PROGRAM\", \"ARGUMENT\", …]` in [hooks]: it is run without a shell, once the peer is gone"
        }
        "saveconfig" => "take it out: tieline never writes its config",
        _ => return None,
    };
    Some(help)
}
