//! `longshore timeline`: what happened to a pod, step by step, with the milliseconds each took.

use jiff::Timestamp;
use longshore_core::wire::{PodView, TimelineEntry, TimelineOutcome};

use crate::age::millis;
use crate::error::{CliError, short_ids};
use crate::output::{Format, Paint, Rows, Screen, mood, print, structured};
use crate::pods::Node;
use crate::target::PodName;

/// Cells of a bar over the whole start of a pod.
const BAR_CELLS: u64 = 40;
/// A terminal this wide gets bars without being asked.
const WIDE_CELLS: u16 = 140;

/// Shows the timeline of one pod.
pub async fn run(node: &Node, screen: &Screen, name: &PodName) -> Result<(), CliError> {
    let pods: Vec<PodView> = node.daemon.get("/v1/pods").await?;
    let key = name.choose(pods.iter().map(|pod| &pod.key))?;
    let entries: Vec<TimelineEntry> =
        node.daemon.get(&format!("/v1/pods/{}/{}/timeline", key.namespace, key.name)).await?;
    if structured(screen, &entries)? {
        return Ok(());
    }
    if entries.is_empty() {
        eprintln!("nothing has happened to pod {key} since the agent started");
        return Ok(());
    }
    print(&render(&entries, screen, Timestamp::now()))
}

/// The timeline as text, oldest first. Offsets count from the first entry.
pub fn render(entries: &[TimelineEntry], screen: &Screen, now: Timestamp) -> String {
    let Some(start) = entries.iter().map(|entry| entry.at).min() else { return String::new() };
    let bars = screen.format == Format::Wide || screen.width.is_some_and(|width| width >= WIDE_CELLS);
    let span = bar_span(entries, start, now);
    let mut headings = vec!["AFTER", "TOOK", "STEP", "OUTCOME"];
    if bars {
        headings.push("BAR");
    }
    headings.push("DETAIL");
    let mut rows = Rows::new(&headings);
    for entry in entries {
        let offset = offset_ms(start, entry.at);
        let took = took(entry, now);
        let mut row = vec![
            format!("+{}", millis(offset)),
            took.map_or_else(String::new, millis),
            short_ids(&entry.what),
            outcome(entry.outcome).to_string(),
        ];
        if bars {
            row.push(bar(offset, took, span));
        }
        row.push(short_ids(&entry.detail));
        rows.push(row);
    }
    rows.render(screen, |index, word| match word {
        "failed" => Paint::Bad,
        "running" => Paint::Warn,
        "done" => Paint::Good,
        _ => mood(index, word),
    })
}

fn outcome(outcome: TimelineOutcome) -> &'static str {
    match outcome {
        TimelineOutcome::Running => "running",
        TimelineOutcome::Done => "done",
        TimelineOutcome::Failed => "failed",
        TimelineOutcome::Event => "event",
    }
}

fn offset_ms(start: Timestamp, at: Timestamp) -> u64 {
    at.duration_since(start).as_millis().clamp(0, i128::from(u64::MAX)) as u64
}

fn took(entry: &TimelineEntry, now: Timestamp) -> Option<u64> {
    match entry.outcome {
        TimelineOutcome::Running => Some(offset_ms(entry.at, now)),
        TimelineOutcome::Event => None,
        TimelineOutcome::Done | TimelineOutcome::Failed => entry.took_ms,
    }
}

/// Milliseconds the bars cover: the pod's start up to its first Ready, else everything.
fn bar_span(entries: &[TimelineEntry], start: Timestamp, now: Timestamp) -> u64 {
    let ready = entries.iter().find(|entry| entry.what == "Ready").map(|entry| offset_ms(start, entry.at));
    let last = entries.iter().map(|entry| offset_ms(start, entry.at) + took(entry, now).unwrap_or(0)).max();
    ready.or(last).unwrap_or(0).max(1)
}

/// A bar from when a step began to when it ended; an event is a point. A blank cell is drawn as a dot
/// so that bars keep their place in the line.
fn bar(offset: u64, took: Option<u64>, span: u64) -> String {
    if offset > span {
        return String::new();
    }
    let cell = |ms: u64| ms.min(span).saturating_mul(BAR_CELLS - 1) / span;
    let (from, to) = (cell(offset), cell(offset.saturating_add(took.unwrap_or(0))));
    let mark = if took.is_some() { '█' } else { '◆' };
    (0..BAR_CELLS).map(|at| if (from..=to).contains(&at) { mark } else { '·' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(
        ms: i64,
        took_ms: Option<u64>,
        what: &str,
        outcome: TimelineOutcome,
        detail: &str,
    ) -> TimelineEntry {
        let at = Timestamp::from_millisecond(1_000_000 + ms).unwrap();
        TimelineEntry { at, took_ms, what: what.into(), outcome, detail: detail.into() }
    }

    fn sample() -> Vec<TimelineEntry> {
        use TimelineOutcome::{Done, Event, Failed, Running};
        vec![
            entry(0, None, "seen", Event, "web.yaml"),
            entry(1, Some(400), "create sandbox", Done, ""),
            entry(2, Some(100), "pull image for web", Failed, "connection refused"),
            entry(1000, None, "Ready", Event, ""),
            entry(9000, None, "stop container web", Running, ""),
        ]
    }

    #[test]
    fn steps_have_their_offset_and_their_cost() {
        let screen = Screen { format: Format::Table, colour: false, width: Some(80) };
        let now = Timestamp::from_millisecond(1_009_500).unwrap();
        assert_eq!(
            render(&sample(), &screen, now),
            "AFTER    TOOK    STEP                OUTCOME  DETAIL\n\
             +0 ms    -       seen                event    web.yaml\n\
             +1 ms    400 ms  create sandbox      done     -\n\
             +2 ms    100 ms  pull image for web  failed   connection refused\n\
             +1.00 s  -       Ready               event    -\n\
             +9.00 s  500 ms  stop container web  running  -\n"
        );
    }

    #[test]
    fn bars_cover_the_start_up_to_ready() {
        let now = Timestamp::from_millisecond(1_009_500).unwrap();
        let cases = [
            (0, None, "◆·······································"),
            (1, Some(400), "████████████████························"),
            (1000, None, "·······································◆"),
            (9000, Some(500), ""),
        ];
        let start = Timestamp::from_millisecond(1_000_000).unwrap();
        let span = bar_span(&sample(), start, now);
        assert_eq!(span, 1000);
        for (offset, took, expected) in cases {
            assert_eq!(bar(offset, took, span), expected, "{offset}");
        }
        bar(u64::MAX, Some(u64::MAX), u64::MAX);
    }
}
