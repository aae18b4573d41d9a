//! Whether a difference between two candidates is more than chance.

use serde::Serialize;

/// Differences of scores below this are none.
const NOTHING: f64 = 0.01;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 10_000;

/// How one candidate does against another, on the cases that both have a score for.
///
/// Cases are what was drawn, so a case counts once, with the mean of its repeats, however often it
/// was run. Both the test and the interval are paired: they look at differences within a case, and
/// what makes some cases harder than others falls out.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Cases in which it is better, by at least a hundredth.
    pub better: usize,
    /// Cases in which it is worse.
    pub worse: usize,
    /// Cases in which it is neither.
    pub same: usize,
    /// The mean difference of the scores.
    pub mean: f64,
    /// Between what the mean difference lies with 95 % confidence: percentiles of a bootstrap over the
    /// cases (Efron 1979). Nothing for fewer than six cases, of which it could tell nothing.
    pub interval: Option<(f64, f64)>,
    /// How probable counts as uneven as these are if neither is better: the exact two-sided sign test.
    pub p_value: f64,
}

impl Comparison {
    /// Of the differences of the scores, case by case.
    pub(super) fn of(differences: &[f64]) -> Self {
        let count = |wanted: fn(f64) -> bool| differences.iter().filter(|gain| wanted(**gain)).count();
        let (better, worse) = (count(|gain| gain >= NOTHING), count(|gain| gain <= -NOTHING));
        Comparison {
            better,
            worse,
            same: differences.len() - better - worse,
            mean: mean(differences),
            interval: interval(differences),
            p_value: sign_test(better, worse),
        }
    }

    /// What may be concluded, in a sentence.
    pub fn verdict(&self) -> &'static str {
        let beyond_zero = self.interval.is_some_and(|(low, high)| low > 0.0 || high < 0.0);
        match (self.interval, beyond_zero && self.p_value < 0.05) {
            (None, _) => "too few cases to tell a difference from chance",
            (_, true) => "more than chance would explain",
            (_, false) => "chance alone would explain it",
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    let count = u32::try_from(values.len()).unwrap_or(u32::MAX).max(1);
    values.iter().sum::<f64>() / f64::from(count)
}

/// The two-sided exact sign test: how probable at most `min(better, worse)` or at least the other of
/// so many fair coins are.
fn sign_test(better: usize, worse: usize) -> f64 {
    let (all, few) = (better + worse, better.min(worse));
    let mut term = 0.5_f64.powi(i32::try_from(all).unwrap_or(i32::MAX));
    let mut tail = 0.0;
    for k in 0..=few {
        tail += term;
        term *= as_f64(all - k) / as_f64(k + 1);
    }
    (2.0 * tail).min(1.0)
}

fn as_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn interval(differences: &[f64]) -> Option<(f64, f64)> {
    if differences.len() < 6 {
        return None;
    }
    // A fixed start: the same results give the same report.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = (mixed ^ (mixed >> 31)) % differences.len() as u64;
        usize::try_from(at).ok().and_then(|at| differences.get(at)).copied().unwrap_or_default()
    };
    let mut means: Vec<f64> =
        (0..RESAMPLES).map(|_| mean(&differences.iter().map(|_| draw()).collect::<Vec<f64>>())).collect();
    means.sort_by(f64::total_cmp);
    Some((*means.get(RESAMPLES / 40)?, *means.get(RESAMPLES - RESAMPLES / 40)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_test_is_that_of_the_tables() {
        for (better, worse, p) in [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (5, 0, 0.0625),
            (6, 0, 0.03125),
            (8, 2, 0.109_375),
            (9, 1, 0.021_484_375),
            (3, 3, 1.0),
        ] {
            assert!((sign_test(better, worse) - p).abs() < 1e-12, "{better} {worse}");
            assert!((sign_test(worse, better) - p).abs() < 1e-12, "{worse} {better}");
        }
    }

    #[test]
    fn a_difference_is_told_from_chance_only_where_there_is_enough_to_tell_it_by() {
        let steady = [0.2, 0.3, 0.25, 0.2, 0.3, 0.2, 0.25, 0.3];
        let wins = Comparison::of(&steady);
        assert_eq!((wins.better, wins.worse, wins.same), (8, 0, 0));
        let (low, high) = wins.interval.unwrap();
        assert!(0.2 < low && low < 0.25 && 0.25 < high && high < 0.3, "{low} {high}");
        assert_eq!(wins.verdict(), "more than chance would explain");
        assert_eq!(Comparison::of(&steady), wins, "the same every time");

        let mixed = Comparison::of(&[0.5, -0.4, 0.3, -0.3, 0.0, 0.2]);
        assert_eq!((mixed.better, mixed.worse, mixed.same), (3, 2, 1));
        assert_eq!(mixed.verdict(), "chance alone would explain it");
        let few = Comparison::of(&[0.9; 5]);
        assert_eq!((few.interval, few.verdict()), (None, "too few cases to tell a difference from chance"));
    }
}
