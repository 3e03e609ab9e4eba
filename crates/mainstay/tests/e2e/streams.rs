//! `kubectl exec`, `attach`, `run -i`, `cp`, `port-forward`, `logs` and `proxy`: in the ways that today's and yesterday's
//! clients speak.
//!
//! <https://kubernetes.io/docs/tasks/debug/debug-application/get-shell-running-container/>,
//! <https://kubernetes.io/docs/tasks/access-application-cluster/port-forward-access-application-cluster/>.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::cluster::{Cluster, text};

const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: http, image: mainstay.dev/host, command: [python3, -m, http.server, '8080'], workingDir: /tmp,
     ports: [{containerPort: 8080}]}
  - {name: cat, image: mainstay.dev/host, command: [cat], stdin: true}
  - {name: sh, image: mainstay.dev/host, command: [sh], stdin: true, tty: true}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

/// Environments in which kubectl speaks WebSocket, and SPDY.
const SPEECHES: [&[(&str, &str)]; 2] =
    [&[], &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")]];

fn cluster() -> Cluster {
    let cluster = Cluster::up(&[]);
    cluster.apply(WEB);
    cluster.k(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    cluster
}

/// Runs a command with this input, which then ends.
fn fed(mut command: Command, input: &[u8]) -> std::process::Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        // Who ends early does not take everything.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

#[test]
fn commands_and_copies() {
    let cluster = cluster();
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (there, back) = (cluster.dir().join("there"), cluster.dir().join("back"));
    std::fs::write(&there, &large).unwrap();
    for speech in SPEECHES {
        let mut command = cluster.kubectl(&["exec", "-i", "web", "-c", "http", "--", "cat"]);
        command.envs(speech.iter().copied());
        assert!(fed(command, &large).stdout == large, "what goes in comes out, {speech:?}");
        let mut command =
            cluster.kubectl(&["exec", "web", "-c", "http", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
        let output = command.envs(speech.iter().copied()).output().unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"out\n"[..], Some(3)));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("err\n"), "{output:?}");
        let mut command = cluster.on_terminal("exec -it web -c http -- sh -c 'stty size; tty'");
        let said = text(&command.envs(speech.iter().copied()).output().unwrap());
        assert!(said.contains("/dev/pts/"), "{said}");
        for (from, to) in [(there.to_str().unwrap(), "web:/tmp/large"), ("web:/tmp/large", back.to_str().unwrap())] {
            let mut command = cluster.kubectl(&["cp", "-c", "http", from, to]);
            assert!(command.envs(speech.iter().copied()).status().unwrap().success());
        }
        assert!(std::fs::read(&back).unwrap() == large);
    }
    let refused = cluster.kubectl(&["exec", "web", "-c", "none", "--", "true"]).output().unwrap();
    assert!(text(&refused).contains("container none is not valid for pod web"), "{refused:?}");
}

#[test]
fn attached_to_the_program_itself() {
    let cluster = cluster();
    for speech in SPEECHES {
        let mut command = cluster.kubectl(&["attach", "-i", "web", "-c", "cat"]);
        command.envs(speech.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stdin = child.stdin.take().unwrap();
        for word in ["one", "two"] {
            writeln!(stdin, "{word}").unwrap();
            assert_eq!(lines.next().unwrap().unwrap(), word);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // An agent that dies does not take the input with it.
    cluster.kill(&format!("{}", cluster.get(&["pod", "web"])["spec"]["nodeName"].as_str().unwrap()));
    cluster.wait("the program answers again", || {
        let mut command = cluster.on_terminal("attach -it web -c sh");
        text(&fed_slowly(&mut command, "echo a$((1 + 1))b; tty\n")).contains("a2b")
    });
    assert_eq!(cluster.get(&["pod", "web"])["status"]["containerStatuses"][2]["restartCount"], 0);

    let run = ["run", "once", "--image=mainstay.dev/host", "-i", "--rm", "--restart=Never", "--command", "--", "sh"];
    let output = fed(cluster.kubectl(&run), b"echo from-run; exit 5\n");
    let said = text(&output);
    assert!(said.contains("from-run") && said.contains("deleted") && output.status.code() == Some(5), "{said}");
    let done =
        cluster.kubectl(&["run", "d", "--image=mainstay.dev/host", "--restart=Never", "--command", "--", "true"]);
    assert!({ done }.status().unwrap().success());
    cluster.k(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/d", "--timeout=60s"]);
    let refused = text(&cluster.kubectl(&["exec", "d", "--", "true"]).output().unwrap());
    assert!(refused.contains("completed pod; current phase is Succeeded"), "{refused}");
}

/// Types something when the program had time to come up, and ends.
fn fed_slowly(command: &mut Command, line: &str) -> std::process::Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let typed = line.to_owned();
    let typist = std::thread::spawn(move || {
        for _ in 0..20 {
            if stdin.write_all(typed.as_bytes()).is_err() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    typist.join().unwrap();
    let _ = child.kill();
    child.wait_with_output().unwrap()
}

/// Bytes of a page, which Python's server ends with the connection.
fn fetched(address: &str, path: &str) -> usize {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
    answer.len() - head - 4
}

#[test]
fn ports_are_forwarded() {
    let cluster = cluster();
    let large: Vec<u8> = vec![7; 2_000_000];
    std::fs::write(cluster.dir().join("large"), &large).unwrap();
    cluster.k(&["cp", "-c", "http", cluster.dir().join("large").to_str().unwrap(), "web:/tmp/large"]);
    for speech in SPEECHES {
        for target in ["pod/web", "service/web"] {
            let remote = if target == "pod/web" { ":8080" } else { ":80" };
            let mut command = cluster.kubectl(&["port-forward", "--address=127.0.0.1", target, remote]);
            let mut child = command.envs(speech.iter().copied()).stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            let address = first.split(' ').find(|word| word.starts_with("127.0.0.1:")).unwrap().to_owned();
            let fetchers: Vec<_> = (0..4)
                .map(|_| {
                    let address = address.clone();
                    std::thread::spawn(move || fetched(&address, "/large"))
                })
                .collect();
            for fetcher in fetchers {
                assert_eq!(fetcher.join().unwrap(), large.len(), "{target} {speech:?}");
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    let page = cluster.k(&["get", "--raw", "/api/v1/namespaces/default/services/web:80/proxy/large"]);
    assert_eq!(page.len(), large.len());
    assert_eq!(cluster.k(&["get", "--raw", "/api/v1/nodes/node-1/proxy/healthz"]), "ok");
    assert!(cluster.k(&["get", "--raw", "/api/v1/namespaces/default/pods/web:8080/proxy/"]).contains("large"));
}

#[test]
fn logs_in_every_way() {
    let cluster = Cluster::up(&[]);
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: a, image: mainstay.dev/host, command: [sh, -c, 'for i in 1 2 3; do echo line $i; done; sleep 1; exit 1']}
  - {name: b, image: mainstay.dev/host, command: [sh, -c, 'echo other; exec sleep 1000']}
---
apiVersion: v1
kind: Pod
metadata: {name: stuck}
spec: {containers: [{name: c, image: 'example.com/none:1'}]}
";
    cluster.apply(pod);
    cluster.wait("the container was restarted", || {
        let pod = cluster.get(&["pod", "talker"]);
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.iter().any(|status| status["name"] == "a" && status["restartCount"].as_i64() > Some(0))
    });
    let logs = |args: &[&str]| cluster.k(&[&["logs"], args].concat());
    assert_eq!(logs(&["talker", "-c", "a", "--previous"]), "line 1\nline 2\nline 3\n");
    assert_eq!(logs(&["talker", "-c", "a", "--tail=2"]), "line 2\nline 3\n");
    assert_eq!(logs(&["talker", "-c", "a", "--limit-bytes=9"]), "line 1\nli");
    assert_eq!(logs(&["talker", "-c", "a", "--since-time=2999-01-01T00:00:00Z"]), "");
    assert_eq!(logs(&["talker", "-c", "b", "--since=1h"]), "other\n");
    assert!(logs(&["talker", "-c", "b", "--timestamps"]).starts_with("20"));
    let all = logs(&["-l", "app=talker", "--all-containers", "--prefix", "--tail=1"]);
    assert!(all.contains("[pod/talker/a] line 3") && all.contains("[pod/talker/b] other"), "{all}");
    let refusal = |args: &[&str]| text(&cluster.kubectl(&[&["logs"], args].concat()).output().unwrap());
    assert!(
        refusal(&["talker", "-c", "b", "-p"])
            .contains("previous terminated container \"b\" in pod \"talker\" not found")
    );
    assert!(refusal(&["talker", "-c", "none"]).contains("none"));
    cluster.wait("the image is refused", || refusal(&["stuck"]).contains("trying and failing to pull image"));
    let raw = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/default/pods/talker/log?container=b&tailLines=-1"]);
    assert!(text(&{ raw }.output().unwrap()).contains("must be greater than or equal to 0"));
}
