//! longshore-agent
