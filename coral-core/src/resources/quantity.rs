//! Amounts of processor and memory, in the notation of Kubernetes.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// Processor time, in thousandths of a processor. As text, `2`, `0.5` or `500m`.
///
/// ```
/// use coral_core::resources::Cpu;
///
/// assert_eq!("1.5".parse::<Cpu>()?, Cpu::milli(1_500));
/// assert_eq!(Cpu::milli(500).to_string(), "500m");
/// assert!("fast".parse::<Cpu>().is_err());
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu(u64);

/// Main memory in bytes. As text, `4Gi`, `512Mi`, `1.5G` or a number of bytes.
///
/// ```
/// use coral_core::resources::Memory;
///
/// assert_eq!("4Gi".parse::<Memory>()?, Memory::bytes(4 * 1024 * 1024 * 1024));
/// assert_eq!("2k".parse::<Memory>()?, Memory::bytes(2_000));
/// assert_eq!(Memory::bytes(512 << 20).to_string(), "512Mi");
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory(u64);

impl Cpu {
    /// From thousandths of a processor.
    pub const fn milli(milli: u64) -> Self {
        Cpu(milli)
    }

    /// In thousandths of a processor.
    pub const fn as_milli(self) -> u64 {
        self.0
    }
}

impl Memory {
    /// From bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Memory(bytes)
    }

    /// In bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

/// `number` times `unit`, rounded up; `None` if it is no amount.
fn times(number: &str, unit: u64) -> Option<u64> {
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number: f64 = if digits { number.parse().ok()? } else { return None };
    let amount = (number * unit as f64).ceil();
    // 2^53: from here on a float skips whole numbers.
    (amount <= 9_007_199_254_740_992.0).then_some(amount as u64)
}

impl FromStr for Cpu {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let amount = match text.strip_suffix('m') {
            Some(milli) => times(milli, 1),
            None => times(text, 1_000),
        };
        amount
            .map(Cpu)
            .ok_or_else(|| Error::invalid(format!("cpu `{text}`"), "expected is `2`, `0.5` or `500m`"))
    }
}

const UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl FromStr for Memory {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
        let (number, unit) = known.unwrap_or((text, 1));
        times(number, unit).map(Memory).ok_or_else(|| {
            Error::invalid(
                format!("memory `{text}`"),
                "expected is `4Gi`, `512Mi`, `2G` or a number of bytes",
            )
        })
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1_000) { write!(f, "{}", self.0 / 1_000) } else { write!(f, "{}m", self.0) }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().take(4).find(|(_, bytes)| self.0 > 0 && self.0.is_multiple_of(*bytes));
        match whole {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Takes text as it is, and a number as the text that it would be.
struct Quantity<T>(PhantomData<T>);

impl<T: FromStr<Err = Error>> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an amount such as `2`, `500m` or `4Gi`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

macro_rules! as_text {
    ($($name:ident)+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Quantity(PhantomData))
            }
        }
    )+};
}

as_text! { Cpu Memory }
