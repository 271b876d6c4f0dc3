//! longshore-cri
