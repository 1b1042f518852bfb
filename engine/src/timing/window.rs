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
//! The days are those on which the hours begin. The rules of the zones come with the program, so that
//! every machine agrees on them. Where clocks are put forward, what begins in the gap begins after it.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

/// The days' names, from Monday on.
const DAYS: [&str; 7] = ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"];
/// How many spans of hours one window may have.
const SPANS_MAX: usize = 8;
const DAY_MINUTES: i64 = 24 * 60;

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
        let Ok(at) = Timestamp::from_millisecond(at_ms) else {
            return at_ms;
        };
        let today = at.to_zoned(self.zone.clone()).date();
        // From yesterday, whose hours may reach into today, to the same day in a week.
        let mut next = None;
        for ahead in -1..=8_i64 {
            let Ok(day) = today.checked_add(ahead.days()) else {
                continue;
            };
            if !self.days[day.weekday().to_monday_zero_offset() as usize] {
                continue;
            }
            for &(begins, ends) in &self.spans {
                let moment = |minutes: i64| {
                    let day = day.checked_add((minutes / DAY_MINUTES).days()).ok()?;
                    let minutes = minutes % DAY_MINUTES;
                    let time = jiff::civil::time((minutes / 60) as i8, (minutes % 60) as i8, 0, 0);
                    let zoned = self.zone.to_zoned(day.to_datetime(time)).ok()?;
                    Some(zoned.timestamp().as_millisecond())
                };
                if let (Some(begins_ms), Some(ends_ms)) = (moment(begins), moment(ends))
                    && at_ms < ends_ms
                {
                    let opens_ms = begins_ms.max(at_ms);
                    next = Some(next.map_or(opens_ms, |next: i64| next.min(opens_ms)));
                }
            }
        }
        next.unwrap_or(at_ms)
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
            // Clocks go from 02:00 to 03:00 on the last Sunday of March.
            (
                "02:30-05:00 Europe/Berlin",
                "2026-03-29T00:00:00Z",
                "2026-03-29T01:30:00Z",
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
