//! Programs of the test images. They are built static, so an image is one file; nothing of longshore is linked in.

pub mod grpc_health;
pub mod http;
pub mod registry;
