//! Reading the node's resolver file (resolv.conf(5)) for what pods inherit of it. Pure.

use longshore_core::pod::snapshot::DnsSettings;

/// Name servers, search domains and options of a resolver file. The last `search` or `domain` line
/// counts; `.` as a search domain is dropped, as the kubelet does (behaviours 41).
pub fn parse(text: &str) -> DnsSettings {
    let mut dns = DnsSettings::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.host_servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => {
                let domains = words.filter(|word| *word != ".");
                dns.host_searches = domains.map(|word| word.trim_end_matches('.').to_owned()).collect();
            }
            Some("options") => dns.host_options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_searches_and_options() {
        let text = "# made by hand\nnameserver 10.0.0.2 ; first\nnameserver fd00::2\ndomain old.example\n\
            search . corp.example. lab.example\noptions ndots:2 rotate\noptions timeout:1\nnonsense\n";
        let dns = parse(text);
        assert_eq!(dns.host_servers, ["10.0.0.2", "fd00::2"]);
        assert_eq!(dns.host_searches, ["corp.example", "lab.example"]);
        assert_eq!(dns.host_options, ["ndots:2", "rotate", "timeout:1"]);
        assert_eq!(parse(""), DnsSettings::default());
    }
}
