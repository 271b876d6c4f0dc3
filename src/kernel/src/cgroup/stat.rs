//! The figures of a cgroup v2 (`Documentation/admin-guide/cgroup-v2.rst`), parsed from the text of its
//! files. Parsing takes any text, bounded by its caller, and never panics; what a kernel does not offer
//! is `None`, never 0.

use std::fmt;

/// Memory of a group, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryStat {
    /// `memory.current`.
    pub current: u64,
    /// `memory.max`; `None` without a limit.
    pub max: Option<u64>,
    /// `anon` of `memory.stat`.
    pub anon: u64,
    /// `file` of `memory.stat`.
    pub file: u64,
    /// `inactive_file` of `memory.stat`.
    pub inactive_file: u64,
    /// `pgfault` of `memory.stat`.
    pub page_faults: u64,
    /// `pgmajfault` of `memory.stat`.
    pub major_page_faults: u64,
    /// `memory.swap.current`, where swap is accounted.
    pub swap: Option<u64>,
    /// `memory.events`.
    pub events: MemoryEvents,
}

impl MemoryStat {
    /// What eviction and `top` count: everything but file pages the kernel can drop at once.
    pub fn working_set(&self) -> u64 {
        self.current.saturating_sub(self.inactive_file)
    }
}

/// How often things happened to a group's memory (`memory.events`), descendants included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryEvents {
    /// The limit was hit.
    pub max: u64,
    /// The limit was hit and nothing could be reclaimed.
    pub oom: u64,
    /// Processes killed for it.
    pub oom_kill: u64,
    /// Whole groups killed for it (`memory.oom.group`).
    pub oom_group_kill: u64,
}

/// CPU time of a group (`cpu.stat`), in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuStat {
    /// All time.
    pub usage: u64,
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// Periods of `cpu.max` that passed.
    pub periods: u64,
    /// Those in which it was held back.
    pub throttled_periods: u64,
    /// For how long in all.
    pub throttled: u64,
}

/// Processes of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PidsStat {
    /// `pids.current`.
    pub current: u64,
    /// `pids.max`; `None` without a limit.
    pub max: Option<u64>,
}

/// I/O of a group on one device (`io.stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoStat {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Share of time in which tasks waited (pressure stall information), in percent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stall {
    /// Over 10 seconds.
    pub avg10: f64,
    /// Over a minute.
    pub avg60: f64,
    /// Over five minutes.
    pub avg300: f64,
    /// In all, in microseconds.
    pub total: u64,
}

/// Pressure on one resource.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressure {
    /// Some task waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// Everything the reader knows of a group.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CgroupStat {
    /// Whether there are processes in it or below.
    pub populated: bool,
    /// `None` without the memory controller.
    pub memory: Option<MemoryStat>,
    /// `None` on a kernel without `cpu.stat`.
    pub cpu: Option<CpuStat>,
    /// `None` without the pids controller.
    pub pids: Option<PidsStat>,
    /// Empty without the io controller.
    pub io: Vec<IoStat>,
    /// `None` on a kernel without pressure stall information.
    pub cpu_pressure: Option<Pressure>,
    /// `None` on a kernel without pressure stall information.
    pub memory_pressure: Option<Pressure>,
    /// `None` on a kernel without pressure stall information.
    pub io_pressure: Option<Pressure>,
}

/// The value of `key` in text of lines `key value`.
pub fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A number alone.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A limit: `Some(None)` for `max`.
pub fn limit(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "max" => Some(None),
        value => value.parse().ok().map(Some),
    }
}

/// `memory.stat` and `memory.events` into what was read from the other files.
pub fn parse_memory(memory: &mut MemoryStat, stat: &str, events: &str) {
    memory.anon = field(stat, "anon").unwrap_or_default();
    memory.file = field(stat, "file").unwrap_or_default();
    memory.inactive_file = field(stat, "inactive_file").unwrap_or_default();
    memory.page_faults = field(stat, "pgfault").unwrap_or_default();
    memory.major_page_faults = field(stat, "pgmajfault").unwrap_or_default();
    memory.events = parse_memory_events(events);
}

/// `memory.events`; what an older kernel does not count is 0.
pub fn parse_memory_events(text: &str) -> MemoryEvents {
    let count = |name| field(text, name).unwrap_or_default();
    MemoryEvents {
        max: count("max"),
        oom: count("oom"),
        oom_kill: count("oom_kill"),
        oom_group_kill: count("oom_group_kill"),
    }
}

/// `cpu.stat`; `None` without a usage.
pub fn parse_cpu(text: &str) -> Option<CpuStat> {
    Some(CpuStat {
        usage: field(text, "usage_usec")?,
        user: field(text, "user_usec").unwrap_or_default(),
        system: field(text, "system_usec").unwrap_or_default(),
        periods: field(text, "nr_periods").unwrap_or_default(),
        throttled_periods: field(text, "nr_throttled").unwrap_or_default(),
        throttled: field(text, "throttled_usec").unwrap_or_default(),
    })
}

/// `io.stat`; lines that make no sense are left out.
pub fn parse_io(text: &str) -> Vec<IoStat> {
    text.lines().filter_map(parse_io_line).collect()
}

fn parse_io_line(line: &str) -> Option<IoStat> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut io = IoStat { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IoStat::default() };
    for word in words {
        let Some((key, value)) = word.split_once('=') else { continue };
        let Ok(value) = value.parse() else { continue };
        match key {
            "rbytes" => io.read_bytes = value,
            "wbytes" => io.written_bytes = value,
            "rios" => io.reads = value,
            "wios" => io.writes = value,
            _ => {}
        }
    }
    Some(io)
}

/// A `*.pressure` file, or one below /proc/pressure; `None` without a `some` line.
pub fn parse_pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(parse_stall));
    Some(Pressure { some: line("some ")?, full: line("full ").unwrap_or_default() })
}

fn parse_stall(line: &str) -> Stall {
    let mut stall = Stall::default();
    for word in line.split_whitespace() {
        match word.split_once('=') {
            Some(("avg10", value)) => stall.avg10 = value.parse().unwrap_or_default(),
            Some(("avg60", value)) => stall.avg60 = value.parse().unwrap_or_default(),
            Some(("avg300", value)) => stall.avg300 = value.parse().unwrap_or_default(),
            Some(("total", value)) => stall.total = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    stall
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "some {:.1}% full {:.1}% (10 s)", self.some.avg10, self.full.avg10)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_are_read_from_the_kernels_text() {
        let mut memory = MemoryStat { current: 10_000_000, ..MemoryStat::default() };
        parse_memory(
            &mut memory,
            "anon 4096\nfile 8192\nkernel 1\ninactive_anon 7\ninactive_file 2000000\npgfault 12\npgmajfault 3\n",
            "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n",
        );
        assert_eq!((memory.anon, memory.file, memory.inactive_file), (4096, 8192, 2_000_000));
        assert_eq!(memory.working_set(), 8_000_000);
        assert_eq!(memory.events, MemoryEvents { max: 5, oom: 2, oom_kill: 1, oom_group_kill: 0 });

        let cpu =
            "usage_usec 100\nuser_usec 60\nsystem_usec 40\nnr_periods 9\nnr_throttled 2\nthrottled_usec 7\n";
        let expected =
            CpuStat { usage: 100, user: 60, system: 40, periods: 9, throttled_periods: 2, throttled: 7 };
        assert_eq!(parse_cpu(cpu), Some(expected));
        assert_eq!(parse_cpu(""), None, "a missing figure is not 0");

        let io = "254:0 rbytes=1024 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nnonsense\n7:0 \n";
        assert_eq!(
            parse_io(io),
            [
                IoStat { major: 254, minor: 0, read_bytes: 1024, written_bytes: 2, reads: 3, writes: 4 },
                IoStat { major: 7, ..IoStat::default() },
            ]
        );

        let pressure = "some avg10=1.50 avg60=0.20 avg300=0.00 total=77\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=5\n";
        let pressure = parse_pressure(pressure).unwrap();
        assert_eq!((pressure.some.avg10, pressure.some.total, pressure.full.total), (1.5, 77, 5));
        assert_eq!((limit("max\n"), limit("512\n"), limit("x")), (Some(None), Some(Some(512)), None));
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,200}") {
            let mut memory = MemoryStat::default();
            parse_memory(&mut memory, &text, &text);
            let _ = (parse_cpu(&text), parse_io(&text), parse_pressure(&text), limit(&text));
        }
    }
}
