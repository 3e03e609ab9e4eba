//! The conversations of `testdata`: one test for each directory.

use super::golden::play;

macro_rules! conversations {
    ($($directory:ident),+ $(,)?) => {
        $(#[test]
        fn $directory() {
            play(stringify!($directory));
        })+

        #[test]
        fn every_directory_is_played() {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
            let mut found: Vec<String> =
                std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            found.sort();
            assert_eq!(found, [$(stringify!($directory)),+]);
        }
    };
}

conversations! {
    autoscaler,
    certificate,
    cluster_role,
    cron_job,
    daemon_set,
    deployment,
    disruption_budget,
    endpoint_slice,
    garbage,
    job,
    load_balancer,
    namespace,
    node_lifecycle,
    per_namespace,
    pod_gc,
    replica_set,
    resource_quota,
    stateful_set,
    storage,
}
