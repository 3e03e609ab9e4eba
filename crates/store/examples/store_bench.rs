//! Prints how fast the store is in a directory (the present one if none is named).
use std::path::Path;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let directory = tempfile::tempdir_in(Path::new(&parent))?;
    for row in mainstay_store::bench::run(directory.path()).await? {
        println!("{:44} {:>10.1} {}", row.metric, row.value, row.unit);
    }
    Ok(())
}
