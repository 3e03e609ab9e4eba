//! `mainstay down`: ends an instance; its data stays.

use std::time::Duration;

use crate::cli::DataDir;
use crate::drill::resource::ROLE as DRILL;
use crate::instance::Instance;
use crate::up::processes;
use crate::up::supervisor::{self, SuperviseError};

/// How long the supervisor may take to take everything down itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `mainstay down`.
///
/// # Errors
/// When there is no instance or something of it does not let itself be removed.
pub fn run(args: &DataDir) -> Result<(), SuperviseError> {
    let instance = Instance::load(&args.data_dir)?;
    // A drill that runs undoes what it has broken while there is still somebody to undo it with.
    if let Some(pid) = processes::find(&instance, DRILL) {
        processes::end(pid, PATIENCE);
    }
    if processes::is_supervised(&instance)
        && let Some(pid) = processes::find(&instance, "supervisor")
    {
        processes::end(pid, PATIENCE);
    }
    // Again, or for the first time if the supervisor was killed before.
    supervisor::take_down(&instance)?;
    println!("mainstay is down; the data stays in {}", instance.data_dir.display());
    Ok(())
}
