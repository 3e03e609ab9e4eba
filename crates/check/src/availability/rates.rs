//! How often parts fail and how long they stay so: settings, each with where its default comes from.

use serde::Serialize;

/// Hours of a year.
pub const YEAR_H: f64 = 8_766.0;

/// One kind of part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// Its name in settings: `node`.
    pub part: &'static str,
    /// Failures of one part per year.
    pub failures_per_year: f64,
    /// Hours until it works again by itself or by its owner.
    pub repair_hours: f64,
    /// Where the figures come from.
    pub source: &'static str,
}

/// The rates of all kinds of parts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rates {
    /// A pod's processes end.
    pub pod: Rate,
    /// A machine.
    pub node: Rate,
    /// A zone: power, cooling or network of all its machines.
    pub zone: Rate,
    /// A volume with its data.
    pub volume: Rate,
    /// Hours until a person has repaired what the platform does not.
    pub person_hours: f64,
}

impl Default for Rates {
    fn default() -> Self {
        let rate =
            |part, failures_per_year, repair_hours, source| Rate { part, failures_per_year, repair_hours, source };
        Self {
            pod: rate("pod", 12.0, 0.0, "assumed: one crash a month; it heals as fast as predicted"),
            node: rate(
                "node",
                0.56,
                1.0,
                "about 1,000 machine failures in a cluster of 1,800 in its first year (J. Dean, Google I/O 2008); repair assumed",
            ),
            zone: rate(
                "zone",
                1.0,
                6.0,
                "about one power distribution failure per year, 6 hours to come back (J. Dean, Google I/O 2008)",
            ),
            volume: rate("volume", 0.0135, 4.0, "annual drive failure rate 1.35 % (Backblaze, 2024); restore assumed"),
            person_hours: 1.0,
        }
    }
}

/// Why a setting was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "--assume {text}: {what}; write one of node.failures-per-year=0.5, node.repair-hours=1 (pod, node, zone, volume), person.hours=2"
)]
pub struct RateError {
    text: String,
    what: &'static str,
}

impl Rates {
    /// Takes in a setting: `node.failures-per-year=0.5`.
    ///
    /// # Errors
    /// When there is no such setting, or the figure is none.
    pub fn set(&mut self, text: &str) -> Result<(), RateError> {
        let failed = |what| RateError { text: text.to_owned(), what };
        let (name, value) = text.split_once('=').ok_or_else(|| failed("no ="))?;
        let value: f64 = value.trim().parse().map_err(|_| failed("not a number"))?;
        if !value.is_finite() || value < 0.0 {
            return Err(failed("a figure below zero"));
        }
        if name.trim() == "person.hours" {
            self.person_hours = value;
            return Ok(());
        }
        let (part, field) = name.trim().split_once('.').ok_or_else(|| failed("no such setting"))?;
        let all = [&mut self.pod, &mut self.node, &mut self.zone, &mut self.volume];
        let rate = all.into_iter().find(|rate| rate.part == part).ok_or_else(|| failed("no such part"))?;
        match field {
            "failures-per-year" => rate.failures_per_year = value,
            "repair-hours" => rate.repair_hours = value,
            _ => return Err(failed("no such setting")),
        }
        rate.source = "as set";
        Ok(())
    }

    /// All parts.
    pub fn parts(&self) -> [&Rate; 4] {
        [&self.pod, &self.node, &self.zone, &self.volume]
    }
}

impl Rate {
    /// The share of time it is away: `MTTR / (MTBF + MTTR)`.
    pub fn unavailability(&self) -> f64 {
        let down = self.failures_per_year * self.repair_hours;
        down / (YEAR_H + down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_taken_in_or_refused() {
        let mut rates = Rates::default();
        assert_eq!(rates.set("node.failures-per-year=2"), Ok(()));
        assert_eq!(rates.set("person.hours=3"), Ok(()));
        assert!((rates.node.failures_per_year - 2.0).abs() < 1e-12 && (rates.person_hours - 3.0).abs() < 1e-12);
        for wrong in ["node=1", "moon.repair-hours=1", "node.repair-hours=x", "node.repair-hours=-1", "x"] {
            assert!(rates.set(wrong).is_err(), "{wrong}");
        }
    }
}
