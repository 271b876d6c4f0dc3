//! Netlink: framing, attributes, IPVS and nf_tables answers; what iptables' programs print.

use bolero::check;
use longshore_core::ruleset::ipt::parse::{SaveReader, rule};
use longshore_core::ruleset::ipt::text::{Shown, listing};
use longshore_kernel::iptables::{failed_line, read_version};
use longshore_kernel::netlink::wire::{Attributes, Messages};
use longshore_kernel::{ipvs, nft};

#[test]
fn netlink_framing() {
    check!().for_each(|bytes: &[u8]| {
        let read: usize =
            Messages::new(bytes).map_while(Result::ok).map(|message| message.payload.len()).sum();
        assert!(read <= bytes.len(), "messages hold more than the datagram");
        let attributes: usize = Attributes::new(bytes).map_while(Result::ok).map(|one| one.value.len()).sum();
        assert!(attributes <= bytes.len(), "attributes hold more than the message");
    });
}

#[test]
fn ipvs_answers() {
    check!().for_each(|bytes: &[u8]| {
        let _ = ipvs::codec::parse_service(bytes);
        let _ = ipvs::codec::parse_real(bytes, bytes.len().is_multiple_of(2));
    });
}

#[test]
fn nft_answers() {
    check!().for_each(|bytes: &[u8]| {
        let _ = nft::decode::parse_table(bytes);
        let _ = nft::decode::parse_generation(bytes);
        let _ = nft::decode::parse_chain(bytes);
        let _ = nft::decode::parse_rule(bytes);
        let _ = nft::decode::parse_set(bytes);
        let _ = nft::decode::parse_count(bytes);
        let _ = nft::decode::parse_elements(bytes);
        let _ = nft::decode::parse_counter(bytes);
    });
}

#[test]
fn iptables_listings() {
    check!().for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let _ = (failed_line(&text), read_version(&text));
        // A rule that is taken for one of ours is written as it reads back.
        if let Some(read) = rule(&text) {
            let shown = Shown { rule: &read, ipv6: false }.to_string();
            assert_eq!(rule(shown.trim()), Some(read), "{shown}");
        }
        let read = |text: &str| {
            let mut reader = SaveReader::new(false);
            reader.line("*nat");
            text.lines().for_each(|line| reader.line(line));
            reader.finish()
        };
        // A whole listing keeps its chains.
        let found = read(&text);
        let again = read(&listing(found.iter(), false));
        assert!(again.keys().count() <= found.keys().count(), "{text}");
    });
}
