//! Scenarios: one text file each, run against a native node or a VM in the same form. `form` reads them, `state` asks
//! the node, `play` carries out one, `suite` runs many and counts.

pub mod form;
pub mod play;
pub mod state;
pub mod suite;
