//! The names of the programs this one stands in for: started as `kubelet` or `kube-proxy` (a link, so
//! that kubeadm and existing units can start it), the agent runs that half with that program's flags.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Puts in the subcommand and the role that the program's name means.
pub fn subcommand_for(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let name = args.first().map(Path::new).and_then(Path::file_name).unwrap_or(OsStr::new("longshore"));
    let role = match name.to_str() {
        Some("kubelet") => "node",
        Some("kube-proxy") => "proxy",
        _ => return args,
    };
    let mut rest = args.split_off(1);
    if role == "proxy" {
        // kube-proxy's own configuration is our second file.
        for arg in &mut rest {
            if arg == "--config" {
                *arg = "--proxy-config".into();
            } else if let Some(value) = arg.to_str().and_then(|text| text.strip_prefix("--config=")) {
                *arg = format!("--proxy-config={value}").into();
            }
        }
    }
    args.extend(["agent".into(), format!("--roles={role}").into()]);
    args.extend(rest);
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides_the_half() {
        let cases = [
            ("longshore ps", "longshore ps"),
            ("/usr/bin/longshore", "/usr/bin/longshore"),
            (
                "/usr/bin/kubelet --config /etc/k.yaml",
                "/usr/bin/kubelet agent --roles=node --config /etc/k.yaml",
            ),
            (
                "kube-proxy --config=/p.yaml --v=2",
                "kube-proxy agent --roles=proxy --proxy-config=/p.yaml --v=2",
            ),
            ("kube-proxy --config /p.yaml", "kube-proxy agent --roles=proxy --proxy-config /p.yaml"),
        ];
        for (given, expected) in cases {
            let got = subcommand_for(given.split(' ').map(OsString::from));
            let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
            assert_eq!(got, expected);
        }
        assert_eq!(subcommand_for([]), Vec::<OsString>::new());
    }
}
