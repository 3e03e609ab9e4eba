//! Bans of client addresses after too many bad requests.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::table::settings::BanSettings;

/// Addresses remembered at most; beyond it the oldest count is forgotten.
const CLIENTS_MAX: usize = 65_536;

/// Counts bad requests per client.
#[derive(Debug, Default)]
pub(crate) struct Bans(Mutex<HashMap<IpAddr, Record>>);

#[derive(Debug, Clone, Copy)]
struct Record {
    since: Instant,
    bad: u32,
    banned_until: Option<Instant>,
}

/// Whether a client is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BanVerdict {
    /// Come in.
    Welcome,
    /// Not for so long.
    Banned(Duration),
}

impl Bans {
    /// Whether a client is banned at `now`.
    pub(crate) fn verdict(&self, client: IpAddr, now: Instant) -> BanVerdict {
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match records.get(&client).and_then(|record| record.banned_until) {
            Some(until) if until > now => BanVerdict::Banned(until - now),
            _ => BanVerdict::Welcome,
        }
    }

    /// Notes a bad request; the `after`-th within `period` bans.
    pub(crate) fn bad_request(&self, settings: &BanSettings, client: IpAddr, now: Instant) {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() >= CLIENTS_MAX && !records.contains_key(&client) {
            records.retain(|_, record| {
                record.banned_until.is_some_and(|until| until > now) || now - record.since < settings.period
            });
            if records.len() >= CLIENTS_MAX
                && let Some(oldest) = records.iter().min_by_key(|(_, record)| record.since).map(|(client, _)| *client)
            {
                records.remove(&oldest);
            }
        }
        let record = records.entry(client).or_insert(Record { since: now, bad: 0, banned_until: None });
        if now.duration_since(record.since) >= settings.period {
            *record = Record { since: now, bad: 0, banned_until: record.banned_until };
        }
        record.bad += 1;
        if record.bad >= settings.after {
            *record = Record { since: now, bad: 0, banned_until: Some(now + settings.time) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_bad_request_bans_for_the_time_set() {
        let settings = BanSettings { after: 3, period: Duration::from_secs(10), time: Duration::from_secs(60) };
        let (bans, start) = (Bans::default(), Instant::now());
        let client = IpAddr::from([192, 0, 2, 1]);
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in [0, 9, 11, 12] {
            bans.bad_request(&settings, client, at(second));
            assert_eq!(bans.verdict(client, at(second)), BanVerdict::Welcome, "{second}");
        }
        bans.bad_request(&settings, client, at(13));
        assert_eq!(bans.verdict(client, at(13)), BanVerdict::Banned(Duration::from_secs(60)));
        assert_eq!(bans.verdict(IpAddr::from([192, 0, 2, 2]), at(13)), BanVerdict::Welcome);
        assert_eq!(bans.verdict(client, at(73)), BanVerdict::Welcome);
    }
}
