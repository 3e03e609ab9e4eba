//! Counters and histograms: one set per core and route, rule or endpoint, added up when somebody looks.
//!
//! A core is the only writer of its set, so that counting is a load and a store on a cache line of its own; no lock, no
//! shared line, no read-modify-write.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A counter with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Counts; only the owning core may.
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The count.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Buckets: up to 64 µs, 128 µs, ... 67 s, and above.
const BUCKETS: usize = 22;
/// The first bound, in microseconds.
const FIRST_US: u64 = 64;

/// The upper bounds of all buckets but the last, in microseconds.
pub(crate) fn bounds_us() -> [u64; BUCKETS - 1] {
    std::array::from_fn(|index| FIRST_US << index)
}

/// Durations by powers of two.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_ns: Counter,
}

impl Histogram {
    /// Takes in a duration.
    pub(crate) fn note(&self, took: Duration) {
        let us = took.as_micros() as u64;
        let bucket = (u64::BITS - (us.saturating_sub(1) / FIRST_US).leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].add(1);
        self.sum_ns.add(took.as_nanos() as u64);
    }
}

/// A histogram added up over cores.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sum {
    pub(crate) buckets: [u64; BUCKETS],
    sum_ns: u64,
}

impl Sum {
    /// Adds a core's.
    pub(crate) fn add(&mut self, histogram: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += bucket.get();
        }
        self.sum_ns += histogram.sum_ns.get();
    }

    /// Writes it as Prometheus reads it.
    pub(crate) fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut count = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket;
            if index + 1 < BUCKETS {
                let bound = (FIRST_US << index) as f64 / 1e6;
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum_ns as f64 / 1e9);
        let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
    }
}

/// A table of counters: its fields, and the names under which they are shown.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident => $metric:literal $labels:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: Counter,)*
            /// Time to the response's head.
            pub(crate) duration: Histogram,
        }

        impl $name {
            /// Metric, extra labels and value of each counter.
            pub(crate) fn all(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$(($metric, $labels, self.$field.get())),*]
            }
        }
    };
}

counters! {
    /// What one core counts of a rule.
    RuleMetrics {
        informational => "requests_total" "code=\"1xx\"",
        success => "requests_total" "code=\"2xx\"",
        redirection => "requests_total" "code=\"3xx\"",
        client_error => "requests_total" "code=\"4xx\"",
        server_error => "requests_total" "code=\"5xx\"",
        retries => "retries_total" "kind=\"retry\"",
        hedges => "retries_total" "kind=\"hedge\"",
        limited => "refused_total" "reason=\"rate\"",
        overloaded => "refused_total" "reason=\"concurrency\"",
        denied => "refused_total" "reason=\"access\"",
        open_circuit => "refused_total" "reason=\"circuit\"",
        degraded => "degraded_total" "by=\"policy\"",
        cache_hits => "cache_total" "result=\"hit\"",
        cache_misses => "cache_total" "result=\"miss\"",
        mirrored => "mirrored_total" "by=\"filter\"",
    }
}

counters! {
    /// What one core counts of an endpoint.
    HostMetrics {
        good => "endpoint_requests_total" "outcome=\"good\"",
        bad => "endpoint_requests_total" "outcome=\"bad\"",
        refused => "endpoint_requests_total" "outcome=\"refused\"",
        stalled => "endpoint_requests_total" "outcome=\"stalled\"",
        connects => "endpoint_connections_total" "by=\"gateway\"",
        ejections => "endpoint_ejections_total" "by=\"traffic\"",
    }
}

impl RuleMetrics {
    /// Counts an answer.
    pub(crate) fn answered(&self, status: http::StatusCode, took: Duration) {
        let class = match status.as_u16() / 100 {
            1 => &self.informational,
            2 => &self.success,
            3 => &self.redirection,
            4 => &self.client_error,
            _ => &self.server_error,
        };
        class.add(1);
        self.duration.note(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_land_in_their_bucket() {
        let histogram = Histogram::default();
        for us in [0, 64, 65, 128, 129, 200_000_000] {
            histogram.note(Duration::from_micros(us));
        }
        let mut sum = Sum::default();
        sum.add(&histogram);
        assert_eq!((sum.buckets[0], sum.buckets[1], sum.buckets[2], sum.buckets[BUCKETS - 1]), (2, 2, 1, 1));
        let mut text = String::new();
        sum.write(&mut text, "d", "a=\"b\"");
        assert!(
            text.contains("d_bucket{a=\"b\",le=\"0.000064\"} 2\n") && text.contains("d_count{a=\"b\"} 6\n"),
            "{text}"
        );
    }
}
