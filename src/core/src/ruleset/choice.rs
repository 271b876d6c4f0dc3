//! Which back end serves Services: what was asked for, or the first that the kernel can do. Pure; the
//! agent probes the kernel and says the outcome's reason to people.

/// Which back end was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeRequest {
    /// The first the kernel has of nftables, IPVS, iptables.
    Auto,
    Ipvs,
    Nftables,
    Iptables,
}

/// A way to serve Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    Nftables,
    Ipvs,
    Iptables,
}

/// What a look at the kernel showed: whether each works, or one sentence why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    pub nftables: Result<(), String>,
    pub ipvs: Result<(), String>,
    pub iptables: Result<(), String>,
}

/// The back end and why it is this one; without any, why none of them works. One that was asked for by
/// name is never exchanged for another: what people rely on differs between them.
pub fn choose(asked: ModeRequest, probed: &Probed) -> Result<(Chosen, String), String> {
    let all = [
        (Chosen::Nftables, "nftables", &probed.nftables),
        (Chosen::Ipvs, "IPVS", &probed.ipvs),
        (Chosen::Iptables, "iptables", &probed.iptables),
    ];
    let by_name = match asked {
        ModeRequest::Nftables => Some(Chosen::Nftables),
        ModeRequest::Ipvs => Some(Chosen::Ipvs),
        ModeRequest::Iptables => Some(Chosen::Iptables),
        ModeRequest::Auto => None,
    };
    let mut passed = Vec::new();
    for (chosen, name, works) in all {
        match (by_name, works) {
            (Some(wanted), _) if wanted != chosen => {}
            (Some(_), Ok(())) => return Ok((chosen, "asked for by configuration".to_owned())),
            (Some(_), Err(error)) => return Err(error.clone()),
            (None, Ok(())) if passed.is_empty() => return Ok((chosen, format!("the kernel has {name}"))),
            (None, Ok(())) => {
                return Ok((chosen, format!("the kernel has {name}, and not {}", passed.join("; not "))));
            }
            (None, Err(error)) => passed.push(format!("{name}: {error}")),
        }
    }
    Err(passed.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_works_serves_and_a_name_is_kept_to() {
        let probed = |works: &str| {
            let of = |letter: char| if works.contains(letter) { Ok(()) } else { Err(format!("no {letter}")) };
            Probed { nftables: of('n'), ipvs: of('v'), iptables: of('t') }
        };
        let auto = ModeRequest::Auto;
        let table = [
            (auto, "nvt", Ok((Chosen::Nftables, "the kernel has nftables"))),
            (auto, "vt", Ok((Chosen::Ipvs, "the kernel has IPVS, and not nftables: no n"))),
            (
                auto,
                "t",
                Ok((Chosen::Iptables, "the kernel has iptables, and not nftables: no n; not IPVS: no v")),
            ),
            (auto, "", Err("nftables: no n; IPVS: no v; iptables: no t")),
            (ModeRequest::Ipvs, "nvt", Ok((Chosen::Ipvs, "asked for by configuration"))),
            (ModeRequest::Ipvs, "nt", Err("no v")),
            (ModeRequest::Iptables, "nvt", Ok((Chosen::Iptables, "asked for by configuration"))),
            (ModeRequest::Nftables, "vt", Err("no n")),
        ];
        for (asked, works, want) in table {
            let want = want.map(|(chosen, why)| (chosen, why.to_owned())).map_err(str::to_owned);
            assert_eq!(choose(asked, &probed(works)), want, "{asked:?} {works}");
        }
    }
}
