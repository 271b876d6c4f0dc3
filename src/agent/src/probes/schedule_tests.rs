use super::*;
use std::collections::BTreeMap;

fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn target(id: &str, kind: ProbeKind) -> ProbeTarget {
    ProbeTarget {
        container: "c".into(),
        id: id.into(),
        kind,
        action: ProbeAction::Hook(Hook::TcpSocket { host: "127.0.0.1".into(), port: 1 }),
        container_started_at: wall(0),
        initial_delay: Duration::ZERO,
        timeout: Duration::from_secs(1),
        period: Duration::from_secs(10),
        success_threshold: 1,
        failure_threshold: 3,
    }
}

fn exec(id: &str) -> ProbeTarget {
    let action = ProbeAction::Hook(Hook::Exec { command: vec!["true".into()] });
    ProbeTarget { action, ..target(id, ProbeKind::Liveness) }
}

/// A schedule whose clock is moved by hand; answers come at once.
struct World {
    schedule: Schedule,
    origin: Instant,
    second: f64,
}

impl World {
    fn new(network: usize, exec: usize) -> Self {
        let origin = Instant::now();
        let settings = ProbeSettings { max_network_tries: network, max_exec_tries: exec };
        Self { schedule: Schedule::new(settings, origin, wall(500)), origin, second: 0.0 }
    }

    fn now(&self) -> Instant {
        self.origin + Duration::from_secs_f64(self.second)
    }

    fn wall(&self) -> Timestamp {
        wall(0).saturating_add(Duration::from_secs_f64(self.second)).unwrap()
    }

    fn want(&mut self, pod: &str, targets: Vec<ProbeTarget>) {
        let (now, wall) = (self.now(), self.wall());
        self.schedule.want(&pod.into(), &PodKey::new("n", pod), targets, now, wall);
    }

    /// Runs until `end`, answering each try by `answer(second)`, and gives the seconds of the tries.
    fn run(&mut self, end: f64, answer: impl Fn(f64) -> bool) -> (Vec<f64>, Vec<Verdict>) {
        let (mut tries, mut verdicts) = (Vec::new(), Vec::new());
        loop {
            for due in self.schedule.due(self.now()) {
                tries.push(self.second);
                let outcome = match answer(self.second) {
                    true => Outcome::Success("ok".into()),
                    false => Outcome::Failure("no".into()),
                };
                let (now, wall) = (self.now(), self.wall());
                verdicts.extend(self.schedule.finished(&due, outcome, now, wall));
            }
            let Some(next) = self.schedule.next_due() else { break };
            let next = next.saturating_duration_since(self.origin).as_secs_f64();
            if next > end {
                break;
            }
            self.second = self.second.max(next);
        }
        self.second = end;
        (tries, verdicts)
    }
}

#[test]
fn failures_come_one_period_apart_from_the_initial_delay_on() {
    let mut world = World::new(10, 10);
    let target = ProbeTarget { initial_delay: Duration::from_secs(5), ..target("a", ProbeKind::Liveness) };
    world.want("p", vec![target]);
    let (tries, verdicts) = world.run(100.0, |_| false);
    assert_eq!(tries, [5.0, 15.0, 25.0], "and no more: the container is about to be killed");
    assert_eq!(verdicts.len(), 1);
    assert!(!verdicts[0].result.healthy);
    assert_eq!((verdicts[0].result.since, verdicts[0].result.message.as_str()), (wall(25), "no"));
}

#[test]
fn a_healthy_probe_moves_into_its_own_phase_and_never_waits_longer_than_a_period() {
    let mut world = World::new(10, 10);
    world.want("p", vec![target("a", ProbeKind::Readiness)]);
    let (tries, verdicts) = world.run(200.0, |_| true);
    assert_eq!(tries[0], 0.0);
    assert_eq!(verdicts.len(), 1);
    let gaps: Vec<f64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] > 0.0 && gaps[0] <= 10.0, "{gaps:?}");
    assert!(gaps[1..].iter().all(|gap| (gap - 10.0).abs() < 1e-6), "{gaps:?}");
}

#[test]
fn verdicts_change_with_the_thresholds_and_readiness_goes_on() {
    let mut world = World::new(10, 10);
    world.want("p", vec![target("a", ProbeKind::Readiness)]);
    let (_, verdicts) = world.run(300.0, |second| !(100.0..200.0).contains(&second));
    let healthy: Vec<bool> = verdicts.iter().map(|verdict| verdict.result.healthy).collect();
    assert_eq!(healthy, [true, false, true]);
    let lost = verdicts[1].result.since.duration_since(wall(0)).as_secs();
    assert!((120..=130).contains(&lost), "the third failure after second 100: {lost}");
}

#[test]
fn errors_are_no_answers() {
    let mut world = World::new(10, 10);
    world.want("p", vec![target("a", ProbeKind::Liveness)]);
    for _ in 0..10 {
        let due = world.schedule.due(world.now()).remove(0);
        let (now, wall) = (world.now(), world.wall());
        assert_eq!(world.schedule.finished(&due, Outcome::Error("no runtime".into()), now, wall), None);
        world.second += 10.0;
    }
    assert_eq!(world.schedule.totals().errors, 10);
    assert_eq!(world.schedule.totals().failures, 0);
}

#[test]
fn wanting_again_keeps_the_counts_and_not_wanting_ends() {
    let mut world = World::new(10, 10);
    world.want("p", vec![target("a", ProbeKind::Liveness), target("a", ProbeKind::Readiness)]);
    assert_eq!(world.run(15.0, |_| false).0.len(), 4);
    // The same set, and one more: two failures are remembered, so the next one is the third.
    let more = vec![target("a", ProbeKind::Liveness), target("a", ProbeKind::Readiness), exec("b")];
    world.want("p", more);
    let (_, verdicts) = world.run(25.0, |_| false);
    assert_eq!(verdicts.len(), 2, "{verdicts:?}");
    // Another instance begins anew.
    world.want("p", vec![target("a2", ProbeKind::Liveness)]);
    assert_eq!(world.schedule.totals().probes, 1);
    let (_, verdicts) = world.run(40.0, |_| false);
    assert!(verdicts.is_empty(), "{verdicts:?}");
    world.want("p", Vec::new());
    assert_eq!(world.run(200.0, |_| false).0.len(), 0);
    assert_eq!(world.schedule.totals().probes, 0);
    assert!(
        world.schedule.probes.is_empty()
            && world.schedule.by_pod.is_empty()
            && world.schedule.heap.is_empty()
    );
}

#[test]
fn a_try_in_flight_whose_probe_is_gone_says_nothing() {
    let mut world = World::new(10, 10);
    let once = ProbeTarget { failure_threshold: 1, ..target("a", ProbeKind::Liveness) };
    world.want("p", vec![once]);
    let due = world.schedule.due(world.now()).remove(0);
    world.want("p", Vec::new());
    let (now, wall) = (world.now(), world.wall());
    assert_eq!(world.schedule.finished(&due, Outcome::Failure("late".into()), now, wall), None);
    assert_eq!(world.schedule.totals().in_flight, 0);
}

#[test]
fn hanging_execs_fill_their_own_lane_only() {
    let mut world = World::new(100, 4);
    for n in 0..50 {
        world.want(&format!("e{n}"), vec![exec("a")]);
        world.want(&format!("t{n}"), vec![target("a", ProbeKind::Readiness)]);
    }
    let tries = world.schedule.due(world.now());
    let execs = tries.iter().filter(|due| is_exec(&due.target)).count();
    assert_eq!((execs, tries.len()), (4, 54));
    assert_eq!(world.schedule.totals().waiting, 46);
    // One ends, the next in turn begins.
    let done = tries.iter().find(|due| is_exec(&due.target)).unwrap();
    let (now, wall) = (world.now(), world.wall());
    world.schedule.finished(done, Outcome::Success(String::new()), now, wall);
    assert_eq!(world.schedule.due(world.now()).len(), 1);
}

#[test]
fn a_slow_try_is_followed_at_once_and_never_by_a_burst() {
    let mut world = World::new(10, 10);
    world.want("p", vec![target("a", ProbeKind::Readiness)]);
    let due = world.schedule.due(world.now()).remove(0);
    world.second = 35.0;
    let (now, wall) = (world.now(), world.wall());
    world.schedule.finished(&due, Outcome::Failure("slow".into()), now, wall);
    let (tries, _) = world.run(46.0, |_| false);
    assert_eq!(tries, [35.0, 45.0]);
}

/// The bench-like one: five thousand probes that are all found running after a restart.
#[test]
fn five_thousand_probes_are_spread_and_cost_one_heap_step_each() {
    let mut world = World::new(512, 32);
    world.second = 1000.0;
    for n in 0..5000 {
        world.want(&format!("p{n}"), vec![target("a", ProbeKind::Readiness)]);
    }
    let mut per_slot: BTreeMap<u64, usize> = BTreeMap::new();
    let (tries, verdicts) = world.run(1100.0, |_| true);
    for second in &tries {
        *per_slot.entry((second * 10.0) as u64).or_default() += 1;
    }
    assert_eq!(verdicts.len(), 5000, "each was heard once");
    assert_eq!(tries.len(), 50_000, "ten tries each in a hundred seconds, not one more");
    let (most, least) = (per_slot.values().max().unwrap(), per_slot.values().min().unwrap());
    // 50 per 100 ms if perfectly even; hashed phases give a Poisson spread around it.
    assert!(*most < 90 && *least > 20, "{least}..{most} tries per 100 ms");
    assert_eq!(world.schedule.heap.len(), 5000, "one entry per probe");
}

#[test]
fn probes_that_begin_together_do_not_stay_together() {
    let mut world = World::new(6000, 32);
    for n in 0..1000 {
        world.want(&format!("p{n}"), vec![target("a", ProbeKind::Readiness)]);
    }
    let (tries, _) = world.run(100.0, |_| true);
    let at_once = tries.iter().filter(|second| **second == 0.0).count();
    assert_eq!(at_once, 1000, "the first try of a new container is not held back");
    let mut per_slot: BTreeMap<u64, usize> = BTreeMap::new();
    for second in tries.iter().filter(|second| **second >= 20.0) {
        *per_slot.entry((second * 10.0) as u64).or_default() += 1;
    }
    let most = per_slot.values().max().unwrap();
    assert!(*most < 40, "{most} of 1000 within 100 ms");
}
