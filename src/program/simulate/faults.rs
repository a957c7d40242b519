//! Faults and shares as the command line says them.

use std::time::Duration;

use iroh_hub::sim::{Partition, Restart, Revocation, Stall};

/// `0.05` or `5%`.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let share = number.trim().parse::<f64>().map(|number| number / scale);
    match share {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("give a share, as 0.05 or 5%".to_owned()),
    }
}

pub(super) fn millis(text: &str) -> Result<Duration, String> {
    let millis = text.parse::<f64>().ok();
    let millis = millis.filter(|millis| (0.0..=60_000.0).contains(millis));
    let millis = millis.ok_or("give between 0 and 60000 milliseconds")?;
    Ok(Duration::from_secs_f64(millis / 1000.0))
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let seconds = seconds.filter(|seconds| (0.0..=86_400.0).contains(seconds));
    let seconds = seconds.ok_or("give between 0 and 86400 seconds")?;
    Ok(Duration::from_secs_f64(seconds))
}

pub(super) fn partition(text: &str) -> Result<Partition, String> {
    let [at, lasts, cut] = parts(text).ok_or("give AT:FOR:SHARE, for example 5:10:30%")?;
    Ok(Partition {
        at: seconds(at)?,
        lasts: seconds(lasts)?,
        share: share(cut)?,
    })
}

pub(super) fn stall(text: &str) -> Result<Stall, String> {
    let [at, lasts, spokes] = parts(text).ok_or("give AT:FOR:SPOKES, for example 5:10:3")?;
    Ok(Stall {
        at: seconds(at)?,
        lasts: seconds(lasts)?,
        spokes: spokes.parse().map_err(|_| "how many spokes?".to_owned())?,
    })
}

pub(super) fn restart(text: &str) -> Result<Restart, String> {
    let (times, durable) = match text.strip_suffix(":durable") {
        Some(times) => (times, true),
        None => (text, false),
    };
    let [at, lasts] = parts(times).ok_or("give AT:FOR or AT:FOR:durable, for example 5:2")?;
    Ok(Restart {
        at: seconds(at)?,
        lasts: seconds(lasts)?,
        durable,
    })
}

pub(super) fn revocation(text: &str) -> Result<Revocation, String> {
    let [at, spokes] = parts(text).ok_or("give AT:SPOKES, for example 5:1")?;
    Ok(Revocation {
        at: seconds(at)?,
        spokes: spokes.parse().map_err(|_| "how many spokes?".to_owned())?,
    })
}

fn parts<const N: usize>(text: &str) -> Option<[&str; N]> {
    text.split(':').collect::<Vec<_>>().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_read_as_the_help_says() {
        assert_eq!(share("5%").unwrap(), share("0.05").unwrap());
        let cut = partition("5:10.5:30%").unwrap();
        assert_eq!(
            (cut.at.as_secs(), cut.lasts.as_millis(), cut.share),
            (5, 10_500, 0.3)
        );
        let stopped = stall("1:2:3").unwrap();
        assert_eq!(
            (
                stopped.at.as_secs(),
                stopped.lasts.as_secs(),
                stopped.spokes
            ),
            (1, 2, 3)
        );
        assert!(restart("1:2:durable").unwrap().durable && !restart("1:2").unwrap().durable);
        let revoked = revocation("2.5:3").unwrap();
        assert_eq!((revoked.at.as_millis(), revoked.spokes), (2500, 3));
        assert!(revocation("2").is_err() && revocation("2:x").is_err());
        for bad in ["", "5", "1:2:3:4", "-1:2:3", "1:x:3", "nan:1:1"] {
            assert!(
                partition(bad).is_err() && stall(bad).is_err() && restart(bad).is_err(),
                "{bad}"
            );
        }
        assert!(share("101%").is_err() && share("x").is_err());
    }
}
