//! What a Database becomes: the objects its members need. A pure function; random bytes are an argument.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::kind::names::{
    CUT, DATA, DATABASE, PASSWORD, ROLE, RUNS_ONCE, SECRETS, STEWARD_PORT, STEWARD_SECRET, USERS,
};
use super::kind::{Database, EngineName, UserSpec};

/// The image of members when none is named.
const IMAGE: &str = "mainstay.dev/host";
/// Seconds a member has to hand over and stop: the last checkpoint of a large database takes its time.
const GRACE_SECONDS: u32 = 120;

/// One object, and how it is brought about.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wanted {
    /// Applied: fields of others stay.
    Applied(Value),
    /// Made unless it is there, and never changed: passwords.
    Once(Value),
}

impl Wanted {
    pub(super) fn object(&self) -> &Value {
        match self {
            Self::Applied(object) | Self::Once(object) => object,
        }
    }
}

/// All objects of a Database, in the order in which they are needed.
pub(super) fn wanted(database: &Database, password: &mut dyn FnMut() -> String) -> Vec<Wanted> {
    let plan = Planned::new(database);
    let mut all = vec![Wanted::Once(plan.secret(password))];
    for user in &database.spec.users {
        all.push(Wanted::Once(plan.user_secret(user, &password())));
    }
    all.extend(plan.account().map(Wanted::Applied));
    all.extend(plan.services().map(Wanted::Applied));
    all.extend([plan.budget(), plan.stateful_set()].map(Wanted::Applied));
    all
}

struct Planned<'a> {
    database: &'a Database,
    name: &'a str,
    namespace: &'a str,
    engine: EngineName,
}

impl<'a> Planned<'a> {
    fn new(database: &'a Database) -> Self {
        Self {
            database,
            name: database.metadata.name.as_deref().unwrap_or_default(),
            namespace: database.metadata.namespace.as_deref().unwrap_or("default"),
            engine: database.spec.engine,
        }
    }

    fn labels(&self) -> Value {
        json!({
            DATABASE: self.name,
            "app.kubernetes.io/name": self.engine.as_str(),
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/managed-by": "mainstay",
        })
    }

    /// An object of this Database; `more` are its fields beside the metadata.
    fn object(&self, api_version: &str, kind: &str, name: &str, more: Value) -> Value {
        let mut object = more;
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        object["metadata"] = json!({
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(),
            "ownerReferences": [{
                "apiVersion": "mainstay.dev/v1alpha1",
                "kind": "Database",
                "name": self.name,
                "uid": self.database.metadata.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        });
        object
    }

    /// The superuser's password and where to use it; and the stewards' secret.
    fn secret(&self, password: &mut dyn FnMut() -> String) -> Value {
        let (user, database) = match self.engine {
            EngineName::Postgres => ("postgres", "postgres"),
            EngineName::Redis => ("default", ""),
            EngineName::Mysql => ("root", ""),
        };
        let mut data = self.access(user, database, &password());
        data[STEWARD_SECRET] = json!(password());
        self.object("v1", "Secret", self.name, json!({"type": "Opaque", "stringData": data}))
    }

    /// The same for a user of people's.
    fn user_secret(&self, user: &UserSpec, password: &str) -> Value {
        let data = self.access(&user.name, user.database(), password);
        self.object("v1", "Secret", &self.user_secret_name(user), json!({"type": "Opaque", "stringData": data}))
    }

    fn user_secret_name(&self, user: &UserSpec) -> String {
        format!("{}-{}", self.name, user.name.replace('_', "-"))
    }

    /// How a user reaches the primary, in the form clients and frameworks read.
    fn access(&self, user: &str, database: &str, password: &str) -> Value {
        let host = format!("{}-primary.{}.svc", self.name, self.namespace);
        let port = self.engine.port().to_string();
        let uri = match (self.engine, user) {
            (EngineName::Postgres, _) => format!("postgresql://{user}:{password}@{host}:{port}/{database}"),
            (EngineName::Redis, "default") => format!("redis://:{password}@{host}:{port}"),
            (EngineName::Redis, _) => format!("redis://{user}:{password}@{host}:{port}"),
            (EngineName::Mysql, _) if database.is_empty() => format!("mysql://{user}:{password}@{host}:{port}"),
            (EngineName::Mysql, _) => format!("mysql://{user}:{password}@{host}:{port}/{database}"),
        };
        json!({"username": user, PASSWORD: password, "host": host, "port": port, "uri": uri})
    }

    /// The members' account and what it may do: their Lease, the labels of their pods.
    fn account(&self) -> [Value; 3] {
        let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
        let name = format!("{}-member", self.name);
        let rules = json!([
            rule("coordination.k8s.io", &["leases"], &["get", "create", "update"]),
            rule("", &["pods"], &["get", "patch"]),
        ]);
        let group = "rbac.authorization.k8s.io";
        let binding = json!({
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": self.namespace}],
        });
        let version = format!("{group}/v1");
        [
            self.object("v1", "ServiceAccount", &name, json!({})),
            self.object(&version, "Role", &name, json!({"rules": rules})),
            self.object(&version, "RoleBinding", &name, binding),
        ]
    }

    /// All members, whoever they are (headless); the one that accepts writes; those that only read.
    fn services(&self) -> [Value; 3] {
        let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"});
        let database = port(self.engine.as_str(), self.engine.port());
        let all = json!({
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": {DATABASE: self.name},
            "ports": [database, port("steward", STEWARD_PORT)],
        });
        // Who is primary its steward says, once it accepts writes; probes come later and know less.
        let role = |role: &str| {
            let early = role == "primary";
            json!({"selector": {DATABASE: self.name, ROLE: role}, "ports": [database], "publishNotReadyAddresses": early})
        };
        let service = |suffix: &str, spec: Value| {
            let mut object = self.object("v1", "Service", &format!("{}{suffix}", self.name), json!({"spec": spec}));
            if suffix == "-primary" {
                object["metadata"]["annotations"] = json!({CUT: "true"});
            }
            object
        };
        [service("", all), service("-primary", role("primary")), service("-replicas", role("replica"))]
    }

    /// At most one member is taken away at a time.
    fn budget(&self) -> Value {
        let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": {DATABASE: self.name}}});
        self.object("policy/v1", "PodDisruptionBudget", self.name, json!({"spec": spec}))
    }

    fn stateful_set(&self) -> Value {
        let spec = &self.database.spec;
        let mut claim = json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": spec.storage.size}},
        });
        if let Some(class) = &spec.storage.class_name {
            claim["storageClassName"] = json!(class);
        }
        let body = json!({"spec": {
            "serviceName": self.name,
            "replicas": spec.replicas,
            // Who may start is decided by the members: a database whose first member is lost must come up, too.
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {DATABASE: self.name}},
            "template": self.template(),
            "volumeClaimTemplates": [{
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "data", "labels": {DATABASE: self.name}},
                "spec": claim,
            }],
        }});
        self.object("apps/v1", "StatefulSet", self.name, body)
    }

    fn template(&self) -> Value {
        let spec = &self.database.spec;
        let template = &spec.pod_template;
        let mut labels = self.labels();
        for (key, value) in &template.labels {
            labels[key] = json!(value);
        }
        let mut pod = json!({
            "serviceAccountName": format!("{}-member", self.name),
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "affinity": {"podAntiAffinity": self.anti_affinity()},
            "containers": [self.container()],
            "volumes": [
                {"name": "system", "secret": {"secretName": self.name, "defaultMode": 0o400}},
            ],
        });
        if !spec.users.is_empty() {
            let source = |user: &UserSpec| json!({"secret": {"name": self.user_secret_name(user), "items": [{"key": PASSWORD, "path": user.name}]}});
            let sources: Vec<Value> = spec.users.iter().map(source).collect();
            push(
                &mut pod["volumes"],
                json!({"name": "users", "projected": {"sources": sources, "defaultMode": 0o400}}),
            );
            let mount = json!({"name": "users", "mountPath": USERS, "readOnly": true});
            push(&mut pod["containers"][0]["volumeMounts"], mount);
        }
        if !template.node_selector.is_empty() {
            pod["nodeSelector"] = json!(template.node_selector);
        }
        if !template.tolerations.is_empty() {
            pod["tolerations"] = json!(template.tolerations);
        }
        if let Some(class) = &template.priority_class_name {
            pod["priorityClassName"] = json!(class);
        }
        // A node that lost the API would stop pods that must not run twice; who may write the members' own Lease settles better.
        let mut annotations = json!({RUNS_ONCE: "false"});
        for (key, value) in &template.annotations {
            annotations[key] = json!(value);
        }
        json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": pod})
    }

    fn container(&self) -> Value {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let mut container = json!({
            "name": "database",
            "image": self.database.spec.image.as_deref().unwrap_or(IMAGE),
            "command": ["sh", "-c", self.command()],
            "env": [
                field("POD_NAME", "metadata.name"),
                field("POD_NAMESPACE", "metadata.namespace"),
            ],
            "ports": [
                {"name": self.engine.as_str(), "containerPort": self.engine.port(), "protocol": "TCP"},
                {"name": "steward", "containerPort": STEWARD_PORT, "protocol": "TCP"},
            ],
            // No liveness probe: the steward is process 1, and watches the server better than a probe could.
            "readinessProbe": {
                "httpGet": {"path": "/readyz", "port": STEWARD_PORT},
                "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 3,
            },
            "volumeMounts": [
                {"name": "data", "mountPath": DATA},
                {"name": "system", "mountPath": SECRETS, "readOnly": true},
            ],
        });
        // Without any request it would get processor time only when nobody else wants it, and lose its Lease.
        container["resources"] = match &self.database.spec.resources {
            Value::Null => json!({"requests": {"cpu": "250m", "memory": "128Mi"}}),
            own => own.clone(),
        };
        container
    }

    /// Starts the steward in place of the shell. What depends on the member or the image is found out there: which member
    /// this is, where the programs are, and which number the server's user has.
    fn command(&self) -> String {
        let spec = &self.database.spec;
        let mut script = "set --\n".to_owned();
        let mut line = |text: String| {
            // Writing to a text cannot fail.
            let _ = writeln!(script, "{text}");
        };
        for number in 0..spec.replicas {
            let (member, port) = (format!("{}-{number}", self.name), self.engine.port());
            let host = format!("{member}.{}", self.name);
            line(format!(
                "[ \"$POD_NAME\" = {member} ] || set -- \"$@\" --peer {member}={host}:{STEWARD_PORT},{host}:{port}"
            ));
            let priority = spec.priority(&member);
            line(format!("[ \"$POD_NAME\" != {member} ] || set -- \"$@\" --priority {priority}"));
        }
        for (name, value) in self.parameters() {
            line(format!("set -- \"$@\" --parameter {}", quoted(&format!("{name}={value}"))));
        }
        if let Some(from) = &spec.backup.from {
            line(format!("set -- \"$@\" --restore {}", quoted(&from.command)));
            if let Some(until) = &from.until {
                line(format!("set -- \"$@\" --restore-until {}", quoted(until)));
            }
        }
        for user in &spec.users {
            line(format!("set -- \"$@\" --own {}={}", user.name, user.database()));
        }
        if !spec.synchronous.strict {
            line("set -- \"$@\" --available".to_owned());
        }
        let user = self.engine.as_str();
        let programs = match (self.engine, &spec.version) {
            (EngineName::Redis, _) => "\"$(dirname \"$(command -v redis-server)\")\"".to_owned(),
            (EngineName::Mysql, _) => "\"$(dirname \"$(command -v mariadbd || echo /usr/sbin/mariadbd)\")\"".to_owned(),
            (EngineName::Postgres, None) => "\"$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)\"".to_owned(),
            (EngineName::Postgres, Some(version)) => {
                format!("/usr/lib/postgresql/{}/bin", version.split('.').next().unwrap_or_default())
            }
        };
        let milliseconds = |text: Result<Duration, String>, default: u128| text.map_or(default, |it| it.as_millis());
        line(format!(
            "exec mainstay steward --engine {user} --member \"$POD_NAME\" --namespace \"$POD_NAMESPACE\" --lease {} --data {DATA}/data \\\n  \
             --programs {programs} --user \"$(id -u {user}):$(id -g {user})\" --port {} \\\n  \
             --password-file {SECRETS}/{PASSWORD} --secret-file {SECRETS}/{STEWARD_SECRET} \\\n  \
             --synchronous {} --lag-max {} --ttl-ms {} --renewal-ms {} \"$@\"",
            self.name,
            self.engine.port(),
            spec.synchronous_members(),
            spec.lag_max,
            milliseconds(spec.ttl(), 1500),
            milliseconds(spec.renewal(), 300),
        ));
        script
    }

    fn parameters(&self) -> BTreeMap<&str, &str> {
        let spec = &self.database.spec;
        let mut all: BTreeMap<&str, &str> =
            spec.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if let Some(archive) = &spec.backup.archive {
            all.extend([("archive_mode", "on"), ("archive_command", archive.as_str())]);
        }
        if let Some(restore) = &spec.backup.restore {
            all.insert("restore_command", restore);
        }
        all
    }

    /// Members apart from each other, over nodes and over zones.
    fn anti_affinity(&self) -> Value {
        let spread = &self.database.spec.spread;
        let (mut hard, mut soft) = (Vec::new(), Vec::new());
        let wishes = [(&spread.nodes, "kubernetes.io/hostname"), (&spread.zones, "topology.kubernetes.io/zone")];
        for (wish, key) in wishes {
            let term = json!({"labelSelector": {"matchLabels": {DATABASE: self.name}}, "topologyKey": key});
            match wish.as_str() {
                "hard" => hard.push(term),
                "soft" => soft.push(json!({"weight": 100, "podAffinityTerm": term})),
                _ => {}
            }
        }
        json!({
            "requiredDuringSchedulingIgnoredDuringExecution": hard,
            "preferredDuringSchedulingIgnoredDuringExecution": soft,
        })
    }
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

/// One word for a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
