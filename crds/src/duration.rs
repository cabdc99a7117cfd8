//! Durations as people write them in YAML: `90s`, `10m`, `1h30m`.

use std::fmt;
use std::str::FromStr;

use jiff::SignedDuration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest duration, in hours: more than a century, and well below what a time
/// can be moved by.
const MAX_HOURS: u32 = 1_000_000;

/// A positive duration in hours, minutes and seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(SignedDuration);

/// The text is not a duration such as `90s`, `10m` or `1h30m`, or is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a duration such as 90s, 10m or 1h30m, more than 0s and at most {MAX_HOURS}h: {0:?}")]
pub struct ParseDurationError(String);

impl Duration {
    /// A duration of whole seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(SignedDuration::from_secs(seconds as i64))
    }

    /// The duration for time arithmetic.
    pub const fn get(self) -> SignedDuration {
        self.0
    }

    /// Whole seconds, at most `u32::MAX`.
    pub fn as_secs(self) -> u32 {
        u32::try_from(self.0.as_secs()).unwrap_or(u32::MAX)
    }
}

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseDurationError(text.to_owned());
        let mut total: u64 = 0;
        let mut digits = String::new();
        let mut smallest_unit = u64::MAX;
        for c in text.chars() {
            if c.is_ascii_digit() {
                digits.push(c);
                continue;
            }
            let unit = match c {
                'h' => 3600,
                'm' => 60,
                's' => 1,
                _ => return Err(error()),
            };
            if unit >= smallest_unit {
                return Err(error());
            }
            smallest_unit = unit;
            let count: u64 = digits.parse().map_err(|_| error())?;
            digits.clear();
            total = count
                .checked_mul(unit)
                .and_then(|s| total.checked_add(s))
                .ok_or_else(error)?;
        }
        if !digits.is_empty() || total == 0 {
            return Err(error());
        }
        let total = u32::try_from(total).map_err(|_| error())?;
        if total > MAX_HOURS * 3600 {
            return Err(error());
        }
        Ok(Self::from_secs(total))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.as_secs();
        let parts = [
            (seconds / 3600, 'h'),
            (seconds % 3600 / 60, 'm'),
            (seconds % 60, 's'),
        ];
        for (count, unit) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{count}{unit}")?;
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 24,
            "x-kubernetes-validations": [{
                "rule": format!(
                    "self.matches('^([0-9]+h)?([0-9]+m)?([0-9]+s)?$') && \
                     duration(self) > duration('0s') && duration(self) <= duration('{MAX_HOURS}h')"
                ),
                "message": format!(
                    "must be more than 0s and at most {MAX_HOURS}h: write it like 90s, 10m or 1h30m"
                ),
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_duration_is_accepted() {
        let longest: Duration = format!("{MAX_HOURS}h").parse().unwrap();
        assert_eq!(longest.as_secs(), MAX_HOURS * 3600);
    }

    #[test]
    fn people_s_spellings_round_trip() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2h5s", 7205)] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration.as_secs(), seconds, "{text}");
            assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "0s",
            "10",
            "m",
            "-5m",
            "5m1h",
            "5m5m",
            "1.5h",
            "1d",
            "1000000h1s",
            "2000000h",
            "99999999999h",
        ] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}
