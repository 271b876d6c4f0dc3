//! Why an image could not be pulled, read from what runtimes say. Only the text tells: containerd and
//! CRI-O give most of these the same gRPC code.

use tonic::Code;

/// Classes of failed pulls that a person mends in different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullFailure {
    /// The registry has no such repository, tag or digest.
    NotFound,
    /// The registry wants (other) credentials.
    Refused,
    /// The registry cannot be reached, is overloaded or limits us.
    RegistryUnavailable,
    /// Not an image reference at all.
    InvalidName,
    /// The node's policy rejects its signature.
    SignatureInvalid,
    /// The image has no variant for this machine.
    NoMatchingPlatform,
    /// The node's image store is full.
    NoSpace,
    Other,
}

/// Texts in the order they are tried, all lower case. The network comes before the registry's refusals,
/// because a token server that cannot be reached reads `failed to authorize: ... dial tcp: ...`.
const TEXTS: [(PullFailure, &[&str]); 7] = [
    (
        PullFailure::SignatureInvalid,
        &["signaturevalidationfailed", "signature validation failed", "source image rejected"],
    ),
    (PullFailure::NoSpace, &["no space left on device", "disk quota exceeded"]),
    (
        PullFailure::InvalidName,
        &[
            "invalid reference format",
            "failed to parse image",
            "invalidimagename",
            "could not parse reference",
        ],
    ),
    (
        PullFailure::RegistryUnavailable,
        &[
            "registryunavailable",
            "dial tcp",
            "dial unix",
            "no such host",
            "connection refused",
            "connection reset",
            "i/o timeout",
            "tls handshake timeout",
            "client.timeout exceeded",
            "server gave http response to https client",
            "x509:",
            "429 too many requests",
            "toomanyrequests",
            "500 internal server error",
            "502 bad gateway",
            "503 service unavailable",
            "504 gateway timeout",
            "unexpected eof",
        ],
    ),
    (
        PullFailure::NoMatchingPlatform,
        &[
            "no match for platform",
            "no image found in manifest list for architecture",
            "no image found in image index for architecture",
        ],
    ),
    (
        PullFailure::Refused,
        &[
            "pull access denied",
            "authorization failed",
            "insufficient_scope",
            "failed to authorize",
            "unauthorized",
            "401",
            "403 forbidden",
            "access denied",
            "requested access to the resource is denied",
            "no basic auth credentials",
            "authentication required",
        ],
    ),
    (PullFailure::NotFound, &["not found", "manifest unknown", "name unknown", "404"]),
];

impl PullFailure {
    /// From the status of a failed PullImage.
    pub fn classify(code: Code, message: &str) -> Self {
        let text = message.to_ascii_lowercase();
        for (failure, signs) in TEXTS {
            if signs.iter().any(|sign| text.contains(sign)) {
                return failure;
            }
        }
        match code {
            Code::InvalidArgument => Self::InvalidName,
            Code::NotFound => Self::NotFound,
            Code::PermissionDenied | Code::Unauthenticated => Self::Refused,
            Code::Unavailable => Self::RegistryUnavailable,
            _ => Self::Other,
        }
    }

    /// `false` only where the name itself is wrong: everything else can be mended outside the pod.
    pub fn is_retryable(self) -> bool {
        self != Self::InvalidName
    }

    /// The waiting reason the Kubernetes API uses for it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::InvalidName => "InvalidImageName",
            Self::RegistryUnavailable => "RegistryUnavailable",
            Self::SignatureInvalid => "SignatureValidationFailed",
            Self::NotFound | Self::Refused | Self::NoMatchingPlatform | Self::NoSpace | Self::Other => {
                "ErrImagePull"
            }
        }
    }

    /// In words, to follow `cannot pull image X: `.
    pub fn describe(self) -> &'static str {
        match self {
            Self::NotFound => "the registry has no such image",
            Self::Refused => "the registry refuses access (wrong name, or missing or wrong pull secret)",
            Self::RegistryUnavailable => "the registry cannot be reached",
            Self::InvalidName => "this is not an image name",
            Self::SignatureInvalid => "its signature is not accepted on this node",
            Self::NoMatchingPlatform => "the image has no variant for this machine",
            Self::NoSpace => "no space left for images on this node",
            Self::Other => "the runtime failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_say_is_classified() {
        use PullFailure as F;
        let cases = [
            (
                Code::NotFound,
                "failed to pull and unpack image \"registry.local/nope:1\": failed to resolve reference \"registry.local/nope:1\": registry.local/nope:1: not found",
                F::NotFound,
            ),
            (
                Code::Unknown,
                "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                F::Refused,
            ),
            (
                Code::Unknown,
                "failed to resolve reference \"r/x:1\": unexpected status from HEAD request to https://r/v2/x/manifests/1: 401 Unauthorized",
                F::Refused,
            ),
            (
                Code::Unknown,
                "failed to resolve reference \"r/x:1\": pulling from host r failed with status code [manifests 1]: 503 Service Unavailable",
                F::RegistryUnavailable,
            ),
            (
                Code::Unknown,
                "failed to authorize: failed to fetch anonymous token: Get \"https://auth.r/token\": dial tcp: lookup auth.r: no such host",
                F::RegistryUnavailable,
            ),
            (
                Code::Unknown,
                "failed to do request: Head \"https://r/v2/x/manifests/1\": dial tcp 10.0.0.1:443: connect: connection refused",
                F::RegistryUnavailable,
            ),
            (
                Code::Unknown,
                "429 Too Many Requests - Server message: toomanyrequests: rate limit",
                F::RegistryUnavailable,
            ),
            (
                Code::InvalidArgument,
                "failed to parse image reference \"A::\": invalid reference format",
                F::InvalidName,
            ),
            (Code::InvalidArgument, "something new", F::InvalidName),
            (
                Code::Unknown,
                "SignatureValidationFailed: Source image rejected: none of the signatures were accepted",
                F::SignatureInvalid,
            ),
            (Code::Unknown, "failed to extract layer: write /x: no space left on device", F::NoSpace),
            (Code::NotFound, "no match for platform in manifest: not found", F::NoMatchingPlatform),
            (Code::Unavailable, "", F::RegistryUnavailable),
            (Code::Unknown, "unpack failed", F::Other),
        ];
        for (code, text, wanted) in cases {
            assert_eq!(PullFailure::classify(code, text), wanted, "{code:?} {text}");
        }
    }

    #[test]
    fn reasons_are_the_apis() {
        assert_eq!(PullFailure::NotFound.reason(), "ErrImagePull");
        assert_eq!(PullFailure::InvalidName.reason(), "InvalidImageName");
        assert!(!PullFailure::InvalidName.is_retryable());
        assert!(PullFailure::NotFound.is_retryable(), "an image may be pushed later");
    }
}
