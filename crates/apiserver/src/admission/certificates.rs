//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who may approve and sign requests of a signer,
//! and that nobody becomes `system:masters` by a request.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#authorization>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_model::status::ApiError;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::{Review, forbidden};
use crate::api::Api;
use crate::authn::MASTERS;
use crate::authz::{self, Attributes, Decision};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) async fn validate(api: &Api, review: Review<'_>, new: &Value) -> Result<(), ApiError> {
    let signer = new["spec"]["signerName"].as_str().unwrap_or_default();
    let verb = match review.call.subresource.as_deref() {
        None => return if review.old.is_none() { subject(review, signer, new) } else { Ok(()) },
        Some("approval") => "approve",
        Some("status") if signs(review.old, new) => "sign",
        _ => return Ok(()),
    };
    // A permission is for one signer or, with `domain/*`, for all of a domain.
    let domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*"));
    for name in std::iter::once(signer).chain(domain.as_deref()) {
        let asked = Attributes::on(verb, GROUP, "signers", "", name);
        if matches!(authz::decide(api, &review.call.user, &asked).await?, Decision::Allowed(_)) {
            return Ok(());
        }
    }
    Err(forbidden(review, new, &format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

/// Whether a change of the status issues a certificate or says that there will be none.
fn signs(old: Option<&Value>, new: &Value) -> bool {
    let Some(old) = old else { return false };
    let failed = |request: &Value| {
        let conditions = request["status"]["conditions"].as_array().into_iter().flatten();
        conditions.filter(|condition| condition["type"] == "Failed").count()
    };
    old["status"]["certificate"] != new["status"]["certificate"] || failed(old) != failed(new)
}

fn subject(review: Review<'_>, signer: &str, new: &Value) -> Result<(), ApiError> {
    if signer != CLIENT_SIGNER {
        return Ok(());
    }
    let request = STANDARD.decode(new["spec"]["request"].as_str().unwrap_or_default()).unwrap_or_default();
    let Ok(der) = CertificateSigningRequestDer::from_pem_slice(&request) else { return Ok(()) };
    let Ok((_, parsed)) = X509CertificationRequest::from_der(&der) else { return Ok(()) };
    let subject = &parsed.certification_request_info.subject;
    if subject.iter_organization().any(|group| group.as_str().is_ok_and(|group| group == MASTERS)) {
        let why = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
        return Err(forbidden(review, new, &why));
    }
    Ok(())
}
