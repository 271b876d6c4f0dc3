//! Times as people read them, in kubectl's spelling.

use jiff::{SignedDuration, Timestamp};

/// How long ago, in the two units that matter: `45s`, `5m20s`, `3h`, `2d4h`.
pub fn age(from: Timestamp, now: Timestamp) -> String {
    duration(now.duration_since(from))
}

/// A duration with the precision kubectl gives it (`k8s.io/apimachinery` duration.HumanDuration).
pub fn duration(span: SignedDuration) -> String {
    let seconds = span.as_secs();
    // Clocks differ a little between a node and a control plane.
    if seconds < 0 {
        return if seconds >= -2 { "0s".into() } else { "<invalid>".into() };
    }
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if years < 2 => format!("{days}d"),
        () if years < 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// Milliseconds in a unit that keeps three digits: `7 ms`, `1.24 s`, `2m5s`.
pub fn millis(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{}.{:02} s", ms / 1000, ms % 1000 / 10),
        _ => duration(SignedDuration::from_millis(ms.min(i64::MAX as u64) as i64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spelled_as_kubectl_does() {
        let cases = [
            (-3, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (320, "5m20s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (4 * 3600 + 60, "4h1m"),
            (8 * 3600 + 60, "8h"),
            (48 * 3600, "2d"),
            (52 * 3600, "2d4h"),
            (8 * 86400, "8d"),
            (800 * 86400, "2y70d"),
            (3000 * 86400, "8y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(duration(SignedDuration::from_secs(seconds)), expected, "{seconds}");
        }
    }

    #[test]
    fn milliseconds_keep_three_digits() {
        for (ms, expected) in
            [(0, "0 ms"), (999, "999 ms"), (1240, "1.24 s"), (99_999, "99.99 s"), (125_000, "2m5s")]
        {
            assert_eq!(millis(ms), expected);
        }
        millis(u64::MAX);
    }
}
