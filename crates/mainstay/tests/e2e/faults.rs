//! Things broken on purpose, and what a user of the service sees meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, http_get, is_ready, ready};

/// A client that asks the shop's front all the time; each request once, on a fresh connection.
pub struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<Duration>>,
}

impl Load {
    pub fn start(address: String) -> Self {
        let (stop, asked, failed) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
        let (s, a, f): (_, Arc<AtomicUsize>, Arc<AtomicUsize>) =
            (stop.clone(), Arc::clone(&asked), Arc::clone(&failed));
        let thread = std::thread::spawn(move || {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !s.load(Ordering::Relaxed) {
                a.fetch_add(1, Ordering::Relaxed);
                if http_get(&address, "/whoami").is_some() {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                } else {
                    f.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            longest.max(last.elapsed())
        });
        Self { stop, asked, failed, thread: Some(thread) }
    }

    /// Requests asked and failed, and the longest time without an answer.
    pub fn end(mut self) -> (usize, usize, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let gap = self.thread.take().unwrap().join().unwrap();
        (self.asked.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed), gap)
    }
}

#[test]
fn a_killed_pod_is_restarted_and_the_service_goes_on() {
    let cluster = Cluster::up(&["examples/shop"]);
    let front = cluster.pods("shop").into_iter().find(|p| p["metadata"]["labels"]["app"] == "front").unwrap();
    let name = front["metadata"]["name"].as_str().unwrap().to_owned();
    let load = Load::start(cluster.front());
    cluster.ok(&["fault", "kill", &format!("pod/shop/{name}")]);
    let restarted = || {
        let pod = cluster.get(&["pod", "-n", "shop", &name]);
        pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(&pod)
    };
    cluster.wait("the pod is restarted", restarted);
    let (asked, failed, gap) = load.end();
    println!("pod killed: {failed} of {asked} requests failed, longest gap {} ms", gap.as_millis());
    // A third of the requests may hit the dead pod until its endpoint is withdrawn.
    assert!(gap < Duration::from_secs(2), "the service was away for {gap:?}");
}

#[test]
fn a_killed_node_is_replaced_and_comes_back() {
    let cluster = Cluster::up(&["examples/shop"]);
    let load = Load::start(cluster.front());
    cluster.ok(&["fault", "kill", "node/node-2"]);
    assert!(cluster.ok(&["fault", "ls"]).contains("node/node-2"));
    let not_ready = cluster.wait("the node is NotReady", || cluster.k(&["get", "node", "node-2"]).contains("NotReady"));
    let elsewhere = cluster.wait("its pods run elsewhere", || {
        let pods = cluster.pods("shop");
        ready(&pods) == 9 && pods.iter().filter(|p| is_ready(p)).all(|pod| pod["spec"]["nodeName"] != "node-2")
    });
    let (asked, failed, gap) = load.end();
    println!(
        "node killed: NotReady after {} ms, 9 Ready elsewhere {} ms later; {failed} of {asked} requests failed, longest gap {} ms",
        not_ready.as_millis(),
        elsewhere.as_millis(),
        gap.as_millis()
    );
    assert!(gap < Duration::from_secs(5), "the service was away for {gap:?}");
    cluster.ok(&["fault", "heal", "node/node-2"]);
    cluster.wait("the node is Ready again", || cluster.k(&["get", "node", "node-2"]).contains(" Ready "));
    cluster.wait("its old pods are gone", || cluster.pods("shop").len() == 9);
    cluster.wait("all is well", || cluster.mainstay(&["status"]).status.success());
}

#[test]
fn a_paused_and_an_isolated_node_are_noticed_and_heal() {
    let cluster = Cluster::up(&["examples/shop"]);
    for verb in ["pause", "isolate"] {
        cluster.ok(&["fault", verb, "zone/zone-c"]);
        cluster.wait("the node is NotReady", || cluster.k(&["get", "node", "node-3"]).contains("NotReady"));
        cluster.wait("nine are Ready elsewhere", || ready(&cluster.pods("shop")) == 9);
        assert!(http_get(&cluster.front(), "/whoami").is_some());
        cluster.ok(&["fault", "heal"]);
        cluster.wait("the node is Ready again", || cluster.k(&["get", "node", "node-3"]).contains(" Ready "));
        cluster.wait("its old pods are gone", || cluster.pods("shop").len() == 9);
    }
    // A pod that is cut off or frozen fails its probes and comes back when healed.
    let pod = cluster.pods("shop").into_iter().find(|p| p["metadata"]["labels"]["app"] == "cart").unwrap();
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    for verb in ["pause", "isolate"] {
        cluster.ok(&["fault", verb, &format!("pod/{name}")]);
        cluster.wait("the pod is not Ready", || !is_ready(&cluster.get(&["pod", "-n", "shop", &name])));
        cluster.ok(&["fault", "heal", &format!("pod/{name}")]);
        cluster.wait("the pod is Ready again", || is_ready(&cluster.get(&["pod", "-n", "shop", &name])));
    }
    assert!(cluster.ok(&["fault", "ls"]).contains("no faults"));
}
