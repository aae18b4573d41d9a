//! Money as an exact integer.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// US dollars, counted in whole picodollars (10⁻¹² USD), so that sums are exact: the price of one
/// token at $0.0375 per million is 37,500 of them. Arithmetic saturates; the greatest value is
/// about 18.4 million USD.
///
/// ```
/// use coral_core::Usd;
///
/// let price = Usd::per_million(0.15, 1_000);
/// assert_eq!(price.to_string(), "$0.00015");
/// assert_eq!(Usd::from_dollars(2.5).as_dollars(), 2.5);
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Usd(u64);

impl Usd {
    /// Nothing.
    pub const ZERO: Usd = Usd(0);

    const PICO: f64 = 1e12;

    /// From picodollars.
    pub const fn from_pico(pico: u64) -> Self {
        Usd(pico)
    }

    /// In picodollars.
    pub const fn as_pico(self) -> u64 {
        self.0
    }

    /// From dollars, rounded up to the picodollar; what is negative or not a number is zero.
    pub fn from_dollars(dollars: f64) -> Self {
        Usd((dollars * Self::PICO).ceil().max(0.0) as u64)
    }

    /// In dollars, for display.
    pub fn as_dollars(self) -> f64 {
        self.0 as f64 / Self::PICO
    }

    /// What `tokens` cost at `dollars` per million, rounded up to the picodollar.
    pub fn per_million(dollars: f64, tokens: u64) -> Self {
        // A price has at most six decimals, so picodollars per token are whole.
        let per_token = (dollars * 1e6).round().max(0.0) as u64;
        Usd(per_token.saturating_mul(tokens))
    }

    /// What is left after `other`, or `None` if that is more than there is.
    pub fn checked_sub(self, other: Usd) -> Option<Usd> {
        self.0.checked_sub(other.0).map(Usd)
    }

    /// What is left after `other`, at least zero.
    #[must_use]
    pub fn saturating_sub(self, other: Usd) -> Usd {
        Usd(self.0.saturating_sub(other.0))
    }
}

impl std::ops::Add for Usd {
    type Output = Usd;

    fn add(self, other: Usd) -> Usd {
        Usd(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for Usd {
    fn add_assign(&mut self, other: Usd) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Usd {
    fn sum<I: Iterator<Item = Usd>>(iter: I) -> Usd {
        iter.fold(Usd::ZERO, |a, b| a + b)
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000_000_000, self.0 % 1_000_000_000_000);
        let digits = format!("{rest:012}");
        let digits = digits.trim_end_matches('0');
        write!(f, "${whole}.{digits:0<2}")
    }
}
