//! When a certificate is good enough and when the next one is wanted. A node renews at 70-90 % of a
//! certificate's life, as kubelets do; where in that span follows from its name, not from chance, so that
//! a restart does not draw again and nodes of one age still come one after the other.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use super::{CertificateFacts, Wish};

/// Share of a life after which a node renews, thousandths: from, and how much may be added.
const RENEW_FROM: u64 = 700;
const RENEW_SPAN: u64 = 200;

/// What has to be done about a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing before this time.
    Rest { until: Timestamp },
    /// A new one, asked for with the one there is, which still works.
    Renew { why: String },
    /// A new one, and nothing here works to ask for it.
    Obtain { why: String },
}

/// Says what has to be done.
pub fn need(current: Option<&CertificateFacts>, wish: &Wish, now: Timestamp) -> Need {
    let Some(current) = current else {
        return Need::Obtain { why: "there is none yet".into() };
    };
    if now >= current.not_after {
        return Need::Obtain { why: format!("it expired at {}", current.not_after) };
    }
    if let Some(why) = differs(current, wish) {
        return Need::Renew { why };
    }
    let until = renew_at(current, wish);
    if now >= until {
        return Need::Renew { why: format!("it expires at {}", current.not_after) };
    }
    Need::Rest { until }
}

/// Why a certificate is not the one that is wished for; names it has beyond the wish do no harm.
pub(super) fn differs(current: &CertificateFacts, wish: &Wish) -> Option<String> {
    let name = wish.common_name();
    if current.common_name != name {
        return Some(format!("it is for {:?}, and this node is {name:?}", current.common_name));
    }
    let lacks = |what: String| Some(format!("it lacks {what}, by which this node is called"));
    if let Some(name) = wish.dns_names.difference(&current.dns_names).next() {
        return lacks(format!("the name {name}"));
    }
    if let Some(ip) = wish.ips.difference(&current.ips).next() {
        return lacks(format!("the address {ip}"));
    }
    None
}

/// When this node renews this certificate: at 70-90 % of its life.
pub fn renew_at(facts: &CertificateFacts, wish: &Wish) -> Timestamp {
    let life = facts.not_after.duration_since(facts.not_before);
    let mut hash = Sha256::new();
    hash.update(wish.node.as_bytes());
    hash.update(wish.purpose.stem().as_bytes());
    hash.update(facts.not_before.as_second().to_be_bytes());
    let drawn = hash.finalize();
    let drawn = u64::from(u16::from_be_bytes([drawn[0], drawn[1]]));
    let share = RENEW_FROM + drawn * RENEW_SPAN / u64::from(u16::MAX);
    let millis = life.as_millis().max(0) * i128::from(share) / 1000;
    let after = SignedDuration::from_millis(i64::try_from(millis).unwrap_or(i64::MAX));
    facts.not_before.checked_add(after).unwrap_or(facts.not_after)
}

/// How a certificate stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Missing,
    /// The clock of this node, or of the signer's, is wrong.
    NotYetValid {
        from: Timestamp,
    },
    Valid {
        until: Timestamp,
        /// It should have been renewed by now: past 90 % of its life.
        overdue: bool,
    },
    Expired {
        since: Timestamp,
    },
}

/// Tells how a certificate stands.
pub fn standing(current: Option<&CertificateFacts>, now: Timestamp) -> Standing {
    let Some(facts) = current else { return Standing::Missing };
    if now >= facts.not_after {
        return Standing::Expired { since: facts.not_after };
    }
    if now < facts.not_before {
        return Standing::NotYetValid { from: facts.not_before };
    }
    let life = facts.not_after.duration_since(facts.not_before).as_secs();
    let lived = now.duration_since(facts.not_before).as_secs();
    // A minute of grace: a renewal takes a moment.
    let overdue = lived.saturating_sub(60).saturating_mul(10) > life.saturating_mul(9);
    Standing::Valid { until: facts.not_after, overdue }
}

/// Time as people count it.
pub fn left(until: Timestamp, now: Timestamp) -> String {
    let seconds = until.duration_since(now).as_secs().unsigned_abs();
    let (count, unit) = match seconds {
        172_800.. => (seconds / 86_400, "days"),
        7_200.. => (seconds / 3_600, "hours"),
        120.. => (seconds / 60, "minutes"),
        _ => (seconds, "seconds"),
    };
    format!("{count} {unit}")
}

impl Standing {
    /// Days left, negative after the end; `None` where there is no certificate.
    pub fn days_left(&self, now: Timestamp) -> Option<i64> {
        let until = match self {
            Self::Missing => return None,
            Self::NotYetValid { from } => *from,
            Self::Valid { until, .. } => *until,
            Self::Expired { since } => *since,
        };
        Some(until.duration_since(now).as_secs().div_euclid(86_400))
    }

    /// One line: `valid for 300 days, until 2027-...`.
    pub fn sentence(&self, now: Timestamp) -> impl fmt::Display {
        match self {
            Self::Missing => "there is none".to_owned(),
            Self::NotYetValid { from } => {
                format!("not valid before {from}, in {}: is this node's clock right?", left(*from, now))
            }
            Self::Valid { until, overdue: false } => {
                format!("valid for {}, until {until}", left(*until, now))
            }
            Self::Valid { until, overdue: true } => {
                format!("overdue for renewal, valid for only {}, until {until}", left(*until, now))
            }
            Self::Expired { since } => format!("expired {} ago, at {since}", left(*since, now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn what_has_to_be_done_follows_from_the_certificate_and_the_time() {
        let year = example("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z");
        let wish = Wish::client("worker-1");
        let renew = |why: &str| Some(("renew", why.to_owned()));
        let obtain = |why: &str| Some(("obtain", why.to_owned()));
        let other = Wish::client("worker-2");
        let mut called = Wish::serving("worker-1", ["worker-1".to_owned()], []);
        called.ips.insert("10.0.0.1".parse().unwrap());
        let mut named = year.clone();
        named.dns_names.insert("worker-1".into());
        let cases = [
            (Some(&year), &wish, "2026-01-02T00:00:00Z", None),
            // A clock behind the signer's is no reason to ask for another.
            (Some(&year), &wish, "2025-12-31T00:00:00Z", None),
            (Some(&year), &wish, "2026-09-10T00:00:00Z", None),
            (Some(&year), &wish, "2026-11-28T00:00:00Z", renew("it expires at 2027-01-01")),
            (Some(&year), &wish, "2027-01-01T00:00:00Z", obtain("it expired at 2027-01-01")),
            (None, &wish, "2026-01-02T00:00:00Z", obtain("there is none yet")),
            (Some(&year), &other, "2026-01-02T00:00:00Z", renew("this node is \"system:node:worker-2\"")),
            (Some(&year), &called, "2026-01-02T00:00:00Z", renew("lacks the name worker-1")),
            (Some(&named), &called, "2026-01-02T00:00:00Z", renew("lacks the address 10.0.0.1")),
            (Some(&year), &other, "2027-02-01T00:00:00Z", obtain("it expired")),
        ];
        for (current, wish, now, expected) in cases {
            match (need(current, wish, at(now)), expected) {
                (Need::Rest { until }, None) => assert!(until > at(now), "{now}"),
                (Need::Renew { why }, Some(("renew", part)))
                | (Need::Obtain { why }, Some(("obtain", part))) => {
                    assert!(why.contains(&part), "{now}: {why}");
                }
                (got, expected) => panic!("{now}: {got:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn renewal_is_at_70_to_90_percent_and_spread_over_nodes() {
        let facts = example("2026-01-01T00:00:00Z", "2026-04-11T00:00:00Z");
        let mut days = std::collections::BTreeSet::new();
        for node in 0..200 {
            let wish = Wish::client(&format!("worker-{node}"));
            let at = renew_at(&facts, &wish);
            assert_eq!(at, renew_at(&facts, &wish), "the same after a restart");
            let share = at.duration_since(facts.not_before).as_hours() * 100 / 2400;
            assert!((70..=90).contains(&share), "worker-{node}: {share} %");
            days.insert(at.duration_since(facts.not_before).as_hours() / 24);
        }
        assert!(days.len() >= 18, "{days:?}");
    }

    #[test]
    fn people_are_told_how_it_stands() {
        let facts = example("2026-01-01T00:00:00Z", "2026-01-11T00:00:00Z");
        let cases = [
            ("2026-01-01T00:00:00Z", "valid for 10 days, until 2026-01-11T00:00:00Z", Some(10)),
            ("2026-01-10T12:00:00Z", "overdue for renewal, valid for only 12 hours", Some(0)),
            ("2026-01-11T00:00:30Z", "expired 30 seconds ago", Some(-1)),
            ("2025-12-31T23:00:00Z", "not valid before 2026-01-01T00:00:00Z, in 60 minutes", Some(0)),
        ];
        for (now, expected, days) in cases {
            let standing = standing(Some(&facts), at(now));
            let got = standing.sentence(at(now)).to_string();
            assert!(got.starts_with(expected), "{now}: {got}");
            assert_eq!(standing.days_left(at(now)), days, "{now}");
        }
        assert_eq!(standing(None, at("2026-01-01T00:00:00Z")), Standing::Missing);
    }
}
