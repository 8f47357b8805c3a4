//! Answers of the API server.

pub const FORBIDDEN: u16 = 403;
pub const CONFLICT: u16 = 409;
pub const NOT_FOUND: u16 = 404;

/// Whether the API server answered with this status.
pub fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
