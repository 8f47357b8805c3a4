//! The tokens that were given out.

use super::World;

/// A token that Entra or the metadata service has issued.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    /// In Unix seconds.
    pub(crate) ends: i64,
    /// The ARM it is for, without a slash at its end.
    pub(crate) audience: String,
}

impl Token {
    /// Issues a token, and returns it with the second from which it is valid.
    pub(crate) fn issue(world: &mut World, audience: &str) -> (String, i64) {
        let start = jiff::Timestamp::now().as_second();
        let token =
            format!("eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0.{}.simulated", uuid::Uuid::new_v4().simple());
        let audience = audience.trim_end_matches('/').to_owned();
        world.tokens.insert(token.clone(), Token { ends: start + world.config.token_seconds, audience });
        (token, start)
    }
}
