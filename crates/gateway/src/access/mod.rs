//! Risk control: networks, bans, authentication.

mod auth;
mod ban;
mod jwt;
mod networks;

pub(crate) use auth::{Authenticator, BasicUsers, Denied};
pub(crate) use ban::{BanVerdict, Bans};
pub(crate) use jwt::{Jwks, JwtRules, fuzz as fuzz_token};
pub(crate) use networks::Networks;
