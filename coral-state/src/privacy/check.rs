//! Check sums: what has the form of an id and not its sum is only a number.
//!
//! Each takes what a pattern matched and gives the length of the id at its beginning.

use std::net::IpAddr;

fn digits(text: &str) -> impl DoubleEndedIterator<Item = u32> {
    text.chars().filter_map(|c| c.to_digit(10))
}

pub(super) fn card(text: &str) -> Option<usize> {
    let sum: u32 = digits(text)
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => digit,
            (_, double @ 10..) => double - 9,
            (_, double) => double,
        })
        .sum();
    (sum.is_multiple_of(10) && digits(text).any(|digit| digit > 0)).then_some(text.len())
}

/// An IBAN may be followed by words that look like more of it: the longest part that fits counts.
pub(super) fn iban(text: &str) -> Option<usize> {
    let ends = text.char_indices().rev().filter(|(_, c)| *c != ' ').map(|(at, c)| at + c.len_utf8());
    ends.take_while(|end| *end >= 15).find(|end| text.get(..*end).is_some_and(is_iban))
}

fn is_iban(text: &str) -> bool {
    let plain: Vec<u32> = text.chars().filter_map(|c| c.to_digit(36)).collect();
    let Some((head, body)) = plain.split_at_checked(4) else { return false };
    plain.len() >= 15
        && body.iter().chain(head).fold(0, |rest, value| match value {
            0..10 => (rest * 10 + value) % 97,
            letter => (rest * 100 + letter) % 97,
        }) == 1
}

pub(super) fn social_security(text: &str) -> Option<usize> {
    let mut parts = text.split('-');
    let (area, group, serial) = (parts.next()?, parts.next()?, parts.next()?);
    let impossible =
        area == "000" || area == "666" || area.starts_with('9') || group == "00" || serial == "0000";
    (!impossible).then_some(text.len())
}

pub(super) fn dni(text: &str) -> Option<usize> {
    let letter = text.chars().last()?;
    let first = match text.chars().next()? {
        'X' => Some(0),
        'Y' => Some(1),
        'Z' => Some(2),
        _ => None,
    };
    let numbers: Vec<u32> = first.into_iter().chain(digits(text)).collect();
    let number = numbers.iter().fold(0, |number, digit| number * 10 + digit);
    let wanted = "TRWAGMYFPDXBNJZSQVHLCKE".chars().nth(usize::try_from(number % 23).ok()?)?;
    (numbers.len() == 8 && letter == wanted).then_some(text.len())
}

pub(super) fn nir(text: &str) -> Option<usize> {
    let plain: String = text.chars().filter(|c| *c != ' ').collect();
    // Corsica's departments count as 19 and 18.
    let plain = plain.replacen("2A", "19", 1).replacen("2B", "18", 1);
    let (number, key) = plain.split_at_checked(13)?;
    let (number, key): (u64, u64) = (number.parse().ok()?, key.parse().ok()?);
    (97 - number % 97 == key).then_some(text.len())
}

pub(super) fn ip(text: &str) -> Option<usize> {
    // A time of day or a version is no address; neither is what only stands for none.
    let address: IpAddr = text.parse().ok()?;
    (!address.is_unspecified() && (address.is_ipv4() || text.len() > 4)).then_some(text.len())
}
