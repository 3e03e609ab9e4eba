//! What a controller decides: a [`Plan`] of [`Action`]s, as data.
//!
//! A plan's actions are carried out in order; neighbouring creations go out together, and so do neighbouring deletions.
//! The first failure ends the plan: the next look at the world decides again.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use mainstay_informer::{Kind, ObjectKey};
use mainstay_model::resource::{self, Resource};
use serde::Serialize;
use serde_json::Value;

/// The time a plan is made for.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Wall clock: only for what is written into objects and for delays counted in seconds since such a time.
    pub wall: Timestamp,
    /// Monotonic clock, since the controllers started: for judging who is alive.
    pub monotonic: Duration,
}

/// How earlier attempts at the same key went.
#[derive(Debug, Clone, Default)]
pub struct Attempt {
    /// Failures in a row.
    pub failures: u32,
    /// The API server's last refusal, in its words.
    pub error: Option<String>,
}

/// Which object an action is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub resource: &'static Resource,
    /// Namespace and name.
    pub key: ObjectKey,
    /// The uid it must have; without one any object of that name.
    pub uid: Option<String>,
}

impl Target {
    /// The target that is this very object.
    pub fn of<K: Kind>(object: &K) -> Self {
        let uid = object.meta().uid.clone();
        Self { resource: resource::known(&K::kind(&())), key: ObjectKey::of(object), uid }
    }

    /// The URL path of the object, or of a subresource of it.
    pub fn path(&self, subresource: Option<&str>) -> String {
        let path = self.resource.path(Some(&self.key.namespace), Some(&self.key.name));
        subresource.map_or_else(|| path.clone(), |subresource| format!("{path}/{subresource}"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.resource.kind, self.key)
    }
}

/// An object to write.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Which one; the name is the `generateName` while it has none.
    pub target: Target,
    /// As JSON.
    pub value: Value,
}

impl Object {
    /// From a typed object.
    pub fn of<K: Kind + Serialize>(object: &K) -> Self {
        let mut target = Target::of(object);
        if target.key.name.is_empty() {
            target.key.name = object.meta().generate_name.clone().unwrap_or_default();
        }
        // Kubernetes types hold nothing that cannot be JSON.
        Self { target, value: serde_json::to_value(object).unwrap_or_default() }
    }
}

/// Who else goes when an owner goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// The dependants afterwards.
    Background,
    /// The dependants first.
    Foreground,
}

impl Propagation {
    /// The word of `DeleteOptions`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
        }
    }
}

/// Something to tell people about an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// About what.
    pub regarding: ObjectReference,
    /// `Warning` rather than `Normal`.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// POST.
    Create(Object),
    /// PUT; the object's `resourceVersion` guards against overwriting.
    Replace(Object),
    /// PUT of `status`, guarded in the same way.
    ReplaceStatus(Object),
    /// PUT of `approval` of a certificate request.
    Approve(Object),
    /// PATCH of the `scale` of any object that has one, guarded by nothing: the last one rules.
    Scale(Target, i32),
    /// Merge patch of metadata or spec; guarded by what `metadata` in the patch says.
    Patch(Target, Value),
    /// DELETE, guarded by the target's uid.
    Delete {
        /// Which object.
        target: Target,
        /// Seconds it may take to stop; the object's own when absent.
        grace_seconds: Option<u32>,
        /// Its dependants.
        propagation: Propagation,
    },
    /// DELETE with the object's own grace period, guarded by its revision, too: what was decided about it holds for no other.
    DeleteSame(Target, String),
    /// DELETE of all objects of a kind in a namespace.
    DeleteAll(&'static Resource, String),
    /// The rest waits until there is no object of the kind left in the namespace.
    ExpectNone(&'static Resource, String),
    /// The rest is done only if the API server, too, says that this object (of this uid) does not exist.
    ExpectGone(Target),
    /// The rest is done only if the API server, too, has the object at this revision.
    ExpectSame(Target, String),
    /// PUT of a namespace's `finalize`.
    Finalize(Object),
    /// An Event; it is never a reason for failure.
    Note(Note),
}

impl Action {
    /// A background deletion with the object's own grace period.
    pub fn delete(target: Target) -> Self {
        Self::Delete { target, grace_seconds: None, propagation: Propagation::Background }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(object) => write!(f, "create {}", object.target),
            Self::Replace(object) => write!(f, "replace {}", object.target),
            Self::ReplaceStatus(object) => write!(f, "status {}", object.target),
            Self::Approve(object) => write!(f, "approve {}", object.target),
            Self::Scale(target, replicas) => write!(f, "scale {target} to {replicas}"),
            Self::Patch(target, patch) => write!(f, "patch {target} {patch}"),
            Self::Delete { target, grace_seconds: Some(0), .. } => write!(f, "delete {target} now"),
            Self::Delete { target, propagation: Propagation::Foreground, .. } => {
                write!(f, "delete {target} foreground")
            }
            Self::Delete { target, .. } => write!(f, "delete {target}"),
            Self::DeleteSame(target, _) => write!(f, "delete same {target}"),
            Self::DeleteAll(resource, namespace) => write!(f, "delete all {} in {namespace}", resource.plural),
            Self::ExpectNone(resource, namespace) => write!(f, "expect no {} in {namespace}", resource.plural),
            Self::ExpectGone(target) => write!(f, "expect gone {target}"),
            Self::ExpectSame(target, _) => write!(f, "expect same {target}"),
            Self::Finalize(object) => write!(f, "finalize {}", object.target),
            Self::Note(note) => write!(f, "note {}: {}", note.reason, note.message),
        }
    }
}

/// What to do about one key, and why.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// Look again after this time even if nothing changes.
    pub requeue_after: Option<Duration>,
    /// Why it does this, or waits; for the log.
    pub why: String,
}

impl Plan {
    /// Nothing to do.
    pub fn nothing(why: impl Into<String>) -> Self {
        Self { why: why.into(), ..Self::default() }
    }

    /// Adds an action.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Asks for another look after `delay`, or sooner if that was asked for already.
    pub fn look_again(&mut self, delay: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(delay, |earlier| earlier.min(delay)));
    }
}
