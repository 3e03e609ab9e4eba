//! The load alone, for benches: `load URL RATE SECONDS` prints its figures as JSON.

use std::time::Duration;

use mainstay_drill::load::measure;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().collect();
    let [_, url, rate, seconds] = words.as_slice() else { return Err("usage: load URL RATE SECONDS".into()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let length = Duration::from_secs_f64(seconds.parse()?);
    let figures = runtime.block_on(measure::run(url, rate.parse()?, length))?;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
