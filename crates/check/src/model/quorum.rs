//! How many members of a set must live for it to serve, and to have lost nothing: by annotation, or by what is known of the
//! program.
//!
//! The arithmetic is here alone, and tested for every size. Sources stand beside each row of [`KNOWN`].

use serde::Serialize;
use serde_json::Value;

use mainstay_model::meta;

/// The annotation of a workload: `majority`, `all`, `one`, `primary`, or a number.
pub const QUORUM: &str = "check.mainstay.dev/quorum";
/// The annotation of a workload with a primary: seconds until another member has taken over by itself.
pub const FAILOVER: &str = "check.mainstay.dev/failover-seconds";

/// How many must live.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// More than half.
    Majority,
    /// Every one.
    All,
    /// So many.
    AtLeast(usize),
    /// The first; when it dies another takes over after so many seconds, or never.
    Primary(Option<f64>),
}

impl Rule {
    /// From the annotation's text.
    pub fn parse(text: &str, failover_s: Option<f64>) -> Option<Self> {
        Some(match text.trim() {
            "majority" => Self::Majority,
            "all" => Self::All,
            "one" | "any" => Self::AtLeast(1),
            "primary" => Self::Primary(failover_s),
            number => Self::AtLeast(number.parse().ok().filter(|number| *number > 0)?),
        })
    }

    /// Members that must live, of so many.
    pub fn needed(self, members: usize) -> usize {
        match self {
            Self::Majority => members / 2 + 1,
            Self::All => members,
            Self::AtLeast(number) => number,
            Self::Primary(_) => 1,
        }
    }

    /// Whether what was acknowledged is still there when the copies of `lost` of `members` are gone. With a majority it is
    /// on as many copies as are needed; elsewhere the last copy is taken to have it.
    pub fn keeps_data(self, members: usize, lost: usize) -> bool {
        match self {
            Self::Majority => lost < self.needed(members),
            Self::All | Self::AtLeast(_) | Self::Primary(_) => lost < members,
        }
    }

    /// As people say it: `majority (2 of 3)`.
    pub fn shown(self, members: usize) -> String {
        match self {
            Self::Majority => format!("majority, {} of {members}", self.needed(members)),
            Self::All => format!("all {members}"),
            Self::AtLeast(number) => format!("{number} of {members}"),
            Self::Primary(None) => "its primary, the first member; no other takes over by itself".to_owned(),
            Self::Primary(Some(seconds)) => format!("a primary; another takes over in {seconds} s"),
        }
    }
}

/// The rule of one workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quorum {
    /// The rule.
    pub rule: Rule,
    /// Why it is held to be this: the annotation, or the program's name.
    pub source: String,
}

/// A program whose members agree among each other.
#[derive(Debug)]
pub struct Known {
    /// What people call it.
    pub name: &'static str,
    /// A word of its image's or program's name.
    words: &'static [&'static str],
    /// How many must live.
    pub rule: Rule,
    /// Whether it keeps data even when no volume is given.
    pub keeps: bool,
}

const fn known(name: &'static str, words: &'static [&'static str], rule: Rule, keeps: bool) -> Known {
    Known { name, words, rule, keeps }
}

/// What is known of programs.
pub const KNOWN: &[Known] = &[
    // https://etcd.io/docs/v3.6/faq/#what-is-failure-tolerance
    known("etcd", &["etcd"], Rule::Majority, true),
    // https://zookeeper.apache.org/doc/current/zookeeperAdmin.html#sc_zkMulitServerSetup
    known("ZooKeeper", &["zookeeper", "zkserver.sh"], Rule::Majority, true),
    // https://developer.hashicorp.com/consul/docs/concept/consensus#deployment_table
    known("Consul", &["consul"], Rule::Majority, true),
    // https://docs.nats.io/running-a-nats-service/configuration/clustering/jetstream_clustering#raft
    known("NATS", &["nats", "nats-server"], Rule::Majority, true),
    // https://kafka.apache.org/documentation/#kraft_deployment
    known("Kafka", &["kafka", "redpanda", "kafka-server-start.sh"], Rule::Majority, true),
    // https://www.rabbitmq.com/docs/quorum-queues#replication-factor
    known("RabbitMQ", &["rabbitmq", "rabbitmq-server"], Rule::Majority, true),
    // https://www.mongodb.com/docs/manual/core/replica-set-elections/
    known("MongoDB", &["mongo", "mongodb", "mongod"], Rule::Majority, true),
    // https://www.elastic.co/guide/en/elasticsearch/reference/current/modules-discovery-quorums.html
    known("Elasticsearch", &["elasticsearch", "opensearch"], Rule::Majority, true),
    // https://www.cockroachlabs.com/docs/stable/architecture/replication-layer
    known("CockroachDB", &["cockroach", "cockroachdb"], Rule::Majority, true),
    // https://clickhouse.com/docs/guides/sre/keeper/clickhouse-keeper
    known("ClickHouse Keeper", &["clickhouse-keeper"], Rule::Majority, true),
    // https://min.io/docs/minio/linux/operations/concepts/erasure-coding.html (write quorum)
    known("MinIO", &["minio"], Rule::Majority, true),
    // https://cassandra.apache.org/doc/latest/cassandra/architecture/dynamo.html (QUORUM)
    known("Cassandra", &["cassandra", "scylla"], Rule::Majority, true),
    // https://clickhouse.com/docs/engines/table-engines/mergetree-family/replication (any replica takes writes)
    known("ClickHouse", &["clickhouse", "clickhouse-server"], Rule::AtLeast(1), true),
    // https://www.postgresql.org/docs/current/warm-standby-failover.html (PostgreSQL itself does not fail over)
    known("PostgreSQL", &["postgres", "postgresql", "postgis", "timescaledb"], Rule::Primary(None), true),
    // https://dev.mysql.com/doc/refman/8.4/en/replication.html
    known("MySQL", &["mysql", "mysqld", "mariadb", "mariadbd", "percona"], Rule::Primary(None), true),
    // https://redis.io/docs/latest/operate/oss_and_stack/management/replication/
    known("Redis", &["redis", "redis-server", "valkey", "valkey-server"], Rule::Primary(None), false),
];

/// Words that mean a helper of the program, not the program.
const HELPERS: &[&str] =
    &["exporter", "operator", "proxy", "backup", "ui", "client", "admin", "sentinel", "commander", "init", "tools"];

/// What a pod template runs, if it is known.
pub fn known_program(pod_spec: &Value) -> Option<&'static Known> {
    meta::list_at(pod_spec, "containers").iter().find_map(|container| {
        let image = container["image"].as_str().unwrap_or_default();
        let image = image.rsplit('/').next().unwrap_or(image).split([':', '@']).next().unwrap_or_default();
        let command = ["command", "args"].iter().flat_map(|field| meta::list_at(container, field)).take(3);
        let programs = command.filter_map(Value::as_str).map(|word| word.rsplit('/').next().unwrap_or(word));
        std::iter::once(image).chain(programs).find_map(by_name)
    })
}

fn by_name(name: &str) -> Option<&'static Known> {
    let parts = || name.split(['-', '_']);
    if parts().any(|part| HELPERS.contains(&part)) {
        return None;
    }
    let exact = KNOWN.iter().find(|known| known.words.contains(&name));
    exact.or_else(|| KNOWN.iter().find(|known| parts().any(|part| known.words.contains(&part))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn two_members_are_no_better_than_one() {
        for members in 1..=9 {
            let needed = Rule::Majority.needed(members);
            assert!(2 * needed > members && 2 * (needed - 1) <= members);
            assert!(Rule::Majority.keeps_data(members, members - needed), "what may die loses nothing");
        }
        assert_eq!(Rule::Majority.needed(2), 2);
        assert!(!Rule::Majority.keeps_data(3, 2) && Rule::AtLeast(1).keeps_data(3, 2));
        assert_eq!(Rule::parse("3", None), Some(Rule::AtLeast(3)));
        assert_eq!((Rule::parse("0", None), Rule::parse("most", None)), (None, None));
        assert_eq!(Rule::parse("primary", Some(2.0)), Some(Rule::Primary(Some(2.0))));
    }

    #[test]
    fn programs_are_known_by_image_or_command() {
        let name = |image: &str, command: &[&str]| {
            known_program(&json!({"containers": [{"image": image, "command": command}]})).map(|known| known.name)
        };
        assert_eq!(name("bitnami/postgresql:17", &[]), Some("PostgreSQL"));
        assert_eq!(name("quay.io/coreos/etcd:v3.6.1", &[]), Some("etcd"));
        assert_eq!(name("confluentinc/cp-zookeeper", &[]), Some("ZooKeeper"));
        assert_eq!(name("clickhouse/clickhouse-keeper:25", &[]), Some("ClickHouse Keeper"));
        assert_eq!(name("mainstay.dev/host", &["/usr/bin/redis-server", "--save"]), Some("Redis"));
        assert_eq!(name("oliver006/redis_exporter:v1", &[]), None);
        assert_eq!(name("shop/cart:1", &["cart"]), None);
    }
}
