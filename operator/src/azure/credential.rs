//! The operator's identity in Azure, Azure's clouds, and the tokens that prove the identity.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{Secret, TokenCredential};
use azure_core::http::{
    AsyncRawResponse, Body, ClientOptions, HttpClient, Method, Request, RetryOptions, Transport,
    headers::Headers,
};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};
use reqwest::Url;

use super::Error;

/// One of Azure's separate clouds: each has its own sign-in authority and its own ARM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cloud {
    #[default]
    Public,
    UsGovernment,
    China,
}

impl Cloud {
    /// The address of its ARM, which is also the audience of our tokens.
    pub fn arm(self) -> &'static str {
        match self {
            Cloud::Public => "https://management.azure.com",
            Cloud::UsGovernment => "https://management.usgovcloudapi.net",
            Cloud::China => "https://management.chinacloudapi.cn",
        }
    }

    /// `azure_identity` knows the authorities: login.microsoftonline.com, .us and login.chinacloudapi.cn.
    fn authority(self) -> CloudConfiguration {
        match self {
            Cloud::Public => CloudConfiguration::AzurePublic,
            Cloud::UsGovernment => CloudConfiguration::AzureGovernment,
            Cloud::China => CloudConfiguration::AzureChina,
        }
    }

    /// As Azure's metadata service spells it (`azEnvironment`).
    pub fn as_str(self) -> &'static str {
        match self {
            Cloud::Public => "AzurePublicCloud",
            Cloud::UsGovernment => "AzureUSGovernmentCloud",
            Cloud::China => "AzureChinaCloud",
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Cloud {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let known = [Cloud::Public, Cloud::UsGovernment, Cloud::China];
        let found = known.into_iter().find(|cloud| cloud.as_str().eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let names = known.map(Cloud::as_str).join(", ");
            Error::Config {
                message: format!("{name:?} isn't a cloud that Vnetpool knows; use one of {names}"),
            }
        })
    }
}

/// How the operator signs in.
#[derive(Clone, Debug)]
pub enum Credential {
    /// The VM's own identity, or the user-assigned one with that client id.
    ManagedIdentity { client_id: Option<String> },
    /// A Kubernetes service account's token, projected into a file, that Entra trusts.
    WorkloadIdentity { application: Application, token_file: String },
    /// A service principal with a password.
    ClientSecret { application: Application, secret: Secret },
}

/// The application that signs in to Entra, and where.
#[derive(Clone, Debug)]
pub struct Application {
    pub tenant_id: String,
    pub client_id: String,
    /// Entra's address, if not the cloud's own. HTTPS only.
    pub authority: Option<String>,
}

impl Credential {
    /// From the variables that Azure's own tools use: a federated token file means workload identity, a
    /// client secret a service principal, anything else the VM's managed identity. `env` looks a variable up;
    /// an empty one counts as unset.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Credential, Error> {
        let variable = |name: &str| env(name).filter(|value| !value.is_empty());
        let need = |name: &str, because: &str| {
            variable(name).ok_or_else(|| Error::Credential {
                message: format!("{because} is set, so {name} must be, too; set it, or unset {because}"),
            })
        };
        let application = |because: &str| {
            Ok::<_, Error>(Application {
                tenant_id: need("AZURE_TENANT_ID", because)?,
                client_id: need("AZURE_CLIENT_ID", because)?,
                authority: variable("AZURE_AUTHORITY_HOST"),
            })
        };
        if let Some(token_file) = variable("AZURE_FEDERATED_TOKEN_FILE") {
            let application = application("AZURE_FEDERATED_TOKEN_FILE")?;
            Ok(Credential::WorkloadIdentity { application, token_file })
        } else if let Some(secret) = variable("AZURE_CLIENT_SECRET") {
            let application = application("AZURE_CLIENT_SECRET")?;
            Ok(Credential::ClientSecret { application, secret: secret.into() })
        } else {
            Ok(Credential::ManagedIdentity { client_id: variable("AZURE_CLIENT_ID") })
        }
    }

    fn authority(&self, cloud: Cloud) -> CloudConfiguration {
        let named = match self {
            Credential::ManagedIdentity { .. } => None,
            Credential::WorkloadIdentity { application, .. }
            | Credential::ClientSecret { application, .. } => application.authority.clone(),
        };
        let Some(authority_host) = named else { return cloud.authority() };
        let mut custom = CustomConfiguration::default();
        custom.authority_host = authority_host;
        CloudConfiguration::Custom(custom)
    }
}

/// Everything that is needed to sign in.
#[derive(Clone, Debug)]
pub(super) struct SignIn {
    credential: Credential,
    cloud: Cloud,
    http: TokenHttp,
}

impl SignIn {
    pub(super) fn new(credential: Credential, cloud: Cloud, http: TokenHttp) -> SignIn {
        SignIn { credential, cloud, http }
    }

    /// A source of tokens, which caches a token until it is about to expire.
    pub(super) fn source(&self) -> Result<Arc<dyn TokenCredential>, Error> {
        let client_options = ClientOptions {
            cloud: Some(Arc::new(self.credential.authority(self.cloud))),
            transport: Some(Transport::new(Arc::new(self.http.clone()))),
            // The caller decides when to try again. For the metadata service `azure_identity` follows its own
            // documented rules and ignores what is set here.
            retry: RetryOptions::none(),
            ..ClientOptions::default()
        };
        let source: azure_core::Result<Arc<dyn TokenCredential>> = match self.credential.clone() {
            Credential::ManagedIdentity { client_id } => {
                ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                    user_assigned_id: client_id.map(UserAssignedId::ClientId),
                    client_options,
                }))
                .map(|source| source as _)
            }
            Credential::WorkloadIdentity { application, token_file } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: Some(application.client_id),
                    tenant_id: Some(application.tenant_id),
                    token_file_path: Some(token_file.into()),
                }))
                .map(|source| source as _)
            }
            Credential::ClientSecret { application, secret } => ClientSecretCredential::new(
                &application.tenant_id,
                application.client_id,
                secret,
                Some(ClientSecretCredentialOptions { client_options }),
            )
            .map(|source| source as _),
        };
        source.map_err(|error| Error::Credential { message: error.to_string() })
    }
}

/// Sends the requests of `azure_identity`. They don't go to ARM, so the budget doesn't count them.
#[derive(Clone, Debug)]
pub(super) struct TokenHttp {
    /// For Entra, through the proxy that the environment names.
    entra: reqwest::Client,
    /// For the metadata service, never through a proxy.
    direct: reqwest::Client,
    /// Replaces the metadata service, whose address is built into `azure_identity`.
    imds: Option<Url>,
}

/// Link-local: the metadata service answers only from the VM itself, and never through a proxy.
const IMDS: &str = "169.254.169.254";

impl TokenHttp {
    pub(super) fn new(entra: reqwest::Client, direct: reqwest::Client, imds: Option<Url>) -> TokenHttp {
        TokenHttp { entra, direct, imds }
    }

    fn url(&self, asked: &Url) -> Url {
        match &self.imds {
            Some(imds) if asked.host_str() == Some(IMDS) => {
                let mut url = imds.clone();
                url.set_path(asked.path());
                url.set_query(asked.query());
                url
            }
            _ => asked.clone(),
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for TokenHttp {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        use azure_core::error::{Error, ErrorKind, ResultExt};
        let method = match request.method() {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            other => {
                return Err(Error::with_message(
                    ErrorKind::Other,
                    format!("{other} isn't how tokens are asked for"),
                ));
            }
        };
        let is_imds = request.url().host_str() == Some(IMDS);
        let http = if is_imds { &self.direct } else { &self.entra };
        let mut sent = http.request(method, self.url(request.url()));
        for (name, value) in request.headers().iter() {
            sent = sent.header(name.as_str(), value.as_str());
        }
        if let Body::Bytes(body) = request.body() {
            sent = sent.body(body.clone());
        }
        let answer = sent.send().await.with_context(ErrorKind::Io, "asking for a token")?;
        let status = answer.status().as_u16().into();
        let mut headers = Headers::new();
        for (name, value) in answer.headers() {
            if let Ok(value) = value.to_str() {
                headers.insert(name.as_str().to_owned(), value.to_owned());
            }
        }
        let body = answer.bytes().await.with_context(ErrorKind::Io, "reading a token")?;
        Ok(AsyncRawResponse::from_bytes(status, headers, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The metadata service answers only the machine itself, and no proxy may learn the machine's token.
    #[tokio::test]
    async fn the_metadata_service_is_asked_past_the_proxy_that_leads_to_entra() {
        // In a network namespace of this thread's own that leads nowhere, since the test names the address of
        // this machine's metadata service.
        vnetpool_azure_sim::seclude().unwrap();
        let sim = vnetpool_azure_sim::Sim::start(Default::default()).await.unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Nothing listens there.
        let proxy = reqwest::Proxy::all("http://127.0.0.1:1").unwrap();
        let entra = reqwest::Client::builder().proxy(proxy).build().unwrap();
        let direct = reqwest::Client::builder().no_proxy().build().unwrap();
        let http = TokenHttp::new(entra, direct, Some(sim.arm_url().parse().unwrap()));
        let ask = async |url: String| {
            let mut request = Request::new(url.parse().unwrap(), Method::Get);
            request.insert_header("metadata", "true");
            http.execute_request(&request).await
        };
        let token =
            "metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com";
        let answer = ask(format!("http://{IMDS}/{token}")).await.unwrap();
        assert_eq!(u16::from(answer.status()), 200);
        assert!(
            ask(format!("{}/{token}", sim.arm_url())).await.is_err(),
            "everything else goes by the proxy"
        );
    }

    fn from(variables: &[(&str, &str)]) -> Result<Credential, Error> {
        Credential::from_env(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_federated_token_file_makes_it_workload_identity() {
        let all = [
            ("AZURE_FEDERATED_TOKEN_FILE", "/token"),
            ("AZURE_TENANT_ID", "tenant"),
            ("AZURE_CLIENT_ID", "client"),
            ("AZURE_CLIENT_SECRET", "secret"),
        ];
        assert!(
            matches!(from(&all).unwrap(), Credential::WorkloadIdentity { token_file, .. } if token_file == "/token")
        );
    }

    #[test]
    fn a_client_secret_makes_it_a_service_principal_and_is_never_shown() {
        let all =
            [("AZURE_TENANT_ID", "tenant"), ("AZURE_CLIENT_ID", "client"), ("AZURE_CLIENT_SECRET", "hush")];
        let credential = from(&all).unwrap();
        assert!(matches!(credential, Credential::ClientSecret { .. }));
        assert!(!format!("{credential:?}").contains("hush"));
    }

    #[test]
    fn without_either_it_is_the_managed_identity() {
        assert!(matches!(from(&[]).unwrap(), Credential::ManagedIdentity { client_id: None }));
        assert!(matches!(
            from(&[("AZURE_CLIENT_ID", "client"), ("AZURE_CLIENT_SECRET", "")]).unwrap(),
            Credential::ManagedIdentity { client_id: Some(id) } if id == "client"
        ));
    }

    #[test]
    fn half_a_credential_names_the_variable_that_lacks() {
        let error = from(&[("AZURE_CLIENT_SECRET", "x"), ("AZURE_CLIENT_ID", "c")]).unwrap_err().to_string();
        assert!(error.contains("AZURE_TENANT_ID must be"), "{error}");
    }

    #[test]
    fn clouds_are_known_by_the_names_the_metadata_service_uses() {
        for cloud in [Cloud::Public, Cloud::UsGovernment, Cloud::China] {
            assert_eq!(cloud.to_string().parse::<Cloud>().unwrap(), cloud);
        }
        assert!("AzureGermanCloud".parse::<Cloud>().unwrap_err().to_string().contains("AzurePublicCloud"));
    }
}
