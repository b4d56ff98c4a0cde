//! What a site's routing has come to: by which of its addresses it would send somewhere.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::lab::Site;

/// By which of its addresses `site` would send to `place` now; `None` where there is no way.
pub fn to(site: &Site, place: IpAddr) -> Option<IpAddr> {
    site.network.run(|| look(place)).unwrap()
}

/// Looks every millisecond until the site's way to `place` is by this address, and says how long after `since` that was.
pub fn until(site: &Site, place: IpAddr, by: IpAddr, since: Instant, patience: Duration) -> Duration {
    let watch = || {
        while look(place) != Some(by) {
            assert!(since.elapsed() < patience, "{}: after {patience:?} the way to {place} is not by {by}", site.name);
            std::thread::sleep(Duration::from_millis(1));
        }
        since.elapsed()
    };
    site.network.run(watch).unwrap()
}

fn look(place: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if place.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(SocketAddr::new(place, 9)).ok()?;
    Some(socket.local_addr().unwrap().ip())
}
