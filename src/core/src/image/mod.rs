//! Images of the node: which of them nobody needs any more.

pub mod gc;
pub mod rate;
