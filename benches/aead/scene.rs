//! Two networks of our own and a cable between them; in each an end of a link, as long as it is measured.
//!
//! Nothing has a name outside this process: whatever happens to it, nothing of this is left.

use crate::common::lab::netlink;
use crate::common::transfer::{self, Load, Meter, Tally};
use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tieline::dataplane::{Dataplane, Device, Mailbox, Open, Seal, Treatment};
use tieline::packet::Layer;
use tieline::protocol::levels::{Counter, Levels};
use tieline::protocol::{EgressUpdate, IngressUpdate, Path, SocketId, constants::MIN_TRANSPORT};
use tieline::sys::netns::NetNs;
use tieline::sys::offloads::{Offloads, TunOffloads, UdpOffloads};
use tieline::sys::{tun, udp::UdpSocket};

/// The interface's MTU: what fits an Ethernet packet of 1,500 bytes over IPv4.
const MTU: u32 = 1_500 - 20 - 8 - MIN_TRANSPORT as u32;
/// Segments of a super-packet whose datagrams fit one segmented send, and its bytes, as `control` sets them.
const SEGMENTS: u32 = 65_507 / (MTU + MIN_TRANSPORT as u32);
const LONGEST: u32 = 40 + SEGMENTS * (MTU - 40);
/// Packets that may wait at the interface, as there too.
const QUEUE: u32 = 2_000;
/// A connection through the link is there by then or it has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A network, and the addresses of the end in it.
pub struct Site {
    pub network: NetNs,
    interface: &'static str,
    pub inner: IpAddr,
    outer: SocketAddr,
}

/// Both of them, `[0]` on the left.
pub struct Scene([Site; 2]);

/// One of the two ends while it runs.
struct End {
    dataplane: Dataplane,
    levels: Arc<Levels>,
    /// What the halves had refused before: coming up is not free of it.
    refused: u64,
    /// Nobody reads it: there is no engine.
    _mailbox: Mailbox,
}

impl Scene {
    /// To be called as root over networks.
    pub fn build() -> Self {
        let sites = [Site::new("tl-left", 1), Site::new("tl-right", 2)];
        netlink(&sites[0].network, async |netlink| {
            netlink.create_veth("left", "right").await.unwrap();
            let right = netlink.index("right").await.unwrap();
            netlink.set_netns(right, &sites[1].network).await.unwrap();
        });
        sites[0].plug_in("left");
        sites[1].plug_in("right");
        Scene(sites)
    }

    /// Starts the packet loops of both ends with these halves, does what is to be measured, and takes all away again.
    ///
    /// # Errors
    /// What that says; else if this kernel lacks an offload, or the link has dropped something.
    pub fn with_ends<S: Seal, O: Open, T>(
        &self,
        halves: [(S, O, Arc<Levels>); 2],
        treatment: impl Fn() -> Treatment,
        measured: impl FnOnce(&[Site; 2]) -> Result<T, Box<dyn Error>>,
    ) -> Result<T, Box<dyn Error>> {
        let [left, right] = &self.0;
        let [of_left, of_right] = halves;
        let ends = [left.start(right, of_left, treatment()), right.start(left, of_right, treatment())];
        for end in &ends {
            let offloads = end.dataplane.offloads();
            if offloads != Offloads::ALL {
                return Err(format!("this kernel lacks an offload: {offloads:?}").into());
            }
        }
        let seen = measured(&self.0)?;
        for end in ends {
            end.check()?;
        }
        Ok(seen)
    }

    /// Sends TCP streams from left to right through the link that runs. Gives what arrived, in Gbit/s.
    ///
    /// # Errors
    /// What the system says.
    pub fn transfer(&self, streams: usize, time: Duration) -> io::Result<f64> {
        let [left, right] = &self.0;
        let listener = right.network.run(|| TcpListener::bind((right.inner, 0)))??;
        let address = listener.local_addr()?;
        let connect = || {
            let outgoing = left.network.run(|| TcpStream::connect_timeout(&address, PATIENCE))??;
            Ok((outgoing, listener.accept()?.0))
        };
        let pairs = (0..streams).map(|_| connect()).collect::<io::Result<Vec<_>>>()?;
        let (load, meter) = (Load::Timed(time), Meter::default());
        thread::scope(|scope| {
            let ends = pairs.iter().map(|(outgoing, incoming)| {
                scope.spawn(|| meter.guard(transfer::send(outgoing, load, &meter)));
                scope.spawn(|| meter.guard(transfer::receive(incoming, load, &meter)))
            });
            let receivers: Vec<_> = ends.collect();
            receivers.into_iter().map(|receiver| Ok(gbit_per_second(&receiver.join().unwrap()?))).sum()
        })
    }
}

fn gbit_per_second(tally: &Tally) -> f64 {
    tally.bytes as f64 * 8e-9 / tally.took.as_secs_f64()
}

impl Site {
    fn new(interface: &'static str, host: u8) -> Self {
        let inner = Ipv4Addr::new(10, 99, 0, host).into();
        let outer = (Ipv4Addr::new(192, 0, 2, host), 7311).into();
        Site { network: NetNs::create().unwrap(), interface, inner, outer }
    }

    fn plug_in(&self, cable: &'static str) {
        netlink(&self.network, async |netlink| {
            let index = netlink.index(cable).await.unwrap();
            netlink.add_address(index, self.outer.ip(), 24).await.unwrap();
            netlink.set_up(index).await.unwrap();
        });
    }

    fn start(
        &self,
        peer: &Site,
        (mut sender, mut receiver, levels): (impl Seal, impl Open, Arc<Levels>),
        treatment: Treatment,
    ) -> End {
        let device = self.device();
        let socket = self.network.run(|| UdpSocket::bind(self.outer)).unwrap().unwrap();
        socket.set_offloads(UdpOffloads::ALL);
        let refused = refused(&levels);
        let path = Some(Path { socket: SocketId(0), local: Some(self.outer.ip()), peer: peer.outer });
        sender.apply(EgressUpdate::Path(path));
        receiver.apply(IngressUpdate::Current { session: None, path });
        let sockets = vec![(SocketId(0), socket)];
        let (dataplane, mailbox) =
            Dataplane::start_with(device, sockets, treatment, sender, receiver, levels.clone(), |_| {}).unwrap();
        End { dataplane, refused, levels, _mailbox: mailbox }
    }

    /// The interface, as `tieline up` makes it.
    fn device(&self) -> Device {
        let (fd, offloads) =
            self.network.run(|| tun::create(self.interface, tun::Kind::Tun, TunOffloads::ALL)).unwrap().unwrap();
        netlink(&self.network, async |netlink| {
            let index = netlink.index(self.interface).await.unwrap();
            netlink.set_mtu(index, MTU).await.unwrap();
            netlink.set_gso_max(index, LONGEST, SEGMENTS as u16).await.unwrap();
            netlink.set_queue_length(index, QUEUE).await.unwrap();
            netlink.add_address(index, self.inner, 30).await.unwrap();
            netlink.set_up(index).await.unwrap();
        });
        Device::new(fd, Layer::Ip, offloads)
    }
}

impl End {
    /// Ends it. An error if the halves refused anything: then the figure is of something else.
    fn check(self) -> Result<(), String> {
        let traffic = self.dataplane.counters();
        self.dataplane.stop();
        if traffic.tx_packets == 0 || traffic.rx_packets == 0 || refused(&self.levels) != self.refused {
            return Err(format!("not a clean round: {traffic:?}, {:?}", self.levels.drops));
        }
        Ok(())
    }
}

fn refused(levels: &Levels) -> u64 {
    let drops = &levels.drops;
    let all = [
        &drops.replayed,
        &drops.unauthentic,
        &drops.malformed,
        &drops.no_session,
        &drops.too_big,
        &drops.congested,
        &drops.source,
        &drops.returned,
        &drops.looped,
    ];
    all.into_iter().map(Counter::get).sum()
}
