//! The schemas of the built-in kinds, with their descriptions, from the types of `k8s-openapi`.

use k8s_openapi::api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use k8s_openapi::schemars::generate::SchemaSettings;
use k8s_openapi::schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::registry::Served;

/// Which OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// Swagger 2.0.
    Second,
    /// OpenAPI 3.0.
    Third,
}

impl Version {
    /// A reference to a definition.
    pub(super) fn reference(self, name: &str) -> Value {
        match self {
            Self::Second => json!({"$ref": format!("#/definitions/{name}")}),
            Self::Third => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    /// A parameter in the query, of a JSON type.
    pub(super) fn query(self, name: &str, of_type: &str) -> Value {
        match self {
            Self::Second => json!({"name": name, "in": "query", "type": of_type, "uniqueItems": true}),
            Self::Third => json!({"name": name, "in": "query", "schema": {"type": of_type, "uniqueItems": true}}),
        }
    }

    /// A part of the path.
    pub(super) fn segment(self, name: &str) -> Value {
        match self {
            Self::Second => {
                json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true})
            }
            Self::Third => {
                json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})
            }
        }
    }

    /// A good answer.
    pub(super) fn response(self, schema: Option<&Value>) -> Value {
        match (self, schema) {
            (_, None) => json!({"description": "OK"}),
            (Self::Second, Some(schema)) => json!({"description": "OK", "schema": schema}),
            (Self::Third, Some(schema)) => {
                json!({"description": "OK", "content": {"application/json": {"schema": schema}}})
            }
        }
    }

    /// The body of a request.
    pub(super) fn body(self, operation: &mut Value, parameters: &mut Vec<Value>, schema: &Value) {
        match self {
            Self::Second => {
                parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
            }
            Self::Third => {
                operation["requestBody"] = json!({"required": true, "content": {"*/*": {"schema": schema}}});
            }
        }
    }

    fn settings(self) -> SchemaSettings {
        match self {
            Self::Second => SchemaSettings::default().with(|settings| {
                settings.definitions_path = "/definitions".into();
                settings.meta_schema = None;
            }),
            Self::Third => SchemaSettings::openapi3(),
        }
    }
}

type Add = fn(&mut SchemaGenerator);

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// The types of the built-in kinds, by group and kind.
const KINDS: &[(&str, &str, Add)] = &[
    ("", "Binding", add::<api::core::v1::Binding>),
    ("", "ComponentStatus", add::<api::core::v1::ComponentStatus>),
    ("", "ConfigMap", add::<api::core::v1::ConfigMap>),
    ("", "Endpoints", add::<api::core::v1::Endpoints>),
    ("", "Event", add::<api::core::v1::Event>),
    ("", "LimitRange", add::<api::core::v1::LimitRange>),
    ("", "Namespace", add::<api::core::v1::Namespace>),
    ("", "Node", add::<api::core::v1::Node>),
    ("", "PersistentVolumeClaim", add::<api::core::v1::PersistentVolumeClaim>),
    ("", "PersistentVolume", add::<api::core::v1::PersistentVolume>),
    ("", "Pod", add::<api::core::v1::Pod>),
    ("", "PodTemplate", add::<api::core::v1::PodTemplate>),
    ("", "ReplicationController", add::<api::core::v1::ReplicationController>),
    ("", "ResourceQuota", add::<api::core::v1::ResourceQuota>),
    ("", "Secret", add::<api::core::v1::Secret>),
    ("", "ServiceAccount", add::<api::core::v1::ServiceAccount>),
    ("", "Service", add::<api::core::v1::Service>),
    (
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicy",
        add::<api::admissionregistration::v1::MutatingAdmissionPolicy>,
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicyBinding",
        add::<api::admissionregistration::v1::MutatingAdmissionPolicyBinding>,
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
        add::<api::admissionregistration::v1::MutatingWebhookConfiguration>,
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicy",
        add::<api::admissionregistration::v1::ValidatingAdmissionPolicy>,
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicyBinding",
        add::<api::admissionregistration::v1::ValidatingAdmissionPolicyBinding>,
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
        add::<api::admissionregistration::v1::ValidatingWebhookConfiguration>,
    ),
    (
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        add::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>,
    ),
    (
        "apiregistration.k8s.io",
        "APIService",
        add::<k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService>,
    ),
    ("apps", "ControllerRevision", add::<api::apps::v1::ControllerRevision>),
    ("apps", "DaemonSet", add::<api::apps::v1::DaemonSet>),
    ("apps", "Deployment", add::<api::apps::v1::Deployment>),
    ("apps", "ReplicaSet", add::<api::apps::v1::ReplicaSet>),
    ("apps", "StatefulSet", add::<api::apps::v1::StatefulSet>),
    ("authentication.k8s.io", "SelfSubjectReview", add::<api::authentication::v1::SelfSubjectReview>),
    ("authentication.k8s.io", "TokenReview", add::<api::authentication::v1::TokenReview>),
    ("authorization.k8s.io", "LocalSubjectAccessReview", add::<api::authorization::v1::LocalSubjectAccessReview>),
    ("authorization.k8s.io", "SelfSubjectAccessReview", add::<api::authorization::v1::SelfSubjectAccessReview>),
    ("authorization.k8s.io", "SelfSubjectRulesReview", add::<api::authorization::v1::SelfSubjectRulesReview>),
    ("authorization.k8s.io", "SubjectAccessReview", add::<api::authorization::v1::SubjectAccessReview>),
    ("autoscaling", "HorizontalPodAutoscaler", add::<api::autoscaling::v2::HorizontalPodAutoscaler>),
    ("batch", "CronJob", add::<api::batch::v1::CronJob>),
    ("batch", "Job", add::<api::batch::v1::Job>),
    ("certificates.k8s.io", "CertificateSigningRequest", add::<api::certificates::v1::CertificateSigningRequest>),
    ("certificates.k8s.io", "ClusterTrustBundle", add::<api::certificates::v1::ClusterTrustBundle>),
    ("certificates.k8s.io", "PodCertificateRequest", add::<api::certificates::v1::PodCertificateRequest>),
    ("coordination.k8s.io", "Lease", add::<api::coordination::v1::Lease>),
    ("discovery.k8s.io", "EndpointSlice", add::<api::discovery::v1::EndpointSlice>),
    ("events.k8s.io", "Event", add::<api::events::v1::Event>),
    ("networking.k8s.io", "IngressClass", add::<api::networking::v1::IngressClass>),
    ("networking.k8s.io", "Ingress", add::<api::networking::v1::Ingress>),
    ("networking.k8s.io", "IPAddress", add::<api::networking::v1::IPAddress>),
    ("networking.k8s.io", "NetworkPolicy", add::<api::networking::v1::NetworkPolicy>),
    ("networking.k8s.io", "ServiceCIDR", add::<api::networking::v1::ServiceCIDR>),
    ("node.k8s.io", "RuntimeClass", add::<api::node::v1::RuntimeClass>),
    ("policy", "PodDisruptionBudget", add::<api::policy::v1::PodDisruptionBudget>),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", add::<api::rbac::v1::ClusterRoleBinding>),
    ("rbac.authorization.k8s.io", "ClusterRole", add::<api::rbac::v1::ClusterRole>),
    ("rbac.authorization.k8s.io", "RoleBinding", add::<api::rbac::v1::RoleBinding>),
    ("rbac.authorization.k8s.io", "Role", add::<api::rbac::v1::Role>),
    ("scheduling.k8s.io", "PriorityClass", add::<api::scheduling::v1::PriorityClass>),
    ("storage.k8s.io", "CSIDriver", add::<api::storage::v1::CSIDriver>),
    ("storage.k8s.io", "CSINode", add::<api::storage::v1::CSINode>),
    ("storage.k8s.io", "CSIStorageCapacity", add::<api::storage::v1::CSIStorageCapacity>),
    ("storage.k8s.io", "StorageClass", add::<api::storage::v1::StorageClass>),
    ("storage.k8s.io", "VolumeAttachment", add::<api::storage::v1::VolumeAttachment>),
    ("storage.k8s.io", "VolumeAttributesClass", add::<api::storage::v1::VolumeAttributesClass>),
];

/// All schemas that `resources` need, by the names of their definitions.
pub(super) fn schemas(resources: &[&Served], version: Version) -> Map<String, Value> {
    let mut generator = version.settings().into_generator();
    for resource in resources {
        if let Some((_, _, add)) = KINDS.iter().find(|(g, k, _)| *g == resource.group && *k == resource.kind) {
            add(&mut generator);
        }
    }
    add::<ListMeta>(&mut generator);
    add::<ObjectMeta>(&mut generator);
    let mut schemas = generator.take_definitions(true);
    for resource in resources {
        if let Some(custom) = resource.custom() {
            schemas.extend(custom.version.openapi(version == Version::Second));
            continue;
        }
        if let [(_, item), (kind, name)] = definition_name(resource).as_slice() {
            schemas.insert(name.clone(), list(kind, &version.reference(item), version));
        }
    }
    if version == Version::Second {
        // The second version has no way to say "one of".
        for (name, format) in [("api.resource.Quantity", None), ("util.intstr.IntOrString", Some("int-or-string"))] {
            if let Some(schema) = schemas.get_mut(&format!("io.k8s.apimachinery.pkg.{name}")) {
                *schema = json!({"type": "string", "description": schema["description"]});
                if let Some(format) = format {
                    schema["format"] = json!(format);
                }
            }
        }
    }
    schemas
}

/// The schema of a list.
fn list(kind: &str, item: &Value, version: Version) -> Value {
    let metadata = version.reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
    json!({
        "type": "object", "required": ["items"],
        "description": format!("{kind} is a list of {}.", kind.trim_end_matches("List")),
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": metadata,
            "items": {"type": "array", "items": item},
        },
    })
}

/// The definitions of a resource's kind and of the list of it, the kind first; none for what is not built in.
pub(super) fn definition_name(resource: &Served) -> Vec<(String, String)> {
    if let Some(custom) = resource.custom() {
        let (own, list) = custom.version.schema_names();
        return vec![(resource.kind.clone(), own), (resource.list_kind.clone(), list)];
    }
    let Some(package) = package(&resource.group) else { return Vec::new() };
    let name = |kind: &str| (kind.to_owned(), format!("{package}.{}.{kind}", resource.version));
    let mut names = vec![name(&resource.kind)];
    if resource.has_verb("list") {
        names.push(name(&resource.list_kind));
    }
    names
}

fn package(group: &str) -> Option<String> {
    if !KINDS.iter().any(|(own, _, _)| *own == group) {
        return None;
    }
    Some(match group {
        "" => "io.k8s.api.core".to_owned(),
        "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions".to_owned(),
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration".to_owned(),
        group => format!("io.k8s.api.{}", group.split('.').next().unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Catalogue;

    #[test]
    fn every_built_in_kind_has_a_schema_under_its_name() {
        let catalogue = Catalogue::built_in();
        let resources: Vec<&Served> = catalogue.all().iter().collect();
        let schemas = schemas(&resources, Version::Third);
        for resource in resources {
            for (_, name) in definition_name(resource) {
                assert!(schemas.contains_key(&name), "{name}");
            }
        }
    }
}
