//! Where the time of a change of primaries went: when the new one came to each step, told in one line of its log.

use std::fmt::Write as _;

use crate::core::{Stage, Tenure};

/// The steps of one change, with the time of each in milliseconds of the steward's clock.
#[derive(Debug, Default)]
pub(super) struct Timeline(Vec<(&'static str, u64)>);

impl Timeline {
    /// Notes where the member is; the whole line once it has a replica, and everything before is forgotten.
    pub(super) fn note(
        &mut self,
        stage: Stage,
        tenure: Tenure,
        open: bool,
        replica: bool,
        now_ms: u64,
    ) -> Option<String> {
        let step = match (tenure, stage) {
            (Tenure::Vacant, Stage::Still) => "receives nothing",
            (Tenure::Vacant, _) => "saw the Lease vacant",
            (Tenure::Mine, Stage::Primary) if open && replica => "has a replica",
            (Tenure::Mine, Stage::Primary) if open => "opened its epoch",
            (Tenure::Mine, Stage::Primary) => "accepts writes",
            (Tenure::Mine, _) => "holds the Lease",
            _ => {
                self.0.clear();
                return None;
            }
        };
        if self.0.iter().any(|known| known.0 == step) {
            return None;
        }
        self.0.push((step, now_ms));
        // A member that was primary all the time has nothing to tell.
        let rose = self.0.first().is_some_and(|first| first.0 != step && !first.0.starts_with("opened"));
        (step == "has a replica" && rose).then(|| self.text())
    }

    fn text(&self) -> String {
        let from = self.0.first().map_or(0, |first| first.1);
        let mut text = String::new();
        for (index, (step, at)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            // Writing to a text cannot fail.
            let _ = write!(text, "{comma}{step} at {} ms", at - from);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line() {
        let mut timeline = Timeline::default();
        let seen = [
            (Stage::Following, Tenure::Open, true, 900),
            (Stage::Following, Tenure::Vacant, true, 1000),
            (Stage::Still, Tenure::Vacant, true, 1030),
            (Stage::Still, Tenure::Vacant, true, 1035),
            (Stage::Still, Tenure::Mine, false, 1050),
            (Stage::Primary, Tenure::Mine, false, 1120),
            (Stage::Primary, Tenure::Mine, true, 1130),
        ];
        for (stage, tenure, open, now) in seen {
            assert_eq!(timeline.note(stage, tenure, open, false, now), None);
        }
        assert_eq!(
            timeline.note(Stage::Primary, Tenure::Mine, true, true, 1180).as_deref(),
            Some(
                "saw the Lease vacant at 0 ms, receives nothing at 30 ms, holds the Lease at 50 ms, accepts writes at 120 ms, \
                 opened its epoch at 130 ms, has a replica at 180 ms"
            )
        );
        assert_eq!(timeline.note(Stage::Primary, Tenure::Mine, true, true, 1200), None, "once");
    }
}
