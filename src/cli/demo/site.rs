//! The two sites of the demo: a network each, a cable between them, and an `up` process in each. Dropping them takes all of it
//! away again.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::DemoError;
use crate::keys::{PublicKey, SecretKey};
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::netns::{NetNs, die_with_parent};

/// This very program, whatever has become of its file since.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Outer UDP port of both ends.
const PORT: u16 = 7311;
/// An end that has not gone so long after SIGTERM is killed.
const FAREWELL: Duration = Duration::from_secs(3);
/// `status` answers at once or not at all.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// How much of an end's log an error quotes.
const LOG_TAIL_LINES: usize = 12;

/// A folder only this user can enter, gone when dropped.
pub struct Workspace(PathBuf);

impl Workspace {
    pub fn create() -> Result<Self, DemoError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let nanos = now.map_or(0, |t| t.subsec_nanos());
        let name = format!("tieline-demo-{}-{nanos:09}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // Creating fails if anything of that name exists, so nobody can have prepared it for us.
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| DemoError::io(format!("creating {}", path.display()), e))?;
        Ok(Self(path))
    }

    fn file(&self, name: &str, suffix: &str) -> PathBuf {
        self.0.join(format!("{name}.{suffix}"))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            tracing::warn!("removing {}: {e}", self.0.display());
        }
    }
}

/// One side of the wire: a name, its addresses and the network it lives in.
pub struct Site {
    pub name: &'static str,
    pub network: NetNs,
    /// The TUN that `up` will make.
    interface: &'static str,
    /// This side of the cable (RFC 5737 TEST-NET-1).
    outer: Ipv4Addr,
    /// Its address inside the link.
    pub inner: Ipv4Addr,
}

/// Makes both networks and joins them by a cable. `hq` first.
pub fn build() -> Result<[Site; 2], DemoError> {
    let network = || NetNs::create().map_err(|e| DemoError::io("creating a network namespace", e));
    let site = |name, interface, host| -> Result<Site, DemoError> {
        Ok(Site {
            name,
            network: network()?,
            interface,
            outer: Ipv4Addr::new(192, 0, 2, host),
            inner: Ipv4Addr::new(10, 99, 0, host + 1),
        })
    };
    let sites = [site("hq", "tl-hq", 1)?, site("branch", "tl-branch", 2)?];
    let [hq, branch] = &sites;
    in_network(&hq.network, async |netlink| {
        netlink.create_veth("wire", "far").await?;
        let far = netlink.index("far").await?;
        netlink.set_netns(far, &branch.network).await?;
        plug_in(&netlink, "wire", hq.outer).await
    })?;
    in_network(&branch.network, async |netlink| plug_in(&netlink, "far", branch.outer).await)?;
    Ok(sites)
}

async fn plug_in(netlink: &Netlink, cable: &str, address: Ipv4Addr) -> Result<(), NetlinkError> {
    let index = netlink.index(cable).await?;
    netlink.add_address(index, IpAddr::V4(address), 30).await?;
    netlink.set_up(index).await
}

fn in_network(
    network: &NetNs,
    work: impl AsyncFnOnce(Netlink) -> Result<(), NetlinkError> + Send,
) -> Result<(), DemoError> {
    let build = || -> Result<(), DemoError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| DemoError::io("starting the runtime", e))?;
        runtime.block_on(async {
            let netlink = Netlink::open().map_err(|e| DemoError::io("opening netlink", e))?;
            Ok(work(netlink).await?)
        })
    };
    network.run(build).map_err(|e| DemoError::io("entering a network namespace", e))?
}

impl Site {
    /// Fresh keys and the config of this end and the other, as `init` would write them.
    pub fn configure(sites: &[Site; 2], workspace: &Workspace) -> Result<(), DemoError> {
        let [hq, branch] = sites;
        let hq_key = hq.write_key(workspace)?;
        let branch_key = branch.write_key(workspace)?;
        hq.write_config(workspace, branch_key, None)?;
        branch.write_config(workspace, hq_key, Some(hq))
    }

    fn write_key(&self, workspace: &Workspace) -> Result<PublicKey, DemoError> {
        let secret = SecretKey::generate().map_err(DemoError::key)?;
        secret.write_file(&workspace.file(self.name, "key")).map_err(DemoError::key)?;
        secret.public().map_err(DemoError::key)
    }

    fn write_config(&self, workspace: &Workspace, peer: PublicKey, endpoint: Option<&Site>) -> Result<(), DemoError> {
        let Site { name, interface, outer, inner, .. } = self;
        let host = inner.octets()[3];
        let endpoint = endpoint.map_or(String::new(), |site| format!("endpoint = \"{}:{PORT}\"\n", site.outer));
        let text = format!(
            "[link]\n\
             interface = \"{interface}\"\n\
             address = [\"{inner}/31\", \"fd99::{host}/127\"]\n\
             [local]\n\
             private_key = \"{name}.key\"\n\
             listen = \"{outer}:{PORT}\"\n\
             [peer]\n\
             public_key = \"{peer}\"\n\
             {endpoint}"
        );
        let path = workspace.file(name, "toml");
        fs::write(&path, text).map_err(|e| DemoError::io(format!("writing {}", path.display()), e))
    }
}

/// A running `tieline up`. Dropping it ends the process.
pub struct End {
    name: &'static str,
    child: Child,
    config: PathBuf,
    log: PathBuf,
    run_dir: PathBuf,
    socket: PathBuf,
}

impl End {
    /// Starts `tieline up` in the site's network, its log going to a file.
    pub fn start(site: &Site, workspace: &Workspace) -> Result<Self, DemoError> {
        let config = workspace.file(site.name, "toml");
        let log = workspace.file(site.name, "log");
        let run_dir = workspace.0.clone();
        let failed = |e| DemoError::io(format!("starting `tieline up` for {}", site.name), e);
        let output = File::create(&log).map_err(failed)?;
        let mut command = this_program(&run_dir);
        command.arg("up").arg(&config).stdin(Stdio::null()).stdout(output.try_clone().map_err(failed)?).stderr(output);
        site.network.enter_at_start(&mut command).map_err(failed)?;
        let child = command.spawn().map_err(failed)?;
        Ok(Self {
            name: site.name,
            child,
            config,
            log,
            socket: run_dir.join(format!("{}.sock", site.interface)),
            run_dir,
        })
    }

    /// Whether it answers `status` already: the socket is there.
    pub fn is_listening(&self) -> bool {
        self.socket.exists()
    }

    /// # Errors
    /// If the process has ended, with the last lines of its log.
    pub fn check_alive(&mut self) -> Result<(), DemoError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failed(format!("ended early ({status})"))),
            Err(e) => Err(DemoError::io(format!("waiting for {}", self.name), e)),
        }
    }

    /// An error about this end, with the last lines of its log.
    pub fn failed(&self, why: impl Into<String>) -> DemoError {
        DemoError::End { name: self.name, why: why.into(), log: self.log_tail() }
    }

    /// The last lines of its log, to be quoted.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// What `tieline status --json` says.
    pub fn status(&self) -> Result<serde_json::Value, DemoError> {
        let asking = |e| DemoError::io(format!("asking {} for its status", self.name), e);
        let mut child = this_program(&self.run_dir)
            .args(["status", "--json"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(asking)?;
        // A status fits the pipe, so it can be waited for first and read afterwards.
        if wait(&mut child, STATUS_PATIENCE).map_err(asking)?.is_none() {
            end_now(&mut child);
            return Err(self.failed("did not answer `tieline status`"));
        }
        let output = child.wait_with_output().map_err(asking)?;
        serde_json::from_slice(&output.stdout).map_err(|e| self.failed(format!("gave a status that is not JSON ({e})")))
    }

    /// Processor time it has taken so far, in user and kernel mode, of all its threads: the sum of utime and stime in
    /// `/proc/<pid>/stat`, in nanoseconds instead of ticks.
    pub fn cpu_time(&self) -> Result<Duration, DemoError> {
        let id = Pid::from_raw(self.child.id().cast_signed());
        let time = ClockId::pid_cpu_clock_id(id).and_then(ClockId::now);
        time.map(Duration::from)
            .map_err(|e| DemoError::io(format!("asking for the processor time of {}", self.name), e.into()))
    }

    /// Ends the process as a service manager would.
    ///
    /// # Errors
    /// If it does not go within 3 s, or not with exit code 0.
    pub fn stop(mut self) -> Result<(), DemoError> {
        self.terminate();
        match wait(&mut self.child, FAREWELL) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(self.failed(format!("ended with {status} on SIGTERM"))),
            Ok(None) => Err(self.failed("did not end on SIGTERM")),
            Err(e) => Err(DemoError::io(format!("waiting for {}", self.name), e)),
        }
    }

    fn terminate(&self) {
        // Until it has been waited for its id cannot be anyone else's.
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.terminate();
            if !matches!(wait(&mut self.child, FAREWELL), Ok(Some(_))) {
                end_now(&mut self.child);
            }
        }
    }
}

fn this_program(run_dir: &Path) -> Command {
    let mut command = Command::new(THIS_PROGRAM);
    // In a process group of its own a Ctrl-C reaches this process alone, which then ends the others in order.
    command.arg0("tieline").env("TIELINE_RUN_DIR", run_dir).process_group(0);
    die_with_parent(&mut command);
    command
}

/// Waits for a process to end by itself; `None` if it has not in time.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || started.elapsed() > patience {
            return Ok(ended);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end_now(child: &mut Child) {
    if child.kill().is_ok() {
        let _ = child.wait();
    }
}

/// The last lines of a log, indented to be quoted.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let skipped = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines[skipped..].iter().map(|line| format!("\n    {line}")).collect()
}
