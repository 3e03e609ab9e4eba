//! How fast the pure core chooses nodes, as JSON: for `cargo xtask bench scheduler`.

use mainstay_scheduler::bench::{Load, run};

fn main() {
    let speed = |constrained: bool| {
        let (took, bound) = run(Load { nodes: 5_000, pods: 10_000, constrained });
        assert_eq!(bound, 10_000, "every pod finds a node");
        bound as f64 / took.as_secs_f64()
    };
    println!("{{\"plain\": {}, \"constrained\": {}}}", speed(false), speed(true));
}
