//! Images: from a registry, from an archive, used, listed and removed.
//!
//! <https://kubernetes.io/docs/concepts/containers/images/>,
//! <https://kubernetes.io/docs/tasks/configure-pod-container/pull-image-private-registry/>,
//! <https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/>.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::cluster::{Cluster, text};

/// Builds an image of two layers around busybox and pushes it; prints its digest. The second layer deletes a file of the
/// first; the image runs as a user of its own.
const BUILD: &str = r#"
import base64, gzip, hashlib, io, json, sys, tarfile, urllib.request
busybox, registry, login, greeting = sys.argv[1:5]
def layer(entries):
    out = io.BytesIO()
    archive = tarfile.open(fileobj=out, mode='w', format=tarfile.PAX_FORMAT)
    for name, kind, data, mode in entries:
        entry = tarfile.TarInfo(name); entry.type, entry.mode = kind, mode
        if kind == tarfile.REGTYPE: entry.size = len(data)
        if kind == tarfile.SYMTYPE: entry.linkname = data
        archive.addfile(entry, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    archive.close()
    return out.getvalue()
F, D, L = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE
digest = lambda data: 'sha256:' + hashlib.sha256(data).hexdigest()
names = ['sh', 'sleep', 'echo', 'cat', 'id', 'ls', 'trap']
first = layer([('bin', D, None, 0o755), ('bin/busybox', F, open(busybox, 'rb').read(), 0o755), ('etc', D, None, 0o755),
    ('etc/passwd', F, b'root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n', 0o644), ('etc/group', F, b'web:x:102:\nlogs:x:200:web\n', 0o644),
    ('gone', F, b'', 0o644)] + [('bin/' + name, L, 'busybox', 0o777) for name in names])
second = layer([('.wh.gone', F, b'', 0o644), ('srv', D, None, 0o755), ('srv/hello', F, greeting.encode(), 0o644)])
layers = [gzip.compress(data) for data in (first, second)]
config = json.dumps({'architecture': {'x86_64': 'amd64', 'aarch64': 'arm64'}[__import__('platform').machine()], 'os': 'linux',
    'config': {'User': 'web', 'Env': ['PATH=/bin', 'MOOD=good'], 'Entrypoint': ['/bin/sh', '-c'], 'WorkingDir': '/srv',
        'Cmd': ['id; echo $MOOD $PWD; cat hello; ls /; sleep 1000']},
    'rootfs': {'type': 'layers', 'diff_ids': [digest(first), digest(second)]}}).encode()
about = lambda kind, data: {'mediaType': 'application/vnd.oci.image.' + kind, 'digest': digest(data), 'size': len(data)}
manifest = json.dumps({'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json',
    'config': about('config.v1+json', config), 'layers': [about('layer.v1.tar+gzip', data) for data in layers]}).encode()
def ask(method, path, data=None, kind='application/octet-stream'):
    url = path if path.startswith('http') else 'http://' + registry + path
    request = urllib.request.Request(url, data=data, method=method, headers={'Content-Type': kind})
    if login: request.add_header('Authorization', 'Basic ' + base64.b64encode(login.encode()).decode())
    return urllib.request.urlopen(request)
for blob in layers + [config]:
    place = ask('POST', '/v2/team/app/blobs/uploads/', b'').headers['Location']
    ask('PUT', place + ('&' if '?' in place else '?') + 'digest=' + digest(blob), blob)
ask('PUT', '/v2/team/app/manifests/v1', manifest, 'application/vnd.oci.image.manifest.v1+json')
print(digest(manifest), end='')
"#;

/// A registry on the machine's loopback; it ends with the test.
struct Registry {
    process: Child,
    address: String,
    login: &'static str,
}

impl Registry {
    /// With a login, nobody else is let in. The line is of `htpasswd -B`.
    fn start(directory: &Path, login: Option<(&'static str, &str)>) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: true}}, level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
            directory.join("blobs").display()
        );
        std::fs::create_dir_all(directory).unwrap();
        if let Some((_, line)) = login {
            let file = directory.join("htpasswd");
            std::fs::write(&file, line).unwrap();
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display()));
        }
        let file = directory.join("config.yml");
        std::fs::write(&file, config).unwrap();
        let process = Command::new("docker-registry").arg("serve").arg(&file).stderr(Stdio::null()).spawn().unwrap();
        let registry = Self { process, address, login: login.map_or("", |(login, _)| login) };
        let since = std::time::Instant::now();
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(since.elapsed() < crate::cluster::PATIENCE, "the registry does not start");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        registry
    }

    /// Pushes the image; answers its digest.
    fn push(&self, greeting: &str) -> String {
        let mut python = Command::new("python3");
        let output = python.args(["-c", BUILD, "/bin/busybox", &self.address, self.login, greeting]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pod(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 0, {spec}}}\n"
    )
}

#[test]
fn images_are_pulled_run_as_they_say_exported_imported_and_removed() {
    let cluster = Cluster::up(&[]);
    let registry = Registry::start(&cluster.dir().join("registry"), None);
    let digest = registry.push("hello one\n");
    let image = format!("{}/team/app", registry.address);
    let pods = [
        pod("tag", &format!("containers: [{{name: c, image: '{image}:v1'}}]")),
        pod(
            "digest",
            &format!("containers: [{{name: c, image: '{image}@{digest}', args: ['echo $(MOOD) args; sleep 1000']}}]"),
        ),
        pod(
            "root",
            &format!(
                "securityContext: {{runAsUser: 0}}, containers: [{{name: c, image: '{image}:v1', command: [sh, -c, 'id -u; sleep 1000']}}]"
            ),
        ),
        pod("none", &format!("containers: [{{name: c, image: '{image}:v2'}}]")),
        pod("never", &format!("containers: [{{name: c, image: '{image}:v3', imagePullPolicy: Never}}]")),
        pod("name", "containers: [{name: c, image: 'Not_A_Name'}]"),
    ];
    cluster.apply(&pods.concat());
    cluster.k(&["wait", "--for=condition=Ready", "pod/tag", "pod/digest", "pod/root", "--timeout=60s"]);
    let said = cluster.k(&["logs", "tag"]);
    for words in ["uid=101(web) gid=102(web) groups=200(logs)", "good /srv", "hello one"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("gone"), "{said}");
    assert_eq!(cluster.k(&["logs", "digest"]), "good args\n");
    assert_eq!(cluster.k(&["logs", "root"]), "0\n");
    let status = |pod: &str| cluster.get(&["pod", pod])["status"]["containerStatuses"][0].clone();
    assert_eq!(status("tag")["imageID"], format!("{image}@{digest}"));
    for (pod, reasons) in [
        ("none", &["ErrImagePull", "ImagePullBackOff"][..]),
        ("never", &["ErrImageNeverPull"]),
        ("name", &["InvalidImageName"]),
    ] {
        let reason = || status(pod)["state"]["waiting"]["reason"].as_str().unwrap_or_default().to_owned();
        cluster.wait(&format!("{pod} says why"), || reasons.contains(&reason().as_str()));
    }

    // A name may go as long as the image has another; what is used stays. What is not used can be taken out and put in
    // again, without the registry.
    assert!(cluster.ok(&["image", "ls"]).contains(&image));
    let refused = cluster.mainstay(&["image", "rm", &format!("{image}:v1"), &format!("{image}@{digest}")]);
    assert!(!refused.status.success() && text(&refused).contains("in use"), "{}", text(&refused));
    let archive = cluster.dir().join("app.tar");
    cluster.ok(&["image", "export", &format!("{image}@{digest}"), archive.to_str().unwrap()]);
    cluster.k(&["delete", "pod", "--all", "--wait"]);
    let remove = || cluster.mainstay(&["image", "rm", &format!("{image}@{digest}")]).status.success();
    cluster.wait("the images are free", remove);
    drop(registry);
    cluster.ok(&["image", "import", archive.to_str().unwrap(), "--name", "example.test/app:2"]);
    cluster.apply(&pod("again", "containers: [{name: c, image: 'example.test/app:2'}]"));
    cluster.k(&["wait", "--for=condition=Ready", "pod/again", "--timeout=60s"]);
}

#[test]
fn a_registry_that_wants_a_login_gets_the_one_of_the_pull_secret() {
    let cluster = Cluster::up(&[]);
    let line = htpasswd();
    let registry = Registry::start(&cluster.dir().join("registry"), Some(("ann:secret", &line)));
    registry.push("hello\n");
    let image = format!("{}/team/app:v1", registry.address);
    cluster.k(&[
        "create",
        "secret",
        "docker-registry",
        "key",
        "--docker-username=ann",
        "--docker-password=secret",
        &format!("--docker-server={}", registry.address),
    ]);
    let of =
        |name, more| pod(name, &format!("{more}containers: [{{name: c, image: '{image}', imagePullPolicy: Always}}]"));
    cluster.apply(&(of("with", "imagePullSecrets: [{name: key}], ") + &of("without", "")));
    cluster.k(&["wait", "--for=condition=Ready", "pod/with", "--timeout=60s"]);
    let message = || {
        cluster.get(&["pod", "without"])["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string()
    };
    cluster.wait("the other is refused", || message().contains("access denied"));
}

/// A line of a password file, made by Python's `crypt`, as Debian has no `htpasswd` without Apache.
fn htpasswd() -> String {
    let program = "import crypt, sys; print('ann:' + crypt.crypt('secret', '$2b$05$' + 'abcdefghijklmnopqrstuu'))";
    let output = Command::new("python3").args(["-W", "ignore", "-c", program]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8_lossy(&output.stdout).replace("$2b$", "$2y$")
}
