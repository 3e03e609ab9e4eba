//! `mainstay gateway top`: a table of what goes through a gateway now, drawn again every second.
//!
//! The gateway's admin tells sums; what is shown is the difference between two looks.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mainstay_gateway::ask_admin;
use serde_json::Value;

use crate::AnyError;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Draws until it is interrupted; once, if that is asked for.
///
/// # Errors
/// Nobody answers at the admin's address.
pub async fn run(admin: SocketAddr, once: bool) -> Result<(), AnyError> {
    let look = || async move {
        let text = ask_admin(admin, "GET", "/stats").await;
        let text = text.map_err(|error| format!("no gateway's admin answers at {admin}: {error}"))?;
        Ok::<_, AnyError>((serde_json::from_str::<Value>(&text)?, Instant::now()))
    };
    let (mut before, mut since) = look().await?;
    loop {
        tokio::time::sleep(PAUSE).await;
        let (now, at) = look().await?;
        let shown = table(&before, &now, (at - since).as_secs_f64());
        // From the top left corner, with what is left of the table before erased.
        let redraw = if std::io::stdout().is_terminal() && !once { "\x1b[H\x1b[J" } else { "" };
        print!("{redraw}{shown}");
        std::io::stdout().flush()?;
        if once {
            return Ok(());
        }
        (before, since) = (now, at);
    }
}

/// A line for each rule, the busiest first.
fn table(before: &Value, now: &Value, seconds: f64) -> String {
    let rules = |stats: &Value| stats["rules"].as_array().cloned().unwrap_or_default();
    let bounds: Vec<f64> =
        now["boundsUs"].as_array().into_iter().flatten().filter_map(|it| Some(it.as_f64()? / 1000.0)).collect();
    let old = rules(before);
    let mut lines: Vec<(f64, String)> = rules(now)
        .iter()
        .map(|rule| {
            let known = old.iter().find(|it| it["name"] == rule["name"]).unwrap_or(&Value::Null);
            let rate = |field: &str| {
                (rule[field].as_f64().unwrap_or(0.0) - known[field].as_f64().unwrap_or(0.0)).max(0.0) / seconds
            };
            let counts: Vec<u64> = rule["buckets"]
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
                .map(|(at, count)| {
                    count.as_u64().unwrap_or(0).saturating_sub(known["buckets"][at].as_u64().unwrap_or(0))
                })
                .collect();
            let requests = rate("requests");
            let line = format!(
                "{requests:>10.1} {:>8.1} {:>8.1} {:>8.1} {:>9} {:>9}  {}",
                rate("clientErrors"),
                rate("serverErrors"),
                rate("retries"),
                quantile(&counts, &bounds, 0.5),
                quantile(&counts, &bounds, 0.99),
                rule["name"].as_str().unwrap_or_default()
            );
            (requests, line)
        })
        .collect();
    lines.sort_by(|a, b| b.0.total_cmp(&a.0));
    let head = format!(
        "{} connections\n{:>10} {:>8} {:>8} {:>8} {:>9} {:>9}  RULE\n",
        now["connections"], "REQ/S", "4XX/S", "5XX/S", "RETRY/S", "P50 MS", "P99 MS"
    );
    lines.into_iter().fold(head, |text, (_, line)| text + &line + "\n")
}

/// The upper bound, in milliseconds, of the bucket in which a share of the counts ends.
fn quantile(counts: &[u64], bounds_ms: &[f64], share: f64) -> String {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return "-".to_owned();
    }
    let wanted = (total as f64 * share).ceil() as u64;
    let mut sum = 0;
    let bucket = counts.iter().position(|count| {
        sum += count;
        sum >= wanted
    });
    match bucket.and_then(|at| bounds_ms.get(at)) {
        Some(bound) => format!("<{bound:.1}"),
        None => bounds_ms.last().map_or_else(|| "-".to_owned(), |last| format!(">{last:.0}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rates_are_differences_and_the_busiest_rule_is_first() {
        let stats = |a: u64, b: u64| {
            json!({"connections": 3, "boundsUs": [500, 1000], "rules": [
                {"name": "a", "requests": a, "clientErrors": 0, "serverErrors": 0, "retries": 0, "buckets": [a, 0, 0]},
                {"name": "b", "requests": b, "clientErrors": 0, "serverErrors": b, "retries": 0, "buckets": [0, 0, b]},
            ]})
        };
        let shown = table(&stats(100, 0), &stats(110, 40), 2.0);
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["3", "connections"]);
        assert_eq!(lines[2], ["20.0", "0.0", "20.0", "0.0", ">1", ">1", "b"]);
        assert_eq!(lines[3], ["5.0", "0.0", "0.0", "0.0", "<0.5", "<0.5", "a"]);
    }
}
