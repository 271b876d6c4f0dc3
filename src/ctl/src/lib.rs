//! longshore-ctl
