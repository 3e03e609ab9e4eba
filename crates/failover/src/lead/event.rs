//! What people and programs are told, one line each.

use std::io::Write as _;

use serde::Serialize;

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As sentences.
    Text,
    /// As JSON objects.
    Json,
}

/// Something worth telling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Event {
    /// Another one runs it.
    Standby {
        /// Who; empty when nobody does.
        holder: String,
    },
    /// The Lease is ours.
    Leading {
        /// The fencing token: grows with each new holder.
        epoch: u64,
    },
    /// The API did not answer, or refused.
    Unreachable {
        /// What it said.
        reason: String,
    },
    /// The Lease is not ours any more; what ran is killed.
    Lost {
        /// Why.
        reason: String,
    },
    /// Told to stop: so is the program.
    Stopping,
    /// The program or a hook ended.
    Ended {
        /// Which.
        stage: &'static str,
        /// Exit code; 128 and the signal's number for a signal.
        code: i32,
    },
    /// The Lease is free for others.
    Released,
}

impl Event {
    fn sentence(&self) -> String {
        match self {
            Self::Standby { holder } if holder.is_empty() => "standing by; nobody holds the lease".to_owned(),
            Self::Standby { holder } => format!("standing by; {holder} holds the lease"),
            Self::Leading { epoch } => format!("leading, epoch {epoch}"),
            Self::Unreachable { reason } => format!("cannot use the lease: {reason}"),
            Self::Lost { reason } => format!("lost the lease: {reason}; what ran is killed"),
            Self::Stopping => "told to stop; stopping the program".to_owned(),
            Self::Ended { stage, code } => format!("the {stage} ended with code {code}"),
            Self::Released => "released the lease".to_owned(),
        }
    }

    /// Writes the event to standard error; a line that cannot be written is nobody's loss.
    pub fn tell(&self, format: Format, lease: &str, identity: &str) {
        let line = match format {
            Format::Text => format!("mainstay lead: {lease}: {}", self.sentence()),
            Format::Json => self.line(lease, identity),
        };
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    fn line(&self, lease: &str, identity: &str) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            lease: &'a str,
            identity: &'a str,
            #[serde(flatten)]
            event: &'a Event,
        }
        let time = jiff::Timestamp::now().to_string();
        serde_json::to_string(&Line { time, lease, identity, event: self }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_event_is_one_flat_object() {
        let line = Event::Leading { epoch: 7 }.line("default/job", "a");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value["event"].as_str(), value["epoch"].as_u64()), (Some("leading"), Some(7)));
        assert_eq!((value["lease"].as_str(), value["identity"].as_str()), (Some("default/job"), Some("a")));
    }
}
