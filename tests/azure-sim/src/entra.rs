//! Microsoft Entra's token endpoint, for applications that sign in with a password, or with the token of a
//! service account that they trust; and the document by which clients find that endpoint.

use crate::reply::Reply;
use crate::request::Request;
use crate::world::{Token, World};
use serde_json::json;

/// Azure's clouds: the address of Entra, and the ARM for which its tokens are. A tenant is in one cloud.
pub(crate) const CLOUDS: [(&str, &str); 3] = [
    ("login.microsoftonline.com", "https://management.azure.com"),
    ("login.microsoftonline.us", "https://management.usgovcloudapi.net"),
    ("login.chinacloudapi.cn", "https://management.chinacloudapi.cn"),
];

/// ARM's older name in the public cloud. Tokens for it are for the same ARM; `az` still asks for it.
const OLDER_ARM: &str = "https://management.core.windows.net";

/// Where a tenant's configuration is.
const CONFIGURATION: &str = "/v2.0/.well-known/openid-configuration";

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Whether a request is for Entra.
pub(crate) fn is_asked(request: &Request) -> bool {
    request.path.ends_with("/oauth2/v2.0/token") || request.path.ends_with(CONFIGURATION)
}

/// Answers `POST /{tenant}/oauth2/v2.0/token`, and `GET` of the tenant's configuration.
pub(crate) fn answer(world: &mut World, request: &Request) -> Reply {
    let tenant = request.path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let body = request.body.as_ref().ok().cloned().flatten().unwrap_or_default();
    let field = |name: &str| body[name].as_str().unwrap_or_default();
    let application = &world.config.application;
    if !tenant.eq_ignore_ascii_case(&world.config.tenant) {
        let message =
            format!("Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID.");
        return refuse(400, "invalid_request", 90_002, &message);
    }
    if request.path.ends_with(CONFIGURATION) {
        return configuration(request, tenant);
    }
    if request.method != "POST" {
        return refuse(405, "invalid_request", 900_144, "The request method is not supported.");
    }
    if field("grant_type") != "client_credentials" {
        return refuse(400, "unsupported_grant_type", 70_003, "The app requested an unsupported grant type.");
    }
    if !field("client_id").eq_ignore_ascii_case(&application.client_id) {
        let message =
            format!("Application with identifier '{}' was not found in the directory.", field("client_id"));
        return refuse(400, "unauthorized_client", 700_016, &message);
    }
    let secret = field("client_secret");
    if secret.is_empty() {
        let trusts = field("client_assertion_type") == ASSERTION_TYPE
            && field("client_assertion") == application.trusted_token;
        if !trusts {
            let message = "No matching federated identity record found for presented assertion.";
            return refuse(401, "invalid_client", 700_213, message);
        }
    } else if secret != application.client_secret {
        let message = "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value.";
        return refuse(401, "invalid_client", 7_000_215, message);
    }
    let host = request.header("host").unwrap_or_default();
    let cloud = CLOUDS.iter().find(|(authority, _)| host.split(':').next() == Some(authority));
    // A resource may end with a slash of its own.
    let asked = field("scope").trim_end_matches("/.default").trim_end_matches('/');
    let asked = if asked == OLDER_ARM { CLOUDS[0].1 } else { asked };
    let audience = CLOUDS.iter().map(|(_, arm)| *arm).find(|arm| *arm == asked);
    match audience.filter(|arm| cloud.is_none_or(|(_, own)| own == arm)) {
        Some(audience) => issue(world, audience),
        None => {
            let message = format!("The resource principal named {asked} was not found in the tenant.");
            refuse(400, "invalid_resource", 500_011, &message)
        }
    }
}

fn configuration(request: &Request, tenant: &str) -> Reply {
    let authority = format!("https://{}/{tenant}", request.header("host").unwrap_or_default());
    Reply::new(
        200,
        json!({
            "issuer": format!("{authority}/v2.0"),
            "authorization_endpoint": format!("{authority}/oauth2/v2.0/authorize"),
            "token_endpoint": format!("{authority}/oauth2/v2.0/token"),
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
            "response_types_supported": ["code", "id_token"],
        }),
    )
}

fn issue(world: &mut World, audience: &str) -> Reply {
    let (token, _) = Token::issue(world, audience);
    let life = world.config.token_seconds;
    Reply::new(
        200,
        json!({ "token_type": "Bearer", "expires_in": life, "ext_expires_in": life, "access_token": token }),
    )
}

fn refuse(status: u16, error: &str, code: u32, message: &str) -> Reply {
    let (trace, correlation) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let time = jiff::Timestamp::now();
    Reply::new(
        status,
        json!({
            "error": error,
            "error_description":
                format!("AADSTS{code}: {message} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {time:.0}"),
            "error_codes": [code],
            "timestamp": format!("{time:.0}"),
            "trace_id": trace.to_string(),
            "correlation_id": correlation.to_string(),
        }),
    )
}
