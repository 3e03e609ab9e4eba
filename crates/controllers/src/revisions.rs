//! ControllerRevisions: the templates a StatefulSet or DaemonSet has had, which `kubectl rollout history` and `undo` read.
//!
//! A revision holds, as a strategic merge patch that replaces the template, what `kubectl rollout undo` applies. A template
//! that comes back gets the highest number again instead of a second object.
//!
//! Source: <https://kubernetes.io/docs/tasks/manage-daemon/rollback-daemon-set/>.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use mainstay_informer::Kind;
use mainstay_model::meta::pod_template_hash;
use serde_json::{Value, json};

use crate::action::{Action, Object, Plan, Target};
use crate::object::{Labels, annotation, controller_reference, is_terminating, name, namespace, uid};

/// The label with the template's hash, on revisions and pods.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";
/// Revisions kept when the owner does not say.
const KEPT_DEFAULT: i32 = 10;
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// An owner's revisions, oldest first.
pub(crate) struct History {
    all: Vec<Arc<ControllerRevision>>,
}

/// What became of the search for the present template's revision.
pub(crate) enum Present {
    /// It is there.
    Found(Arc<ControllerRevision>),
    /// It is created by the plan; the next look sees it.
    Created,
    /// Its name belongs to another template: the owner's collision count must grow.
    Collision,
}

impl History {
    /// From the owner's revisions in any order.
    pub(crate) fn new(mut all: Vec<Arc<ControllerRevision>>) -> Self {
        all.sort_by_key(|revision| (revision.revision.unwrap_or(0), name(&**revision).to_owned()));
        Self { all }
    }

    /// The revision of a name.
    pub(crate) fn get(&self, wanted: &str) -> Option<&Arc<ControllerRevision>> {
        self.all.iter().find(|revision| name(&***revision) == wanted)
    }

    /// Finds the revision of the template, or has it created, and sees that its number is the highest.
    pub(crate) fn present<O: Kind>(
        &self,
        owner: &O,
        template: &PodTemplateSpec,
        collisions: Option<i32>,
        plan: &mut Plan,
    ) -> Present {
        let data = data(template);
        let highest = self.all.last().map_or(0, |last| last.revision.unwrap_or(0));
        if let Some(found) = self.all.iter().rev().find(|revision| revision.data.0 == data) {
            if found.revision.unwrap_or(0) < highest {
                let patch = json!({"metadata": {"uid": uid(&**found)}, "revision": highest + 1});
                plan.push(Action::Patch(Target::of(&**found), patch));
            }
            return Present::Found(found.clone());
        }
        let hash = pod_template_hash(&data, collisions.and_then(|count| u32::try_from(count).ok()));
        let own_name = format!("{}-{hash}", name(owner));
        if self.get(&own_name).is_some() {
            return Present::Collision;
        }
        let mut labels: Labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), hash);
        let cause = annotation(owner, CHANGE_CAUSE).map(|cause| [(CHANGE_CAUSE.to_owned(), cause.to_owned())].into());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(own_name),
                namespace: Some(namespace(owner).to_owned()),
                labels: Some(labels),
                annotations: cause,
                owner_references: Some(vec![controller_reference(owner)]),
                ..ObjectMeta::default()
            },
            data: RawExtension(data),
            revision: Some(highest + 1),
        };
        plan.push(Action::Create(Object::of(&revision)));
        Present::Created
    }

    /// Deletes what is beyond the limit and not in use, oldest first.
    pub(crate) fn trim(&self, limit: Option<i32>, is_in_use: impl Fn(&ControllerRevision) -> bool, plan: &mut Plan) {
        let kept = usize::try_from(limit.unwrap_or(KEPT_DEFAULT)).unwrap_or(0);
        let idle: Vec<_> = self.all.iter().filter(|revision| !is_in_use(revision)).collect();
        let surplus = idle.len().saturating_sub(kept);
        let gone = idle.into_iter().take(surplus).filter(|revision| !is_terminating(&***revision));
        plan.actions.extend(gone.map(|revision| Action::delete(Target::of(&**revision))));
    }
}

/// The hash label of a revision.
pub(crate) fn hash_of(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).map_or("", String::as_str)
}

/// The template a revision holds; `None` when it cannot be read.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    serde_json::from_value(revision.data.0.pointer("/spec/template")?.clone()).ok()
}

fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}
