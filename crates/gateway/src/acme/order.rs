//! The conversation with an ACME server: an account, or a certificate.

use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder,
    OrderStatus, RetryPolicy,
};

use super::transport::Transport;
use super::{Entry, Issuer};

/// How long an order may take, with the authority's looks at the challenges.
const ORDER_MAX: Duration = Duration::from_secs(90);

/// Why a certificate could not be obtained.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// No client can be made for the server.
    #[error("asking {0}: {1}")]
    Client(String, String),
    /// What is kept of the account cannot be read.
    #[error("the account's Secret cannot be read: {0}")]
    Credentials(#[source] serde_json::Error),
    /// No account.
    #[error("registering an account: {0}")]
    Register(#[source] Error),
    /// The account does not work.
    #[error("using the account: {0}")]
    Account(#[source] Error),
    /// The server does not take the order.
    #[error("ordering: {0}")]
    Order(#[source] Error),
    /// A name cannot be proved by HTTP.
    #[error("{0} cannot be proved by HTTP-01: the authority does not offer it")]
    NoChallenge(String),
    /// A name's challenge.
    #[error("the challenge of {0}: {1}")]
    Challenge(String, #[source] Error),
    /// The authority did not find the answers.
    #[error("the authority refuses: {0}")]
    Refused(String),
    /// The certificate does not come.
    #[error("fetching the certificate: {0}")]
    Certificate(#[source] Error),
}

/// An account as it is kept.
pub(super) struct Registered {
    pub(super) credentials: String,
    pub(super) thumbprint: String,
}

/// Registers an account.
pub(super) async fn register(issuer: &Issuer) -> Result<Registered, OrderError> {
    let contact = issuer.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<&str> = contact.as_deref().into_iter().collect();
    let asked = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let builder = Account::builder_with_http(Box::new(transport(issuer)?));
    let made = builder.create(&asked, issuer.server.clone(), None).await;
    let (account, credentials) = made.map_err(OrderError::Register)?;
    let credentials = serde_json::to_string(&credentials).map_err(OrderError::Credentials)?;
    Ok(Registered { credentials, thumbprint: account.key_thumbprint().to_owned() })
}

/// Orders a certificate; answers the chain and its new private key, both PEM.
pub(super) async fn order(entry: &Entry) -> Result<(String, String), OrderError> {
    let credentials = entry.account.as_deref().unwrap_or_default();
    let credentials: AccountCredentials = serde_json::from_str(credentials).map_err(OrderError::Credentials)?;
    let builder = Account::builder_with_http(Box::new(transport(&entry.issuer)?));
    let account = builder.from_credentials(credentials).await.map_err(OrderError::Account)?;
    let names: Vec<Identifier> = entry.names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(OrderError::Order)?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(OrderError::Order)?;
        let name = authorization.identifier().to_string();
        // Proved before, and not long ago.
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let mut challenge =
            authorization.challenge(ChallengeType::Http01).ok_or_else(|| OrderError::NoChallenge(name.clone()))?;
        challenge.set_ready().await.map_err(|error| OrderError::Challenge(name, error))?;
    }
    let patience = RetryPolicy::new().timeout(ORDER_MAX);
    match order.poll_ready(&patience).await {
        Ok(OrderStatus::Ready) => {}
        Ok(status) => {
            return Err(OrderError::Refused(format!("the order is {status:?}: {}", reasons(&mut order).await)));
        }
        Err(error) => return Err(OrderError::Refused(format!("{error}: {}", reasons(&mut order).await))),
    }
    let private = order.finalize().await.map_err(OrderError::Certificate)?;
    let chain = order.poll_certificate(&patience).await.map_err(OrderError::Certificate)?;
    Ok((chain, private))
}

fn transport(issuer: &Issuer) -> Result<Transport, OrderError> {
    Transport::new(issuer.roots.as_deref()).map_err(|error| OrderError::Client(issuer.server.clone(), error))
}

/// What the authority says of each challenge that failed.
async fn reasons(order: &mut instant_acme::Order) -> String {
    let mut said = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let name = authorization.identifier().to_string();
        let errors = authorization.challenges.iter().filter_map(|it| it.error.as_ref());
        said.extend(errors.map(|error| format!("{name}: {error}")));
    }
    said.join("; ")
}
