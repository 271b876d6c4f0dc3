//! Writes one image as an OCI archive (image-spec 1.1: layout, index, manifest, config, one gzipped layer).
//! Pure: entries in, bytes out; times and owners are zero and the order is given, so the digest is stable.

use std::collections::HashMap;
use std::io::Write;
use std::str::FromStr;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder,
    MediaType, Os, RootFsBuilder, Sha256Digest,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// The name under which containerd's importer files an image.
const NAME: &str = "io.containerd.image.name";

/// One file, folder or link of a layer; the path is relative to the image's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    path: String,
    mode: u32,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    File(Vec<u8>),
    Folder,
    Link(String),
}

impl Entry {
    pub fn file(path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.to_owned(), mode, content: Content::File(bytes.into()) }
    }

    pub fn program(path: &str, bytes: Vec<u8>) -> Self {
        Self::file(path, 0o755, bytes)
    }

    pub fn folder(path: &str, mode: u32) -> Self {
        Self { path: path.to_owned(), mode, content: Content::Folder }
    }

    pub fn link(path: &str, target: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o777, content: Content::Link(target.to_owned()) }
    }
}

/// An image with one layer.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    entries: Vec<Entry>,
    /// Whether the entry point is given as the default command instead, so that arguments replace it.
    is_command: bool,
}

impl Image {
    pub fn new(name: &str, entrypoint: &[&str], entries: Vec<Entry>) -> Self {
        let entrypoint = entrypoint.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.to_owned(), entrypoint, entries, is_command: false }
    }

    pub fn as_command(mut self) -> Self {
        self.is_command = true;
        self
    }

    /// `longshore.test/web:1` -> `web.tar`.
    pub fn file_name(&self) -> String {
        let short = self.name.rsplit('/').next().unwrap_or_default();
        format!("{}.tar", short.split(':').next().unwrap_or_default())
    }

    /// Everything the archive's bytes depend on.
    pub fn identity(&self) -> Vec<u8> {
        format!(
            "{} {} {:?} {}",
            self.name,
            self.is_command,
            self.entrypoint,
            digest(format!("{:?}", self.entries).as_bytes())
        )
        .into_bytes()
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// Where an entry's path is longer than a tar header holds.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let layer = self.layer()?;
        let packed = gzip(&layer)?;
        let config = self.config(&digest(&layer))?;
        let manifest = to_json(
            &ImageManifestBuilder::default()
                .schema_version(2_u32)
                .media_type(MediaType::ImageManifest)
                .config(descriptor(MediaType::ImageConfig, &config)?)
                .layers(vec![descriptor(MediaType::ImageLayerGzip, &packed)?])
                .build()?,
        )?;
        let mut named = descriptor(MediaType::ImageManifest, &manifest)?;
        named.set_annotations(Some(HashMap::from([(NAME.to_owned(), self.name.clone())])));
        let index =
            to_json(&ImageIndexBuilder::default().schema_version(2_u32).manifests(vec![named]).build()?)?;

        let mut files = vec![
            Entry::folder("blobs", 0o755),
            Entry::folder("blobs/sha256", 0o755),
            Entry::file("index.json", 0o644, index),
            Entry::file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#),
        ];
        files.extend(
            [config, manifest, packed].map(|b| Entry::file(&format!("blobs/sha256/{}", hex(&b)), 0o644, b)),
        );
        tarball(&files)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        tarball(&self.entries)
    }

    fn config(&self, layer: &str) -> Result<Vec<u8>> {
        let mut config = ConfigBuilder::default().env(vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()]);
        config = if self.is_command {
            config.cmd(self.entrypoint.clone())
        } else {
            config.entrypoint(self.entrypoint.clone())
        };
        let rootfs = RootFsBuilder::default().typ("layers").diff_ids(vec![layer.to_owned()]).build()?;
        to_json(
            &ImageConfigurationBuilder::default()
                .architecture(Arch::Amd64)
                .os(Os::Linux)
                .config(config.build()?)
                .rootfs(rootfs)
                .history(Vec::new())
                .build()?,
        )
    }
}

fn descriptor(kind: MediaType, bytes: &[u8]) -> Result<Descriptor> {
    Ok(Descriptor::new(kind, bytes.len() as u64, Sha256Digest::from_str(&hex(bytes))?))
}

/// JSON with sorted keys: the library keeps annotations in hash maps, whose order is not stable.
fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::to_value(value)?)?)
}

fn tarball(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_ustar();
        header.set_mode(entry.mode);
        header.set_mtime(0);
        let place = |header: &mut Header, kind, size: usize| -> Result<()> {
            header.set_entry_type(kind);
            header.set_size(size as u64);
            header.set_path(&entry.path).with_context(|| format!("{}: too long a path", entry.path))?;
            Ok(())
        };
        let bytes: &[u8] = match &entry.content {
            Content::File(bytes) => {
                place(&mut header, EntryType::Regular, bytes.len())?;
                bytes
            }
            Content::Folder => {
                place(&mut header, EntryType::Directory, 0)?;
                &[]
            }
            Content::Link(target) => {
                place(&mut header, EntryType::Symlink, 0)?;
                header.set_link_name(target)?;
                &[]
            }
        };
        header.set_cksum();
        tar.append(&header, bytes)?;
    }
    Ok(tar.into_inner()?)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut packer = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::fast());
    packer.write_all(bytes)?;
    Ok(packer.finish()?)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `sha256:...` of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn unpack(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        files
    }

    fn image() -> Image {
        let entries = vec![Entry::program("web", b"\x7fELF".to_vec()), Entry::link("sh", "web")];
        Image::new("longshore.test/web:1", &["/web"], entries)
    }

    #[test]
    fn every_reference_in_the_archive_leads_to_a_blob_of_that_digest() {
        let files = unpack(&image().archive().unwrap());
        let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let first = &index["manifests"][0];
        assert_eq!(first["annotations"][NAME], "longshore.test/web:1");
        let blob = |descriptor: &serde_json::Value| {
            let name = descriptor["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
            let bytes = &files[&name];
            assert_eq!(digest(bytes), descriptor["digest"].as_str().unwrap());
            assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
            bytes.clone()
        };
        let manifest: serde_json::Value = serde_json::from_slice(&blob(first)).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(&blob(&manifest["layers"][0])[..]).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        assert_eq!(config["config"]["Entrypoint"][0], "/web");
        assert_eq!(unpack(&layer).keys().collect::<Vec<_>>(), ["sh", "web"]);
    }

    #[test]
    fn the_same_image_is_the_same_bytes() {
        assert_eq!(digest(&image().archive().unwrap()), digest(&image().archive().unwrap()));
    }
}
