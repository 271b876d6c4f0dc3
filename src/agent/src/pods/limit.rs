//! How many steps at once a runtime sustains, learned from how long they take and from whether the node has
//! processors to spare. Pure but for the reading of the kernel's counters; who waits for whom is in `gate.rs`.

use std::time::Duration;

use longshore_kernel::proc::{PressureOf, Proc};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

/// What can be seen of the node's load at one instant, all counted up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// For how long something waited for a processor or a disk.
    pub stalled: Duration,
    /// Processor time of this process.
    pub own: Duration,
}

/// Tells of the node's load.
pub trait Stalls: Send + Sync + std::fmt::Debug {
    /// `None` where the kernel does not tell.
    fn now(&self) -> Option<Load>;
}

/// The kernel's pressure stall information (Documentation/accounting/psi.rst). The totals are exact to the
/// microsecond at each reading, whatever the averages beside them.
#[derive(Debug, Default)]
pub struct KernelStalls(Proc);

impl Stalls for KernelStalls {
    fn now(&self) -> Option<Load> {
        let of = |what| self.0.pressure(what).map(|pressure| pressure.some.total);
        let stalled = Duration::from_micros(of(PressureOf::Cpu)?.saturating_add(of(PressureOf::Io)?));
        let own = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        Some(Load { stalled, own: duration(own.user_time()) + duration(own.system_time()) })
    }
}

fn duration(time: TimeVal) -> Duration {
    Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or_default())
}

/// What the time between two looks says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Hardly anything waited.
    Room,
    /// Things waited, and it was not this daemon that was at work.
    Crowd,
    /// Things waited while this daemon worked: they may have waited for it.
    Unclear,
}

/// Of the time: a node has room where things waited for less, and the daemon is at work where it used more.
const CALM: f64 = 0.1;
const AT_WORK: f64 = 0.25;

impl Seen {
    /// `None` where the kernel does not tell.
    pub fn between(before: Option<Load>, now: Option<Load>, elapsed: Duration) -> Option<Self> {
        let (before, now) = before.zip(now)?;
        let part = |from: Duration, to: Duration| to.saturating_sub(from).div_duration_f64(elapsed);
        Some(match () {
            () if part(before.stalled, now.stalled) < CALM => Self::Room,
            () if part(before.own, now.own) > AT_WORK => Self::Unclear,
            () => Self::Crowd,
        })
    }
}

/// The number of steps at once, learned from how much longer they take than the fastest lately (the gradient of
/// latency, as TCP Vegas does it). Until they are slower for the first time it is doubled: per round of steps, and
/// without one where the node was seen to have room while all of them were under way. Then it goes up by one per round
/// while they are hardly slower, and down by a tenth when they are much slower.
#[derive(Debug)]
pub(super) struct Limit {
    floor: f64,
    ceiling: f64,
    now: f64,
    /// Fastest lately, by stage; drifts up so that an old record does not hold for ever.
    fastest: [Option<f64>; STAGES],
    /// Smoothed ratio of measured to fastest.
    strain: f64,
    /// Nothing was slower yet: what is sustained is far off, or not known.
    doubling: bool,
}

/// Stages of a pod's way that are told apart.
pub(super) const STAGES: usize = 3;

const HARDLY_SLOWER: f64 = 1.5;
const MUCH_SLOWER: f64 = 2.5;

impl Limit {
    pub fn new(floor: usize, initial: usize, ceiling: usize) -> Self {
        let (floor, ceiling) = (floor as f64, ceiling.max(floor) as f64);
        Self {
            floor,
            ceiling,
            now: (initial as f64).clamp(floor, ceiling),
            fastest: [None; STAGES],
            strain: 1.0,
            doubling: true,
        }
    }

    pub fn now(&self) -> usize {
        self.now as usize
    }

    /// Whether it may still be doubled.
    pub fn is_unknown(&self) -> bool {
        self.doubling && self.now < self.ceiling
    }

    /// All that are allowed were under way and the node had room for more.
    pub fn had_room(&mut self) {
        if self.doubling {
            self.now = (self.now * 2.0).min(self.ceiling);
        }
    }

    /// One that was under way hangs: it uses nothing of the node, so that more can be tried at once.
    pub fn one_hangs(&mut self) {
        self.now = (self.now + 1.0).min(self.ceiling);
    }

    pub fn measured(&mut self, stage: u8, took: Duration, saturated: bool) {
        // Below a millisecond the runtime is not what takes the time.
        let took = took.as_secs_f64().max(0.001);
        let slot = &mut self.fastest[usize::from(stage)];
        let fastest = slot.map_or(took, |old| (old * 1.001).min(took));
        *slot = Some(fastest);
        self.strain = self.strain * 0.8 + (took / fastest) * 0.2;
        self.doubling &= self.strain < HARDLY_SLOWER;
        if self.strain > MUCH_SLOWER {
            self.now = (self.now * 0.9).max(self.floor);
            // Let the next steps show what the lower limit does before it is lowered again.
            self.strain = HARDLY_SLOWER;
        } else if self.strain < HARDLY_SLOWER && saturated {
            let more = if self.doubling { 1.0 } else { 1.0 / self.now };
            self.now = (self.now + more).min(self.ceiling);
        }
    }
}
