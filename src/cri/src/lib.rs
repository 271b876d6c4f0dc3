//! The container runtime as longshore sees it: a CRI v1 client, its event stream, and the conversion
//! between CRI messages and `longshore_core`'s types. No decision is made here.

pub mod api;
