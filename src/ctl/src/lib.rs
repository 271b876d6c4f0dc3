//! longshore-ctl: the command line. It asks the daemon over its admin socket, and reads the runtime
//! and the kernel itself where the daemon is down or cannot know. It changes nothing on the node.

pub mod exec;
