//! A small SPDY/3.1 client: the protocol of the runtimes' streaming servers (exec with stdin, its
//! end, a terminal and an exit code). `frame` is the wire form without I/O, `session` one exec over
//! an upgraded connection. Written here because the only live crate is GPL and carries two streams.

pub mod frame;
mod headers;
pub mod session;
#[cfg(test)]
mod tests;
