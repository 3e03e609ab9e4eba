//! Properties of the algorithms.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

struct Fake(Vec<(u32, u32, u64)>);

impl Hosts for Fake {
    fn weight(&self, host: usize) -> u32 {
        self.0[host].0
    }
    fn in_flight(&self, host: usize) -> u32 {
        self.0[host].1
    }
    fn latency_ns(&self, host: usize) -> u64 {
        self.0[host].2
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("10.0.0.{number}:80")).collect()
}

fn random(seed: u64) -> impl FnMut(u32) -> u32 {
    let mut rng = fastrand::Rng::with_seed(seed);
    move |below| rng.u32(..below)
}

fn weights(count: usize) -> Vec<u32> {
    vec![1; count]
}

const ALL: [Algorithm; 7] = [
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::LeastRequest,
    Algorithm::PeakEwma,
    Algorithm::RingHash,
    Algorithm::Maglev,
    Algorithm::SourceHash,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn only_what_is_available_and_untried_is_chosen(
        count in 1_usize..12, available in any::<u16>(), tried in any::<u16>(), seed in any::<u64>(), hash in any::<u64>()
    ) {
        let of = |mask: u16| (0..count).filter(|host| mask & (1 << host) != 0).collect::<Vec<_>>();
        let (available, tried) = (of(available), of(tried));
        let hosts = Fake(vec![(1, 0, 0); count]);
        for algorithm in ALL {
            let mut balancer = Balancer::new(algorithm, &names(count), &weights(count));
            let picked = balancer.pick(&hosts, &available, &tried, hash, &mut random(seed));
            prop_assert_eq!(picked.is_some(), !available.is_empty());
            if let Some(host) = picked {
                prop_assert!(available.contains(&host));
                prop_assert!(!tried.contains(&host) || available.iter().all(|it| tried.contains(it)));
            }
        }
    }

    #[test]
    fn weighted_round_robin_is_exact_over_a_round(weights in prop::collection::vec(0_u32..9, 1..8)) {
        let sum: u32 = weights.iter().sum();
        prop_assume!(sum > 0);
        let hosts = Fake(weights.iter().map(|weight| (*weight, 0, 0)).collect());
        let available: Vec<usize> = (0..weights.len()).filter(|host| weights[*host] > 0).collect();
        let mut balancer = Balancer::new(Algorithm::RoundRobin, &names(weights.len()), &weights);
        let mut seen = vec![0; weights.len()];
        let equal = available.iter().all(|host| weights[*host] == weights[available[0]]);
        for _ in 0..sum {
            seen[balancer.pick(&hosts, &available, &[], 0, &mut |_| 0).unwrap()] += 1;
        }
        prop_assert!(equal || seen == weights, "{seen:?} {weights:?}");
    }

    #[test]
    fn consistent_hashes_move_only_the_keys_of_who_left(count in 3_usize..12, gone in 0_usize..12, seed in any::<u64>()) {
        let gone = gone % count;
        let hosts = Fake(vec![(1, 0, 0); count]);
        let all: Vec<usize> = (0..count).collect();
        let rest: Vec<usize> = all.iter().copied().filter(|host| *host != gone).collect();
        for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
            let mut balancer = Balancer::new(algorithm, &names(count), &weights(count));
            for key in 0..200_u64 {
                let hash = crate::table::hash::mix(seed ^ key);
                let before = balancer.pick(&hosts, &all, &[], hash, &mut |_| 0).unwrap();
                let after = balancer.pick(&hosts, &rest, &[], hash, &mut |_| 0).unwrap();
                prop_assert!(before == after || before == gone, "{algorithm:?}");
            }
        }
    }
}

#[test]
fn a_new_endpoint_takes_about_its_share_of_a_rings_keys() {
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        let hosts = Fake(vec![(1, 0, 0); 10]);
        let mut small = Balancer::new(algorithm, &names(9), &weights(9));
        let mut large = Balancer::new(algorithm, &names(10), &weights(10));
        let mut moved = 0;
        for key in 0..10_000_u64 {
            let hash = crate::table::hash::mix(key);
            let before = small.pick(&hosts, &(0..9).collect::<Vec<_>>(), &[], hash, &mut |_| 0).unwrap();
            let after = large.pick(&hosts, &(0..10).collect::<Vec<_>>(), &[], hash, &mut |_| 0).unwrap();
            moved += u32::from(before != after);
        }
        assert!((700..1500).contains(&moved), "{algorithm:?}: {moved} of 10000 keys moved, a tenth should");
    }
}

#[test]
fn hashes_spread_by_weight() {
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev, Algorithm::Random] {
        let weights = [1, 2, 3, 0];
        let hosts = Fake(weights.iter().map(|weight| (*weight, 0, 0)).collect());
        let mut balancer = Balancer::new(algorithm, &names(4), &weights);
        let mut random = random(7);
        let mut seen = [0_u32; 4];
        for key in 0..60_000_u64 {
            seen[balancer.pick(&hosts, &[0, 1, 2], &[], crate::table::hash::mix(key), &mut random).unwrap()] += 1;
        }
        for host in 0..3 {
            let wanted = 10_000 * weights[host];
            assert!(seen[host].abs_diff(wanted) < wanted / 5, "{algorithm:?} {seen:?}");
        }
    }
}

#[test]
fn the_less_loaded_of_two_is_chosen() {
    let hosts = Fake(vec![(1, 9, 1_000_000), (1, 1, 1_000_000), (1, 1, 50_000_000)]);
    let mut least = Balancer::new(Algorithm::LeastRequest, &names(3), &weights(3));
    let mut ewma = Balancer::new(Algorithm::PeakEwma, &names(3), &weights(3));
    let mut random = random(3);
    for _ in 0..100 {
        assert_ne!(least.pick(&hosts, &[0, 1], &[], 0, &mut random), Some(0));
        assert_ne!(ewma.pick(&hosts, &[1, 2], &[], 0, &mut random), Some(2));
    }
}

#[test]
fn the_average_jumps_up_and_decays_down() {
    assert_eq!(peak_ewma(100, 500, 1, 1000), 500);
    assert_eq!(peak_ewma(500, 100, 0, 1000), 500);
    let later = peak_ewma(500, 100, 1000, 1000);
    assert!((240..260).contains(&later), "{later}");
}
