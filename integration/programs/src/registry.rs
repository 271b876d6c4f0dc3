//! An image registry of one image for tests: it serves the program it is part of under any name, to who shows the
//! right Basic credentials. Reading only, as much of the distribution API as a pull needs.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::TcpStream;

use sha2::{Digest, Sha256};

use crate::http::Request;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One image and who may have it.
#[derive(Debug)]
pub struct Registry {
    /// Base64 of `user:password`.
    basic: String,
    manifest: Blob,
    config: Blob,
    layer: Blob,
}

#[derive(Debug)]
struct Blob {
    kind: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(kind: &'static str, bytes: Vec<u8>) -> Self {
        let mut digest = "sha256:".to_owned();
        for byte in Sha256::digest(&bytes) {
            let _ = write!(digest, "{byte:02x}");
        }
        Self { kind, digest, bytes }
    }

    fn descriptor(&self) -> String {
        format!(r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#, self.kind, self.digest, self.bytes.len())
    }
}

impl Registry {
    /// Serves `program` as the entry point `/web`.
    pub fn new(basic: &str, program: &[u8]) -> Self {
        let layer = Blob::new(LAYER, tarball("web", program));
        let config = Blob::new(
            CONFIG,
            format!(
                r#"{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":["/web"]}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
                layer.digest
            )
            .into_bytes(),
        );
        let manifest = Blob::new(
            MANIFEST,
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
                config.descriptor(),
                layer.descriptor()
            )
            .into_bytes(),
        );
        Self { basic: basic.to_owned(), manifest, config, layer }
    }

    /// Answers one request; gives the status, for the log.
    ///
    /// # Errors
    /// Where the client has gone.
    pub fn answer(&self, stream: &TcpStream, request: &Request) -> io::Result<u16> {
        let wanted = format!("Basic {}", self.basic);
        let given = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        if given.is_none_or(|(_, value)| *value != wanted) {
            write_head(stream, 401, "WWW-Authenticate: Basic realm=\"test\"\r\nContent-Length: 0")?;
            return Ok(401);
        }
        let Some(blob) = self.find(&request.path) else {
            let status = if request.path == "/v2/" { 200 } else { 404 };
            write_head(stream, status, "Content-Length: 0")?;
            return Ok(status);
        };
        let Blob { kind, digest, bytes } = blob;
        let length = bytes.len();
        write_head(
            stream,
            200,
            &format!("Content-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\nContent-Length: {length}"),
        )?;
        if request.method != "HEAD" {
            (&mut &*stream).write_all(bytes)?;
        }
        Ok(200)
    }

    fn find(&self, path: &str) -> Option<&Blob> {
        let (rest, name) = path.rsplit_once('/')?;
        let mut blobs = [&self.manifest, &self.config, &self.layer].into_iter();
        match rest.rsplit_once('/')?.1 {
            "manifests" if !name.contains(':') => Some(&self.manifest),
            "manifests" | "blobs" => blobs.find(|blob| blob.digest == name),
            _ => None,
        }
    }
}

fn write_head(mut stream: &TcpStream, status: u16, headers: &str) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status} Registry\r\n{headers}\r\nConnection: close\r\n\r\n")
}

/// One executable file as an uncompressed archive (POSIX ustar).
fn tarball(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000755");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", bytes.len()));
    put(136, "00000000000");
    // The sum is taken with spaces in its own place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(bytes);
    // Padded to its block, and two empty blocks at the end.
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::http;

    #[test]
    fn only_who_shows_the_credentials_gets_the_image() {
        let registry = Registry::new("dTpw", b"\x7fELF");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            for stream in listener.incoming().take(1) {
                let stream = stream.unwrap();
                let request = http::read_request(&stream).unwrap();
                assert_eq!(registry.answer(&stream, &request).unwrap(), 401);
            }
            registry
        });
        let url = format!("http://127.0.0.1:{port}/v2/web/manifests/1");
        assert_eq!(http::get(&url, Duration::from_secs(5)).unwrap().0, 401);
        let registry = server.join().unwrap();
        let found = |path: &str| registry.find(path).map(|blob| blob.kind);
        assert_eq!(found("/v2/any/web/manifests/1"), Some(MANIFEST));
        assert_eq!(found(&format!("/v2/web/manifests/{}", registry.manifest.digest)), Some(MANIFEST));
        assert_eq!(found(&format!("/v2/web/blobs/{}", registry.layer.digest)), Some(LAYER));
        assert_eq!(found("/v2/web/blobs/sha256:00"), None);
        assert_eq!(found("/v2/"), None);
        assert_eq!(registry.layer.bytes.len() % 512, 0);
    }
}
