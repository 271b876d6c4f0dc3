//! longshore-integration
