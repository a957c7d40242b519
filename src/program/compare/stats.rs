//! Percentiles of few samples, and numbers as people write and read them.

use std::time::Duration;

use bytesize::ByteSize;

/// The percentile `q` (0 to 1) by nearest rank: the smallest sample that at least `q` of all samples do not exceed.
///
/// Nothing is interpolated, so the figure is one that was measured. With fewer than 100 samples the 99th percentile is
/// therefore the largest.
pub(crate) fn percentile(samples: &mut [u64], q: f64) -> Option<u64> {
    samples.sort_unstable();
    let rank = (q * samples.len() as f64).ceil() as usize;
    samples.get(rank.saturating_sub(1)).copied()
}

/// Reads `64B`, `1KiB`, `16 kb` or a bare number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let size: ByteSize = text.trim().parse().map_err(|_| {
        format!("`{text}` is no size; write a number and a unit, such as 64B, 1KiB or 1MiB")
    })?;
    Ok(size.as_u64())
}

/// Reads a number of spokes.
pub(crate) fn parse_spokes(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("a comparison needs at least one spoke".into()),
        Ok(spokes) if spokes <= MAX_SPOKES => Ok(spokes),
        Ok(spokes) => Err(format!(
            "{spokes} spokes are more than one process holds; the most is {MAX_SPOKES}"
        )),
        Err(_) => Err(format!("`{text}` is no number of spokes")),
    }
}

/// Spokes that one process hosts at most: each is an endpoint with two file descriptors.
const MAX_SPOKES: usize = 2_000;

/// `1 KiB`, `5.4 KiB`, `64 B`.
pub(crate) fn bytes(bytes: f64) -> String {
    let text = ByteSize::b(bytes.round() as u64)
        .display()
        .iec()
        .to_string();
    text.replace(".0 ", " ")
}

/// `123`, `12.3k`, `1.23M`: three digits that matter.
pub(crate) fn count(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    format!("{}{unit}", digits(scaled))
}

/// `850 us`, `1.25 ms`, `3.2 s` from microseconds.
pub(crate) fn micros(us: f64) -> String {
    match us.abs() {
        v if v >= 1e6 => format!("{} s", digits(us / 1e6)),
        v if v >= 1e3 => format!("{} ms", digits(us / 1e3)),
        _ => format!("{} us", digits(us)),
    }
}

/// `2m 05s`, `12s`.
pub(crate) fn elapsed(time: Duration) -> String {
    match time.as_secs() {
        s if s >= 60 => format!("{}m {:02}s", s / 60, s % 60),
        s => format!("{s}s"),
    }
}

fn digits(value: f64) -> String {
    let text = match value.abs() {
        v if v >= 99.95 => return format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    let trimmed = text.trim_end_matches('0').trim_end_matches('.');
    // A figure that was measured keeps its digits (3.40), a round one does not need them.
    if trimmed.contains('.') {
        text
    } else {
        trimmed.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let mut hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut hundred, 0.5), Some(50));
        assert_eq!(percentile(&mut hundred, 0.99), Some(99));
        assert_eq!(percentile(&mut hundred, 1.0), Some(100));
        let mut few = [30, 10, 20];
        assert_eq!(percentile(&mut few, 0.5), Some(20));
        assert_eq!(percentile(&mut few, 0.99), Some(30));
        assert_eq!(percentile(&mut few, 0.0), Some(10));
        assert_eq!(percentile(&mut [], 0.5), None);
    }

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse_size("64B"), Ok(64));
        assert_eq!(parse_size("1KiB"), Ok(1024));
        assert_eq!(parse_size(" 16KiB "), Ok(16 * 1024));
        assert_eq!(parse_size("300"), Ok(300));
    }

    #[test]
    fn a_bad_size_is_refused_with_an_example() {
        for bad in ["", "big", "-1", "1XB", "1KiB1"] {
            let error = parse_size(bad).expect_err(bad);
            assert!(error.contains("1KiB"), "{error}");
        }
    }

    #[test]
    fn spoke_counts_are_bounded() {
        assert_eq!(parse_spokes("10"), Ok(10));
        for bad in ["0", "ten", "-5", "1000000"] {
            assert!(parse_spokes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!(bytes(1024.0), "1 KiB");
        assert_eq!(bytes(64.0), "64 B");
        assert_eq!(bytes(5530.0), "5.4 KiB");
        assert_eq!(count(987.0), "987");
        assert_eq!(count(110_400.0), "110k");
        assert_eq!(count(12_345.0), "12.3k");
        assert_eq!(count(1_230_000.0), "1.23M");
        assert_eq!(micros(0.0), "0 us");
        assert_eq!(micros(3400.0), "3.40 ms");
        assert_eq!(micros(41.0), "41 us");
        assert_eq!(micros(850.0), "850 us");
        assert_eq!(micros(1250.0), "1.25 ms");
        assert_eq!(elapsed(Duration::from_secs(125)), "2m 05s");
    }
}
