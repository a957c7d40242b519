//! The command line of `hub` and `spoke`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use iroh::EndpointId;
use iroh_hub::{AutoFanOut, FanOut, From, Gossip, Pattern};

use super::exit;

/// Runs a hub: broadcasts each line of stdin, and prints what spokes send.
///
/// stdout gets one JSON object a line for each event that a spoke sends:
/// {"from":ENDPOINT_ID,"spoke":N,"type":…,"id":…,"payload":…}
///
/// On SIGUSR1, stderr gets one JSON object on a line that says how the hub does:
/// {"healthy":true|false,"problems":[…],"tip":{…},"direct":{…},"gossip":{…},"topic":{…},…}
#[derive(Debug, Args)]
#[command(after_help = exit::HELP)]
pub(super) struct HubArgs {
    #[command(flatten)]
    pub(super) network: NetworkArgs,
    /// Listens on this address only, for example 127.0.0.1:4433 [default: a free port]
    #[arg(long, value_name = "ADDR")]
    pub(super) bind: Option<SocketAddr>,
    /// Writes the ticket to this file; it is replaced whole, once the hub can be reached
    #[arg(long, value_name = "FILE")]
    pub(super) ticket: Option<PathBuf>,
    /// How broadcasts reach the spokes
    #[arg(long, value_name = "auto|direct|gossip", default_value = "auto")]
    pub(super) fan_out: FanOut,
    /// What this machine can send in a second, for `auto` to go by, for example 1250KB where that is 10 Mbit/s
    /// [default: 12.5MB, which is 100 Mbit/s]
    #[arg(long, value_name = "BYTES", value_parser = uplink)]
    pub(super) uplink: Option<u64>,
    #[command(flatten)]
    pub(super) admission: AdmissionArgs,
    /// What a line of stdin is: a text, which is broadcast as {"type":"line","payload":"the text"},
    /// or {"type":…,"payload":…,"id"?:…,"to"?:ENDPOINT_ID,"overtake"?:true}, which goes to one endpoint if it
    /// says so, behind every broadcast before it unless it overtakes
    #[arg(long, value_enum, default_value_t = InputFormat::Lines)]
    pub(super) input: InputFormat,
    /// Reads stdin once so many spokes are there; with `--fan-out gossip`, once those that can gossip
    /// are on the tree
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) wait_for: usize,
    /// Ends when stdin ends and every connected spoke has everything
    #[arg(long)]
    pub(super) exit_on_eof: bool,
    /// How many seconds spokes are waited for when the hub ends
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    pub(super) drain_timeout: Duration,
    /// Keeps the log in this file, so that a hub started again with it and with the same --key goes on
    /// where it was; the file is made if there is none, and beside it FILE.tip, which tells if it was set back
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(super) log: Option<PathBuf>,
    /// Writes {"position":…,"type":…,"id":…,"payload":…} to this file for every broadcast that the
    /// hub has accepted, which with --log is: has on the disk
    #[arg(long, value_name = "FILE")]
    pub(super) receipts: Option<PathBuf>,
}

impl HubArgs {
    pub(super) fn fan_out(&self) -> FanOut {
        match &self.fan_out {
            FanOut::Auto(_) => FanOut::Auto(auto(self.uplink)),
            other => other.clone(),
        }
    }
}

/// The automatic choice, told of the uplink in bytes a second if that is known.
pub(super) fn auto(uplink: Option<u64>) -> AutoFanOut {
    let auto = AutoFanOut::default();
    uplink.map_or(auto, |uplink| auto.with_uplink_bytes_per_s(uplink))
}

/// Runs a spoke: prints what its hub sends, and sends each line of stdin to the hub.
///
/// stdout gets one JSON object a line for each event:
/// {"position":{"epoch":"…","offset":7},"type":…,"id":…,"payload":…,"via":"direct"|"gossip"|"repair"}.
/// `position` is null with --compat, and for an event to this spoke alone, which has
/// "targeted":true. Broadcasts that the hub no longer had when they were due are reported as
/// {"missed":{"from":{…},"to":{…}}}, events for which stdout was too slow as {"lagged":{"events":N}}. If the link is
/// lost, {"status":"reconnecting","attempt":N,"after":SECONDS,"closed":"…"} says before each attempt when it comes,
/// {"status":"connected"} that there is a link again, and {"status":"recovered","wholly":true|false} that
/// everything is printed up to where the hub was then, and whether nothing was missed since the loss; this it
/// says after a start at a kept position too.
#[derive(Debug, Args)]
#[command(after_help = exit::HELP)]
pub(super) struct SpokeArgs {
    /// The hub's ticket, as it printed it
    #[arg(value_name = "TICKET")]
    pub(super) ticket: String,
    #[command(flatten)]
    pub(super) network: NetworkArgs,
    /// Whether it takes part in gossip: in full, by which other spokes learn its IP addresses; by relays
    /// only, by which they learn its id and its relay and everything goes by that relay; or not, so that other
    /// spokes do not learn of it and the hub serves it directly
    #[arg(long, value_enum, default_value_t = GossipMode::Full)]
    pub(super) gossip: GossipMode,
    /// Speaks the plain protocol alkpubsub/1
    #[arg(long)]
    pub(super) compat: bool,
    /// Where to begin: with the next event, or with the oldest that the hub still has
    #[arg(long, value_enum, default_value_t = Start::Tip)]
    pub(super) from: Start,
    /// Keeps the position in this file: started again, however it ended, it goes on behind the last event
    /// that it printed, and prints one twice at most. The file is made when the hub is first reached; until
    /// then, --from counts. Killed, it may leave half a line on stdout
    #[arg(long, value_name = "FILE", conflicts_with = "compat")]
    pub(super) position: Option<PathBuf>,
    /// Tries again until the hub is first reached; without it, there is one attempt. --position does so too
    #[arg(long, conflicts_with_all = ["compat", "no_reconnect"])]
    pub(super) retry: bool,
    /// Comes back after the hub's goodbye too
    #[arg(long, conflicts_with_all = ["compat", "no_reconnect"])]
    pub(super) stay: bool,
    /// Ends when the link to the hub is lost, and does not come back
    #[arg(long)]
    pub(super) no_reconnect: bool,
    /// Prints only events whose type matches, for example `order.*`
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    pub(super) filter: Pattern,
    /// Ends well after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// What is printed: the whole event as JSON, or its payload alone, texts without their quotes
    #[arg(long, value_enum, default_value_t = OutputFormat::Json)]
    pub(super) output: OutputFormat,
    /// What a line of stdin is: a text, which is sent as {"type":"line","payload":"the text"}, or
    /// {"type":…,"payload":…,"id"?:…}
    #[arg(long, value_enum, default_value_t = InputFormat::Lines)]
    pub(super) input: InputFormat,
}

#[derive(Clone, Debug, Args)]
pub(super) struct AdmissionArgs {
    /// Lets in the spoke with this endpoint id, and otherwise only who is allowed likewise; may be
    /// given several times
    #[arg(long, value_name = "ID")]
    pub(super) allow: Vec<EndpointId>,
    /// The same for every id in this file, one a line, # before a comment. The file is read again while the
    /// hub runs, and a change counts about a second later: new ids are let in, and who is on it no longer
    /// is cut off. Replace it by renaming. While it is gone or has a mistake, what it said before holds
    #[arg(long, value_name = "FILE")]
    pub(super) allow_file: Option<PathBuf>,
    /// Keeps out the spoke with this endpoint id, even if it is allowed; may be given several times
    #[arg(long, value_name = "ID")]
    pub(super) deny: Vec<EndpointId>,
    /// The same for every id in this file, which is read again as that of --allow-file is
    #[arg(long, value_name = "FILE")]
    pub(super) deny_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// Stays on this machine: the loopback address only, no relay, no look-up
    #[arg(long)]
    pub(super) local: bool,
    /// Keeps the secret key, and so the endpoint id, in this file, which is made if there is none
    /// [default: a new key each time]
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// Serves metrics as OpenMetrics text at http://ADDR/metrics, to whoever reaches that address, for
    /// example 127.0.0.1:9100; with port 0 at a free one. stderr says where
    #[arg(long, value_name = "ADDR")]
    pub(super) metrics: Option<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum InputFormat {
    Lines,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum GossipMode {
    Full,
    RelayOnly,
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum OutputFormat {
    Json,
    Payload,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Start {
    Tip,
    Earliest,
}

impl std::convert::From<GossipMode> for Gossip {
    fn from(mode: GossipMode) -> Self {
        match mode {
            GossipMode::Full => Self::Full,
            GossipMode::RelayOnly => Self::RelayOnly,
            GossipMode::Off => Self::Off,
        }
    }
}

impl std::convert::From<Start> for From {
    fn from(start: Start) -> Self {
        match start {
            Start::Tip => Self::Tip,
            Start::Earliest => Self::Earliest,
        }
    }
}

/// Reads `10MB` or a bare number of bytes, for each second.
pub(super) fn uplink(text: &str) -> Result<u64, String> {
    let size: ByteSize = text
        .parse()
        .map_err(|_| "give bytes a second, as 1250KB or 12.5MB".to_owned())?;
    match size.as_u64() {
        0 => Err("give at least one byte a second".to_owned()),
        bytes => Ok(bytes),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "this is not a number of seconds".to_owned())?;
    // A year; what tokio's clock can wait for is not endless.
    if !(0.0..=31_536_000.0).contains(&seconds) {
        return Err("give 0 seconds or more, and no more than a year".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}
