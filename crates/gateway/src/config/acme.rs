//! Certificates that policies have obtained by ACME: which Secret is to hold which names, and from whom.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Severity;
use super::compile::Work;
use super::listeners::Mode;
use super::objects::Held;
use super::policies::{self, Target};
use super::secrets::{bag_value, reference_key};
use crate::acme::{self, ACCOUNT, ATTEMPTS, Entry, Issuer, LETS_ENCRYPT, THUMBPRINT};
use crate::api::Key;
use crate::api::core::IngressSpec;
use crate::api::gateway::{GatewaySpec, Listener};
use crate::api::policy::{Acme, TrafficPolicySpec};

/// The account's Secret unless a policy names one.
const ACCOUNT_NAME: &str = "mainstay-acme-account";
/// Names of one certificate at most (Let's Encrypt, "Rate Limits").
const NAMES_MAX: usize = 100;
/// Where authorities ask for the answer to a challenge (RFC 8555, 8.3).
const CHALLENGE_PORT: u16 = 80;

/// A listener's certificate, if a policy has it obtained. Answers what to say while it is not there.
pub(super) fn listener(
    work: &mut Work<'_>,
    gateway: &Held<GatewaySpec>,
    listener: &Listener,
    path: &[&str],
    targets: &[Target<'_>],
) -> Option<String> {
    let (policy, written) = policies::acme(work, targets)?;
    let references = listener.tls.iter().flat_map(|it| &it.certificate_refs);
    let secret = references.map(|it| reference_key(it, &gateway.key)).find(|it| it.namespace == gateway.key.namespace);
    let Some(secret) = secret else {
        let message = format!("listener {}: ACME needs certificateRefs to name the Secret to make", listener.name);
        work.problem(gateway, path, Severity::Error, message);
        return None;
    };
    want(work, gateway, path, (policy, written), secret, listener.hostname.as_slice())
}

/// The certificates of an Ingress, if a policy has them obtained. Answers what to say of Secrets that are not there.
pub(super) fn ingress(work: &mut Work<'_>, ingress: &Held<IngressSpec>) -> BTreeMap<String, String> {
    let Some(policy) = policies::acme(work, &[Target::whole("Ingress", &ingress.key)]) else { return BTreeMap::new() };
    let mut awaited = BTreeMap::new();
    for tls in &ingress.spec.tls {
        let Some(name) = &tls.secret_name else { continue };
        let secret = Key::new(&ingress.key.namespace, name);
        let said = want(work, ingress, &["spec", "tls"], policy, secret, &tls.hosts);
        awaited.extend(said.map(|message| (name.clone(), message)));
    }
    awaited
}

/// Notes that a Secret is to hold a certificate for these names, beside those that are wanted of it already.
fn want<T>(
    work: &mut Work<'_>,
    object: &Held<T>,
    path: &[&str],
    (policy, written): (&Held<TrafficPolicySpec>, &Acme),
    secret: Key,
    names: &[String],
) -> Option<String> {
    let names: BTreeSet<String> = names.iter().map(|it| it.to_lowercase()).filter(|it| !it.is_empty()).collect();
    if names.is_empty() {
        work.problem(object, path, Severity::Error, "ACME needs a hostname: a certificate is for a name");
        return None;
    }
    if let Some(wildcard) = names.iter().find(|it| it.starts_with("*.")) {
        let message = format!("{wildcard}: a wildcard needs the challenge DNS-01, and this gateway does HTTP-01 only");
        work.problem(object, path, Severity::Error, message);
        return None;
    }
    let issuer = match issuer(work, policy, written) {
        Ok(issuer) => issuer,
        Err(message) => {
            work.problem(policy, &["spec", "acme"], Severity::Error, message);
            return None;
        }
    };
    let entry = match work.certificates.remove(&secret) {
        Some(mut known) if known.issuer == issuer && known.names.len() + names.len() <= NAMES_MAX => {
            known.names.extend(names);
            known
        }
        Some(known) => {
            let reason = if known.issuer == issuer { "has too many names" } else { "is to be had in two ways" };
            work.certificates.insert(secret.clone(), known);
            work.problem(object, path, Severity::Error, format!("the certificate of Secret {secret} {reason}"));
            return None;
        }
        None => new_entry(work, secret.clone(), names, issuer),
    };
    let said = said(&entry);
    if entry.held == acme::Held::Foreign {
        let message =
            format!("Secret {secret} was not made by this gateway, and is left alone; delete it to have it ordered");
        work.problem(object, path, Severity::Warning, message);
    }
    work.certificates.insert(secret, entry);
    said
}

fn issuer(work: &Work<'_>, policy: &Held<TrafficPolicySpec>, written: &Acme) -> Result<Issuer, String> {
    let mut roots = Vec::new();
    for reference in &written.ca_certificate_refs {
        let kind = if reference.kind.as_deref() == Some("Secret") { "Secret" } else { "ConfigMap" };
        roots.extend_from_slice(bag_value(work, kind, &reference_key(reference, &policy.key), &["ca.crt"])?);
        roots.push(b'\n');
    }
    let roots = Some(roots).filter(|it| !it.is_empty());
    if let Some(roots) = &roots {
        super::trusted(Some(roots)).map_err(|error| format!("caCertificateRefs: {error}"))?;
    }
    let server = written.server.clone().unwrap_or_else(|| LETS_ENCRYPT.to_owned());
    if !server.starts_with("https://") {
        return Err(format!("server {server:?} is no https URL"));
    }
    let account = written.private_key_secret_ref.as_ref().map_or(ACCOUNT_NAME, |it| &it.name);
    let account = Key::new(&policy.key.namespace, account);
    if work.objects.bags.contains_key(&("Secret", account.clone())) && !work.objects.managed.contains_key(&account) {
        return Err(format!("Secret {account} was not made by this gateway; name another in privateKeySecretRef"));
    }
    Ok(Issuer { server, email: written.email.clone(), account, roots })
}

fn new_entry(work: &Work<'_>, secret: Key, names: BTreeSet<String>, issuer: Issuer) -> Entry {
    let bag = |key: &Key| work.objects.bags.get(&("Secret", key.clone()));
    let held = match (bag(&secret), work.objects.managed.get(&secret)) {
        (None, _) => acme::Held::Nothing,
        (Some(_), None) => acme::Held::Foreign,
        (Some(bag), Some(server)) => {
            let read = bag.get("tls.crt").and_then(|pem| acme::certificate(pem, server));
            read.map_or(acme::Held::Nothing, acme::Held::Certificate)
        }
    };
    // The account of another server is of no use with this one.
    let account = bag(&issuer.account).filter(|_| work.objects.managed.get(&issuer.account) == Some(&issuer.server));
    let text = |name: &str| String::from_utf8(account?.get(name)?.clone()).ok();
    let attempts = text(ATTEMPTS).and_then(|it| serde_json::from_str(&it).ok()).unwrap_or_default();
    Entry { secret, names, held, account: text(ACCOUNT), thumbprint: text(THUMBPRINT), attempts, issuer }
}

/// What to say of a certificate that is not there yet.
fn said(entry: &Entry) -> Option<String> {
    let tried = entry.tried();
    let failed = match tried.failures {
        0 => String::new(),
        count => format!("; {count} attempts have failed, the last: {}", tried.error),
    };
    let names: Vec<&str> = entry.names.iter().map(String::as_str).collect();
    let waits = format!(
        "Secret {} is not there yet: a certificate for {} is obtained from {}{failed}",
        entry.secret,
        names.join(", "),
        entry.issuer.server
    );
    (entry.held == acme::Held::Nothing).then_some(waits)
}

/// Says so if nobody answers where authorities ask.
pub(super) fn check_port(work: &mut Work<'_>) {
    let answers = work.listeners.iter().any(|it| it.mode == Mode::Http && it.port == CHALLENGE_PORT);
    if answers || work.certificates.is_empty() {
        return;
    }
    let policies: Vec<_> = work.objects.policies.values().filter(|it| it.spec.acme.is_some()).collect();
    for policy in policies {
        let message = "authorities ask for answers to challenges on port 80, and no listener of protocol HTTP is there";
        work.problem(policy, &["spec", "acme"], Severity::Warning, message);
    }
}

/// The thumbprints with which challenges of hosts are answered.
pub(super) fn challenges(entries: &[Entry]) -> HashMap<String, Arc<str>> {
    let named = entries.iter().flat_map(|entry| entry.names.iter().zip(std::iter::repeat(entry.thumbprint.as_deref())));
    named.filter_map(|(name, thumbprint)| Some((name.clone(), thumbprint?.into()))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::super::{Compiled, Objects, Options, compile, source};
    use super::*;

    const WORLD: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: mainstay
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: a, port: 443, protocol: HTTPS, hostname: A.example, tls: {certificateRefs: [{name: tls}]}}
  - {name: b, port: 443, protocol: HTTPS, hostname: b.example, tls: {certificateRefs: [{name: tls}]}}
---
apiVersion: mainstay.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: acme}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}, {group: networking.k8s.io, kind: Ingress, name: i}]
  acme: {}
---
";

    fn compiled(text: &str) -> Compiled {
        let mut sources = Vec::new();
        source::parse(Path::new("w.yaml"), text, &mut sources).unwrap();
        compile(&Objects::decode(&sources), &Options::default())
    }

    fn said(compiled: &Compiled) -> String {
        compiled.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn listeners_with_one_secret_share_a_certificate() {
        let found = compiled(WORLD);
        let [entry] = &found.certificates[..] else { panic!("{:?}", found.certificates) };
        assert_eq!(entry.names.iter().map(String::as_str).collect::<Vec<_>>(), ["a.example", "b.example"]);
        assert_eq!((entry.issuer.server.as_str(), &entry.held), (LETS_ENCRYPT, &acme::Held::Nothing));
        assert_eq!(entry.issuer.account, Key::new("default", ACCOUNT_NAME));
        let said = said(&found);
        assert!(said.contains("warning") && said.contains("is obtained from") && !said.contains("error"), "{said}");
        assert!(found.table.challenges.is_empty(), "there is no account yet");
    }

    #[test]
    fn an_ingress_has_it_from_its_hosts() {
        let text = format!(
            "{WORLD}apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: i}}\nspec: {{tls: [{{hosts: [i.example], secretName: i-tls}}]}}\n"
        );
        let secrets: Vec<String> = compiled(&text).certificates.iter().map(|it| it.secret.to_string()).collect();
        assert_eq!(secrets, ["default/i-tls", "default/tls"]);
    }

    #[test]
    fn the_account_and_what_was_tried_are_read_and_challenges_answered() {
        let tried = format!(
            "{{\"default/tls\":{{\"failures\":2,\"last\":5,\"error\":\"no way\",\"asked\":\"{LETS_ENCRYPT} a.example,b.example\"}}}}"
        );
        let account = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {ACCOUNT_NAME}, labels: {{app.kubernetes.io/managed-by: mainstay-gateway}}, annotations: {{mainstay.dev/acme-server: '{LETS_ENCRYPT}'}}}}\nstringData: {{account.json: '{{}}', thumbprint: thumb, attempts.json: '{tried}'}}\n"
        );
        let found = compiled(&format!("{WORLD}{account}"));
        assert_eq!(&*found.table.challenges["b.example"], "thumb");
        assert!(said(&found).contains("2 attempts have failed, the last: no way"), "{}", said(&found));
        assert!(found.certificates[0].account.is_some());
        // The account of another server is none, and one that is not from here is not touched.
        let other = compiled(&format!("{WORLD}{}", account.replace("acme-v02.api.letsencrypt.org", "other.example")));
        assert!(other.certificates[0].account.is_none() && other.table.challenges.is_empty());
        let foreign = compiled(&format!("{WORLD}{}", account.replace("mainstay-gateway", "somebody")));
        assert!(foreign.certificates.is_empty() && said(&foreign).contains("was not made by this gateway"));
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let wildcard = compiled(&WORLD.replace("A.example", "'*.example'"));
        assert!(said(&wildcard).contains("DNS-01"), "{}", said(&wildcard));
        let nameless = compiled(&WORLD.replace("hostname: A.example, ", ""));
        assert!(said(&nameless).contains("ACME needs a hostname"), "{}", said(&nameless));
        let unheard = compiled(&WORLD.replace("port: 80,", "port: 8080,"));
        assert!(said(&unheard).contains("port 80"), "{}", said(&unheard));
        let plain = compiled(&WORLD.replace("acme: {}", "acme: {server: 'http://acme.example'}"));
        assert!(said(&plain).contains("no https URL") && plain.certificates.is_empty(), "{}", said(&plain));
        let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: tls}\nstringData: {tls.crt: x, tls.key: x}\n";
        let foreign = compiled(&format!("{WORLD}{secret}"));
        assert!(said(&foreign).contains("left alone") && foreign.certificates[0].held == acme::Held::Foreign);
    }
}
