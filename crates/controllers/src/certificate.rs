//! CertificateSigningRequest: nodes' requests are approved, approved ones signed.
//!
//! Approved without a person: `kubernetes.io/kube-apiserver-client-kubelet` of a node for itself (or of a bootstrap token),
//! and `kubernetes.io/kubelet-serving` of a node for its own names and addresses. Everything else waits for
//! `kubectl certificate approve`. Signed are those two and `kubernetes.io/kube-apiserver-client`, each within the limits of
//! its signer; another's requests are left alone.
//!
//! Old requests go: a day after they were decided, an hour after they were signed.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::api::core::v1::Node;
use mainstay_informer::ObjectKey;
use rcgen::{
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::action::{Action, Attempt, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{created, is_terminating, time};
use crate::settings::Signer;

const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// Who may ask for a node's first certificate.
const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// How long a certificate is good for when the request does not say, and at most.
const VALIDITY: SignedDuration = SignedDuration::from_hours(365 * 24);
const VALIDITY_MIN: SignedDuration = SignedDuration::from_mins(10);
/// How far before now a certificate is good, for clocks that differ.
const BACKDATED: SignedDuration = SignedDuration::from_mins(5);
const KEPT_SIGNED: SignedDuration = SignedDuration::from_hours(1);
const KEPT_DECIDED: SignedDuration = SignedDuration::from_hours(24);
const LOOK_MAX: Duration = Duration::from_secs(600);

/// Why a request cannot be signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// It is no certificate signing request.
    #[error("the request cannot be read: {0}")]
    Read(String),
    /// It asks for what its signer does not give.
    #[error("{0}")]
    Refused(String),
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(#[source] rcgen::Error),
}

/// What a request asks for.
struct Asked {
    parameters: CertificateSigningRequestParams,
    common_name: String,
    organisations: Vec<String>,
    names: Vec<SanType>,
}

/// Decides about one request; `nodes` are those of the cluster.
pub(crate) fn reconcile(
    request: &CertificateSigningRequest,
    nodes: &[Arc<Node>],
    signer: &Signer,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::nothing("it waits to be approved");
    if is_terminating(request) || ![NODE_CLIENT, NODE_SERVING, CLIENT].contains(&request.spec.signer_name.as_str()) {
        return Plan::nothing("it is another signer's");
    }
    let status = request.status.clone().unwrap_or_default();
    let has = |type_: &str| status.conditions.iter().flatten().any(|condition| condition.type_ == type_);
    let (approved, denied, failed) = (has("Approved"), has("Denied"), has("Failed"));
    let kept = if status.certificate.is_some() { KEPT_SIGNED } else { KEPT_DECIDED };
    if status.certificate.is_some() || denied || failed {
        return expire(request, kept, now);
    }
    let asked = read(&request.spec.request.0);
    if !approved {
        if let Ok(asked) = &asked
            && let Some(message) = may_approve(request, asked, nodes)
        {
            plan.push(Action::Approve(decided(request, "Approved", "AutoApproved", message, now)));
            message.clone_into(&mut plan.why);
        } else {
            plan.look_again(LOOK_MAX);
        }
        return plan;
    }
    match asked.and_then(|asked| sign(request, asked, signer, now)) {
        Ok(certificate) => {
            "it is signed".clone_into(&mut plan.why);
            let status =
                CertificateSigningRequestStatus { certificate: Some(ByteString(certificate.into_bytes())), ..status };
            let signed = CertificateSigningRequest { status: Some(status), ..request.clone() };
            plan.push(Action::ReplaceStatus(Object::of(&signed)));
        }
        Err(error) => {
            plan.why = error.to_string();
            let failed = decided(request, "Failed", "SignerValidationFailure", &error.to_string(), now);
            plan.push(Action::ReplaceStatus(failed));
        }
    }
    plan
}

fn expire(request: &CertificateSigningRequest, kept: SignedDuration, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing("it is decided");
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let since =
        conditions.filter_map(|c| Some(c.last_update_time.as_ref()?.0)).max().unwrap_or_else(|| created(request));
    match Duration::try_from((since + kept).duration_since(now)) {
        Ok(left) if !left.is_zero() => plan.look_again(left.min(LOOK_MAX)),
        _ => plan.push(Action::delete(Target::of(request))),
    }
    plan
}

fn decided(request: &CertificateSigningRequest, type_: &str, reason: &str, message: &str, now: Timestamp) -> Object {
    let mut request = request.clone();
    let conditions = request.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(time(now)),
        last_transition_time: Some(time(now)),
    });
    Object::of(&request)
}

fn read(pem: &[u8]) -> Result<Asked, RequestError> {
    let text = std::str::from_utf8(pem).map_err(|error| RequestError::Read(error.to_string()))?;
    let parameters =
        CertificateSigningRequestParams::from_pem(text).map_err(|error| RequestError::Read(error.to_string()))?;
    let mut organisations = Vec::new();
    let mut common_name = String::new();
    for (kind, value) in parameters.params.distinguished_name.iter() {
        let text = match value {
            rcgen::DnValue::Utf8String(text) => text.clone(),
            rcgen::DnValue::PrintableString(text) => text.to_string(),
            other => return Err(RequestError::Read(format!("{kind:?} is not text: {other:?}"))),
        };
        match kind {
            DnType::CommonName => common_name = text,
            DnType::OrganizationName => organisations.push(text),
            _ => {}
        }
    }
    let names = parameters.params.subject_alt_names.clone();
    Ok(Asked { parameters, common_name, organisations, names })
}

/// Why a request needs no person to approve it.
fn may_approve(request: &CertificateSigningRequest, asked: &Asked, nodes: &[Arc<Node>]) -> Option<&'static str> {
    let spec = &request.spec;
    let user = spec.username.as_deref().unwrap_or_default();
    let groups = spec.groups.as_deref().unwrap_or_default();
    let own = asked.common_name == user && groups.iter().any(|group| group == NODES);
    within_limits(request, asked).ok()?;
    match spec.signer_name.as_str() {
        NODE_CLIENT if own => Some("Auto approving self kubelet client certificate after SubjectAccessReview."),
        NODE_CLIENT if groups.iter().any(|group| group == BOOTSTRAPPERS) => {
            Some("Auto approving kubelet client certificate after SubjectAccessReview.")
        }
        NODE_SERVING if own => {
            let node = user.strip_prefix(NODE_PREFIX)?;
            let known = nodes.iter().find(|other| crate::object::name(&***other) == node)?;
            let addresses: Vec<&str> =
                known.status.iter().flat_map(|s| s.addresses.iter().flatten()).map(|a| a.address.as_str()).collect();
            let is_own = |name: &SanType| match name {
                SanType::DnsName(name) => name.as_str() == node || addresses.contains(&name.as_str()),
                SanType::IpAddress(ip) => addresses.contains(&ip.to_string().as_str()),
                _ => false,
            };
            asked
                .names
                .iter()
                .all(is_own)
                .then_some("Auto approving kubelet serving certificate of the node's own addresses.")
        }
        _ => None,
    }
}

/// What each signer signs at all.
fn within_limits(request: &CertificateSigningRequest, asked: &Asked) -> Result<(), RequestError> {
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    let (needed, other): (&str, &[&str]) = match request.spec.signer_name.as_str() {
        NODE_SERVING => ("server auth", &["digital signature", "key encipherment"]),
        _ => ("client auth", &["digital signature", "key encipherment"]),
    };
    let refuse = |why: &str| Err(RequestError::Refused(why.to_owned()));
    if !usages.iter().any(|usage| usage == needed) || usages.iter().any(|u| u != needed && !other.contains(&u.as_str()))
    {
        return refuse("the usages are not those of the signer");
    }
    let is_node = asked.organisations == [NODES] && asked.common_name.starts_with(NODE_PREFIX);
    match request.spec.signer_name.as_str() {
        NODE_CLIENT | NODE_SERVING if !is_node => refuse("the subject is not that of a node"),
        NODE_CLIENT if !asked.names.is_empty() => refuse("a node's client certificate has no names"),
        NODE_SERVING if asked.names.is_empty() => refuse("a serving certificate needs at least one name or address"),
        CLIENT if asked.organisations.iter().any(|group| group == "system:masters") => {
            refuse("the group system:masters is not given")
        }
        _ => Ok(()),
    }
}

fn sign(
    request: &CertificateSigningRequest,
    mut asked: Asked,
    signer: &Signer,
    now: Timestamp,
) -> Result<String, RequestError> {
    within_limits(request, &asked)?;
    let key = KeyPair::from_pem(&signer.key).map_err(RequestError::Sign)?;
    let issuer = Issuer::from_ca_cert_pem(&signer.certificate, key).map_err(RequestError::Sign)?;
    let wanted = request.spec.expiration_seconds.map(|seconds| SignedDuration::from_secs(i64::from(seconds)));
    let validity = wanted.unwrap_or(VALIDITY).clamp(VALIDITY_MIN, VALIDITY);
    let parameters = &mut asked.parameters.params;
    let since_epoch = |at: Timestamp| Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    parameters.not_before = epoch + since_epoch(now - BACKDATED);
    parameters.not_after = epoch + since_epoch(now + validity);
    parameters.is_ca = rcgen::IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    let serving = request.spec.signer_name == NODE_SERVING;
    let purpose = if serving { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth };
    parameters.extended_key_usages = vec![purpose];
    Ok(asked.parameters.signed_by(&issuer).map_err(RequestError::Sign)?.pem())
}

/// The controller of certificate requests.
pub(crate) struct Certificates {
    pub(crate) signer: Signer,
}

impl Controller for Certificates {
    type Key = ObjectKey;
    const NAME: &'static str = "certificate-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.signing_requests, |change, _| vec![change.key.clone()]);
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let Some(request) = caches.signing_requests.get_key(key) else { return Plan::nothing("it is gone") };
        reconcile(&request, &caches.nodes.list(), &self.signer, now.wall)
    }
}
