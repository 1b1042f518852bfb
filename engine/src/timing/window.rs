//! Hours of a week in a time zone: "Mo-Fr 09:00-18:00 Asia/Shanghai".
//!
//! ```text
//! window = [days] hours zone
//! days   = day or day-day, with commas between them: "Mo-Fr", "Mo,We,Sa-Su"; without days, every day
//! hours  = HH:MM-HH:MM, with commas between them; the end may be 24:00, and before the beginning it
//!          is that of the next day: "22:00-06:00"
//! zone   = an IANA time zone: "Europe/Berlin", "UTC"
//! ```
//!
//! A window is open whenever a clock of its zone shows a time within it: the beginning belongs to it, the end
//! does not. So on the day on which clocks are put forward, hours that begin or end in the gap begin or end
//! with it, and hours that lie in it do not come; and what a clock shows twice when it is put back is open
//! twice. The days are those on which the hours begin. The rules of the zones come with the program, so that
//! every machine agrees on them.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};

/// The days' names, from Monday on.
const DAYS: [&str; 7] = ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"];
/// How many spans of hours one window may have.
const SPANS_MAX: usize = 8;
const DAY_MINUTES: i64 = 24 * 60;
/// How far ahead an opening is looked for: hours of one day of the week may once lie in the gap.
const DAYS_AHEAD: i64 = 15;

/// When something may go out.
#[derive(Clone, Debug)]
pub struct Window {
    /// From Monday on.
    days: [bool; 7],
    /// Minutes of the day at which it begins and ends; the end may be on the next day.
    spans: Vec<(i64, i64)>,
    zone: TimeZone,
}

impl Window {
    /// Reads a window.
    ///
    /// # Errors
    /// One sentence with what is wrong and how it is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: String| {
            format!("{what}; a window is written as \"Mo-Fr 09:00-18:00 Asia/Shanghai\"")
        };
        let parts: Vec<&str> = text.split_whitespace().collect();
        let (days, hours, zone) = match parts[..] {
            [hours, zone] => ("Mo-Su", hours, zone),
            [days, hours, zone] => (days, hours, zone),
            _ => return Err(wrong(format!("{text:?} is no window"))),
        };
        let zone = jiff::tz::db()
            .get(zone)
            .map_err(|_| wrong(format!("{zone:?} is no time zone")))?;
        Ok(Self {
            days: read_days(days).map_err(wrong)?,
            spans: read_hours(hours).map_err(wrong)?,
            zone,
        })
    }

    /// This moment where the window is open, or when it opens next.
    pub fn opening_ms(&self, at_ms: i64) -> i64 {
        if self.is_open(at_ms) {
            return at_ms;
        }
        let Ok(at) = Timestamp::from_millisecond(at_ms) else {
            return at_ms;
        };
        // It opens where a clock comes to a beginning, or is put to a time within.
        let next = self.beginnings(at).chain(self.changes_of_clocks(at));
        let next = next.map(Timestamp::as_millisecond);
        let next = next.filter(|moment_ms| *moment_ms > at_ms && self.is_open(*moment_ms));
        next.min().unwrap_or(at_ms)
    }

    /// Whether a clock of the zone shows a time within.
    fn is_open(&self, at_ms: i64) -> bool {
        let Ok(at) = Timestamp::from_millisecond(at_ms) else {
            return false;
        };
        let shown = at.to_zoned(self.zone.clone());
        let today = shown.weekday().to_monday_zero_offset() as usize;
        let minute = i64::from(shown.hour()) * 60 + i64::from(shown.minute());
        self.spans.iter().any(|&(begins, ends)| {
            let of_today = self.days[today] && (begins..ends).contains(&minute);
            // The hours of the day before may reach into this one.
            let before = (begins..ends).contains(&(minute + DAY_MINUTES));
            of_today || (self.days[(today + 6) % 7] && before)
        })
    }

    /// The moments at which its hours begin, from yesterday on. A clock that is put back shows the beginning
    /// twice, and one that is put forward may not show it.
    fn beginnings(&self, at: Timestamp) -> impl Iterator<Item = Timestamp> {
        let today = at.to_zoned(self.zone.clone()).date();
        let days = (-1..=DAYS_AHEAD).filter_map(move |ahead| today.checked_add(ahead.days()).ok());
        let days =
            days.filter(move |day| self.days[day.weekday().to_monday_zero_offset() as usize]);
        let shown = days.flat_map(move |day| {
            let times = self.spans.iter();
            times.map(move |(begins, _)| day.at((begins / 60) as i8, (begins % 60) as i8, 0, 0))
        });
        shown.flat_map(move |shown| {
            let moment = self.zone.to_ambiguous_timestamp(shown);
            [moment.earlier(), moment.later()].into_iter().flatten()
        })
    }

    fn changes_of_clocks(&self, at: Timestamp) -> impl Iterator<Item = Timestamp> {
        let last = at.checked_add(SignedDuration::from_hours(24 * DAYS_AHEAD));
        let last = last.unwrap_or(Timestamp::MAX);
        let changes = self.zone.following(at).map(|change| change.timestamp());
        changes.take_while(move |change| *change <= last)
    }
}

fn read_days(text: &str) -> Result<[bool; 7], String> {
    let day = |name: &str| {
        let at = DAYS.iter().position(|day| *day == name);
        at.ok_or_else(|| format!("{name:?} is no day: there are {}", DAYS.join(", ")))
    };
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        // "Sa-Mo" goes over the end of the week.
        for ahead in 0..=(last + 7 - first) % 7 {
            days[(first + ahead) % 7] = true;
        }
    }
    Ok(days)
}

fn read_hours(text: &str) -> Result<Vec<(i64, i64)>, String> {
    let time = |text: &str| {
        let (hours, minutes) = text.split_once(':')?;
        let two = |part: &str, max: i64| {
            let number = part.parse::<i64>().ok()?;
            let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
            (digits && number <= max).then_some(number)
        };
        let minutes = two(hours, 24)? * 60 + two(minutes, 59)?;
        (minutes <= DAY_MINUTES).then_some(minutes)
    };
    let mut spans = Vec::new();
    for span in text.split(',') {
        let read = span.split_once('-');
        let read = read.and_then(|(begins, ends)| Some((time(begins)?, time(ends)?)));
        match read {
            Some((begins, ends)) if begins < DAY_MINUTES && begins != ends => {
                let over = if ends < begins { DAY_MINUTES } else { 0 };
                spans.push((begins, ends + over));
            }
            _ => return Err(format!("{span:?} are no hours")),
        }
    }
    if spans.len() > SPANS_MAX {
        return Err(format!(
            "{} spans of hours are more than {SPANS_MAX}",
            spans.len()
        ));
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(window: &str, at: &str) -> String {
        let at: Timestamp = at.parse().unwrap();
        let window = Window::parse(window).unwrap();
        let opens_ms = window.opening_ms(at.as_millisecond());
        Timestamp::from_millisecond(opens_ms).unwrap().to_string()
    }

    #[test]
    fn it_opens_when_it_says() {
        let office = "Mo-Fr 09:00-18:00 Asia/Shanghai";
        for (window, at, opens) in [
            // 2026-03-02 is a Monday; Shanghai is eight hours ahead.
            (office, "2026-03-02T01:00:00Z", "2026-03-02T01:00:00Z"),
            (office, "2026-03-02T00:59:59Z", "2026-03-02T01:00:00Z"),
            (office, "2026-03-02T09:59:59Z", "2026-03-02T09:59:59Z"),
            (office, "2026-03-02T10:00:00Z", "2026-03-03T01:00:00Z"),
            (office, "2026-03-06T10:00:00Z", "2026-03-09T01:00:00Z"),
            (
                "22:00-06:00 UTC",
                "2026-03-02T05:00:00Z",
                "2026-03-02T05:00:00Z",
            ),
            (
                "22:00-06:00 UTC",
                "2026-03-02T06:00:00Z",
                "2026-03-02T22:00:00Z",
            ),
            // Saturday's hours reach into Sunday.
            (
                "Sa 22:00-06:00 UTC",
                "2026-03-08T03:00:00Z",
                "2026-03-08T03:00:00Z",
            ),
            (
                "Sa 22:00-06:00 UTC",
                "2026-03-08T06:00:00Z",
                "2026-03-14T22:00:00Z",
            ),
            (
                "Sa-Mo 00:00-24:00 UTC",
                "2026-03-03T00:00:00Z",
                "2026-03-07T00:00:00Z",
            ),
            (
                "Mo,We 08:00-09:00,12:00-13:00 UTC",
                "2026-03-02T10:00:00Z",
                "2026-03-02T12:00:00Z",
            ),
            (
                "Mo,We 08:00-09:00,12:00-13:00 UTC",
                "2026-03-02T13:00:00Z",
                "2026-03-04T08:00:00Z",
            ),
            // One minute a week, just missed.
            (
                "Mo 00:00-00:01 UTC",
                "2026-03-02T00:01:00Z",
                "2026-03-09T00:00:00Z",
            ),
        ] {
            assert_eq!(opening(window, at), opens, "{window} at {at}");
        }
    }

    #[test]
    fn on_the_days_on_which_clocks_change_it_goes_by_what_they_show() {
        let late = "01:00-02:30 Europe/Berlin";
        let early = "02:30-05:00 Europe/Berlin";
        let inside = "02:10-02:50 Europe/Berlin";
        for (window, at, opens) in [
            // From 02:00 to 03:00 on 2026-03-29, at 01:00 UTC: what ends in the gap ends with it...
            (late, "2026-03-29T00:59:59Z", "2026-03-29T00:59:59Z"),
            (late, "2026-03-29T01:00:00Z", "2026-03-29T23:00:00Z"),
            (late, "2026-03-29T01:10:00Z", "2026-03-29T23:00:00Z"),
            // ...what begins there begins with its end, and what lies in it does not come.
            (early, "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"),
            (early, "2026-03-29T02:59:59Z", "2026-03-29T02:59:59Z"),
            (early, "2026-03-29T03:00:00Z", "2026-03-30T00:30:00Z"),
            (inside, "2026-03-29T00:30:00Z", "2026-03-30T00:10:00Z"),
            (
                "Su 02:10-02:50 Europe/Berlin",
                "2026-03-23T12:00:00Z",
                "2026-04-05T00:10:00Z",
            ),
            // Over midnight, and over the gap.
            (
                "Sa 22:00-02:30 Europe/Berlin",
                "2026-03-29T01:00:00Z",
                "2026-04-04T20:00:00Z",
            ),
            // From 03:00 back to 02:00 on 2026-10-25, at 01:00 UTC: what is shown twice is open twice.
            (late, "2026-10-25T00:29:59Z", "2026-10-25T00:29:59Z"),
            (late, "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z"),
            (late, "2026-10-25T01:29:59Z", "2026-10-25T01:29:59Z"),
            (late, "2026-10-25T01:30:00Z", "2026-10-26T00:00:00Z"),
            (early, "2026-10-25T00:30:00Z", "2026-10-25T00:30:00Z"),
            (early, "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z"),
            (inside, "2026-10-25T00:50:00Z", "2026-10-25T01:10:00Z"),
            // Half an hour, in the other half of the year.
            (
                "01:45-02:15 Australia/Lord_Howe",
                "2026-04-04T15:10:00Z",
                "2026-04-04T15:15:00Z",
            ),
            // A day that there was not.
            (
                "Fr 09:00-10:00 Pacific/Apia",
                "2011-12-29T21:00:00Z",
                "2012-01-05T19:00:00Z",
            ),
        ] {
            assert_eq!(opening(window, at), opens, "{window} at {at}");
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for (text, says) in [
            ("", "\"\" is no window"),
            ("09:00-18:00", "is no window"),
            ("Mo-Fr 9:00-18:00 UTC", "\"9:00-18:00\" are no hours"),
            ("Mo-Fr 09:00-24:01 UTC", "are no hours"),
            ("Mo-Fr 24:00-02:00 UTC", "are no hours"),
            ("Mo-Fr 09:00-09:00 UTC", "are no hours"),
            ("Mon 09:00-18:00 UTC", "\"Mon\" is no day"),
            ("Mo-Fr 09:00-18:00 Asia/Schanghai", "is no time zone"),
            ("Mo-Fr 09:00-18:00 UTC extra", "is no window"),
        ] {
            let error = Window::parse(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        let many = ["01:00-02:00"; 9].join(",");
        assert!(Window::parse(&format!("{many} UTC")).is_err());
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        let window = Window::parse("Mo 09:00-10:00 Pacific/Auckland").unwrap();
        for at_ms in [
            i64::MIN,
            -377_705_116_800_000,
            253_402_207_200_000,
            i64::MAX,
        ] {
            window.opening_ms(at_ms);
        }
        assert_eq!(jiff::civil::Weekday::Monday.to_monday_zero_offset(), 0);
    }
}
