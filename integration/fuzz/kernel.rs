//! Netlink: framing, attributes, IPVS and nf_tables answers.

use bolero::check;
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
        let _ = nft::decode::parse_elements(bytes);
        let _ = nft::decode::parse_counter(bytes);
    });
}
