//! Where objects come from. Today: a watched folder of manifests; its reading is split into what a
//! document says (`object`), what a folder as a whole wants (`folder`, pure) and the watching
//! (`manifests`). ConfigMaps and Secrets are kept in `objects` for whoever refers to them.

pub mod folder;
pub mod manifests;
mod memory;
pub mod object;
pub mod objects;

pub use folder::Change;
pub use manifests::{ManifestOptions, Manifests};
pub use object::KeptSlice;
pub use objects::{ObjectStore, references};
