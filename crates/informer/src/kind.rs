//! Kinds that are not built in, as [`Cache`](crate::Cache) and `kube::Api` want them.

/// Makes a namespaced kind of a type with a field `metadata`: a custom resource, or the part of one that matters.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// #[derive(Debug, Clone, Serialize, Deserialize)]
/// struct Backup {
///     metadata: kube::core::ObjectMeta,
/// }
/// mainstay_informer::namespaced_kind!(Backup, "mainstay.dev", "v1alpha1", "Backup", "backups");
/// ```
#[macro_export]
macro_rules! namespaced_kind {
    ($type:ty, $group:literal, $version:literal, $kind:literal, $plural:literal) => {
        impl ::kube::Resource for $type {
            type DynamicType = ();
            type Scope = ::kube::core::NamespaceResourceScope;

            fn kind((): &()) -> ::std::borrow::Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> ::std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> ::std::borrow::Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> ::std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &::kube::core::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ::kube::core::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
