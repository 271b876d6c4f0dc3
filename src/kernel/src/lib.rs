//! longshore-kernel
