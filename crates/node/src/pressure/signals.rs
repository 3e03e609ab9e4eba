//! What a node runs out of, and from where on that is pressure. Pure but for [`Seen::look`].
//!
//! A signal below its threshold makes the node's condition true at once; the condition stays for [`TRANSITION`] after the signal
//! was last below, so that it does not flicker.
//!
//! Differs from the kubelet in two places: a tenth of a large disk is much room, so that the default for disks ends at
//! [`DISK_BYTES_ENOUGH`]; and process ids have a default threshold.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use mainstay_model::quantity::Quantity;
use nix::sys::statvfs::statvfs;

/// How long a condition outlives its cause, as the kubelet's `evictionPressureTransitionPeriod`.
pub const TRANSITION: SignedDuration = SignedDuration::from_mins(5);
/// Free bytes on a disk that are never too few unless somebody says so.
pub const DISK_BYTES_ENOUGH: u64 = 4 << 30;

/// What there is too little of, in the order in which it is dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// `memory.available`.
    Memory,
    /// `nodefs.available`.
    Disk,
    /// `nodefs.inodesFree`.
    Inodes,
    /// `pid.available`.
    Pids,
}

/// Every signal: its name in thresholds, and how messages call what is low.
pub const SIGNALS: [(Signal, &str, &str); 4] = [
    (Signal::Memory, "memory.available", "memory"),
    (Signal::Disk, "nodefs.available", "ephemeral-storage"),
    (Signal::Inodes, "nodefs.inodesFree", "inodes"),
    (Signal::Pids, "pid.available", "pids"),
];

impl Signal {
    /// How messages call what is low.
    pub fn resource(self) -> &'static str {
        SIGNALS[self as usize].2
    }
}

/// A limit: an amount, or a share of all there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// So many bytes, inodes or process ids.
    Exactly(u64),
    /// So many percent of the capacity, but no more than the number beside.
    Share(f64, u64),
}

impl Amount {
    fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Exactly(amount) => amount,
            Self::Share(percent, at_most) => ((capacity as f64 * percent / 100.0) as u64).min(at_most),
        }
    }
}

/// From where on pods are evicted, by signal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds([Amount; 4]);

impl Default for Thresholds {
    fn default() -> Self {
        Self([
            Amount::Exactly(100 << 20),
            Amount::Share(10.0, DISK_BYTES_ENOUGH),
            Amount::Share(5.0, u64::MAX),
            Amount::Share(5.0, u64::MAX),
        ])
    }
}

/// Why thresholds cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// Not `signal<amount`.
    #[error("{0:?} is not of the form signal<amount, such as memory.available<100Mi")]
    Form(String),
    /// No such signal.
    #[error(
        "there is no signal {0:?}; there are memory.available, nodefs.available, nodefs.inodesFree and pid.available"
    )]
    Signal(String),
    /// Neither a quantity nor a percentage.
    #[error("{0:?} is neither a quantity nor a percentage")]
    Amount(String),
}

impl FromStr for Thresholds {
    type Err = ThresholdError;

    /// Reads `memory.available<100Mi,nodefs.available<10%`; what is not said keeps its default.
    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let mut all = Self::default();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (name, amount) = part.split_once('<').ok_or_else(|| ThresholdError::Form(part.to_owned()))?;
            let found = SIGNALS.iter().find(|(_, known, _)| *known == name.trim());
            let (signal, ..) = found.ok_or_else(|| ThresholdError::Signal(name.to_owned()))?;
            let wrong = || ThresholdError::Amount(amount.to_owned());
            all.0[*signal as usize] = if let Some(percent) = amount.trim().strip_suffix('%') {
                let percent =
                    percent.parse().ok().filter(|percent| (0.0..100.0).contains(percent)).ok_or_else(wrong)?;
                Amount::Share(percent, u64::MAX)
            } else {
                let quantity: Quantity = amount.trim().parse().map_err(|_| wrong())?;
                Amount::Exactly(u64::try_from(quantity.value()).map_err(|_| wrong())?)
            };
        }
        Ok(all)
    }
}

impl fmt::Display for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (signal, name, _)) in SIGNALS.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match self.0[*signal as usize] {
                Amount::Exactly(amount) => write!(f, "{comma}{name}<{amount}")?,
                Amount::Share(percent, _) => write!(f, "{comma}{name}<{percent}%")?,
            }
        }
        Ok(())
    }
}

impl Thresholds {
    /// How much memory has to stay free.
    pub fn memory_bytes(&self, capacity: u64) -> u64 {
        self.0[Signal::Memory as usize].of(capacity)
    }

    /// How much of the disk has to stay free.
    pub fn disk_bytes(&self, capacity: u64) -> u64 {
        self.0[Signal::Disk as usize].of(capacity)
    }
}

/// What is left of one thing, and how much there is of it in all. A capacity of zero is one that cannot be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// What is left.
    pub available: u64,
    /// What there is.
    pub capacity: u64,
}

/// What is left of everything, in the order of [`SIGNALS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen(pub [Left; 4]);

impl Seen {
    /// Looks at the machine and the disk of the node's directory. `node_memory` is what the node may use and what its pods do.
    pub fn look(data_dir: &Path, node_memory: (u64, u64)) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory = read("/proc/meminfo");
        let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let free = line.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        let (capacity, used) = node_memory;
        let own = capacity.saturating_sub(used);
        let memory = Left { available: free.map_or(own, |kib| own.min(kib * 1024)), capacity };
        let (mut disk, mut inodes) = (Left::default(), Left::default());
        if let Ok(found) = statvfs(data_dir) {
            let unit = found.fragment_size();
            disk = Left { available: found.blocks_available() * unit, capacity: found.blocks() * unit };
            inodes = Left { available: found.files_available(), capacity: found.files() };
        }
        let number = |text: String| text.trim().parse::<u64>().ok();
        let most = [number(read("/proc/sys/kernel/pid_max")), number(read("/proc/sys/kernel/threads-max"))];
        let capacity = most.into_iter().flatten().min().unwrap_or(0);
        // "0.00 0.00 0.00 1/234 5678": processes and threads that run, and those that there are.
        let load = read("/proc/loadavg");
        let used = load.split([' ', '/']).nth(4).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let pids = Left { available: capacity.saturating_sub(used), capacity };
        Self([memory, disk, inodes, pids])
    }

    /// What is below its threshold.
    pub fn low(&self, thresholds: &Thresholds) -> impl Iterator<Item = Signal> + use<> {
        let (seen, limits) = (self.0, thresholds.0);
        SIGNALS.into_iter().map(|(signal, ..)| signal).filter(move |signal| {
            let left = seen[*signal as usize];
            left.capacity > 0 && left.available < limits[*signal as usize].of(left.capacity)
        })
    }

    /// What an eviction's message says of a signal: `Threshold quantity: 100Mi, available: 50000Ki`.
    pub fn message(&self, signal: Signal, thresholds: &Thresholds) -> String {
        let left = self.0[signal as usize];
        let limit = thresholds.0[signal as usize].of(left.capacity);
        let text = |amount: u64| match signal {
            Signal::Memory | Signal::Disk => format!("{}Ki", amount / 1024),
            Signal::Inodes | Signal::Pids => amount.to_string(),
        };
        let (limit, left) = (text(limit), text(left.available));
        format!("The node was low on resource: {}. Threshold quantity: {limit}, available: {left}. ", signal.resource())
    }
}

/// The node's three pressure conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressures {
    /// `MemoryPressure`.
    pub memory: bool,
    /// `DiskPressure`.
    pub disk: bool,
    /// `PIDPressure`.
    pub pids: bool,
}

/// When each signal was last below its threshold.
#[derive(Debug, Clone, Copy, Default)]
pub struct History([Option<Timestamp>; 4]);

impl History {
    /// Takes in what is low now; answers the conditions.
    pub fn step(&mut self, low: &[Signal], now: Timestamp) -> Pressures {
        for signal in low {
            self.0[*signal as usize] = Some(now);
        }
        let holds = |signal: Signal| self.0[signal as usize].is_some_and(|at| now.duration_since(at) < TRANSITION);
        Pressures {
            memory: holds(Signal::Memory),
            disk: holds(Signal::Disk) || holds(Signal::Inodes),
            pids: holds(Signal::Pids),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn thresholds_are_read_as_the_kubelets() {
        let own: Thresholds = "memory.available<200Mi, nodefs.available<15%".parse().unwrap();
        assert_eq!((own.memory_bytes(GIB), own.disk_bytes(1000)), (200 << 20, 150));
        assert_eq!(own.to_string().parse(), Ok(own));
        let default = Thresholds::default();
        assert_eq!((default.disk_bytes(10 * GIB), default.disk_bytes(1000 * GIB)), (GIB, DISK_BYTES_ENOUGH));
        for (text, error) in [
            ("memory.available=1", ThresholdError::Form("memory.available=1".to_owned())),
            ("cpu.available<1", ThresholdError::Signal("cpu.available".to_owned())),
            ("memory.available<much", ThresholdError::Amount("much".to_owned())),
            ("memory.available<200%", ThresholdError::Amount("200%".to_owned())),
        ] {
            assert_eq!(text.parse::<Thresholds>(), Err(error));
        }
    }

    #[test]
    fn conditions_outlive_their_cause() {
        let full = Left { available: GIB, capacity: GIB };
        let seen = Seen([Left { available: 50 << 20, ..full }, full, full, Left::default()]);
        let thresholds = Thresholds::default();
        let low: Vec<_> = seen.low(&thresholds).collect();
        assert_eq!(low, [Signal::Memory], "what cannot be told is not low");
        assert!(seen.message(Signal::Memory, &thresholds).contains("Threshold quantity: 102400Ki, available: 51200Ki"));
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut history = History::default();
        assert!(!history.step(&[], at(0)).memory);
        assert!(history.step(&low, at(10)).memory);
        assert!(history.step(&[], at(300)).memory);
        assert_eq!(history.step(&[], at(310)), Pressures::default());
        assert!(history.step(&[Signal::Inodes], at(400)).disk);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let seen = Seen::look(Path::new("/"), (GIB, 0));
        assert!(seen.0.iter().all(|left| left.capacity > 0 && left.available <= left.capacity), "{seen:?}");
    }
}
