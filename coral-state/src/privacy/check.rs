//! Check sums: what has the form of an id and not its sum is only a number.
//!
//! Each takes what a pattern matched and gives the length of the id at its beginning.

use std::net::IpAddr;

fn digits(text: &str) -> impl DoubleEndedIterator<Item = u32> {
    text.chars().filter_map(|c| c.to_digit(10))
}

/// The sum of Luhn's rule.
fn luhn(text: &str) -> u32 {
    digits(text)
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => digit,
            (_, double @ 10..) => double - 9,
            (_, double) => double,
        })
        .sum()
}

/// A card's number may be followed by another number, such as its end or its check value: the longest part
/// that is one counts.
pub(super) fn card(text: &str) -> Option<usize> {
    if is_card(text) {
        return Some(text.len());
    }
    let ends = text.char_indices().rev().filter(|(_, c)| !c.is_ascii_digit()).map(|(at, _)| at);
    ends.take_while(|end| *end >= 13)
        .find(|end| text.get(..*end).is_some_and(|part| is_grouped(part) && is_card(part)))
}

/// Payment cards begin with 2 to 6; a time in milliseconds does not.
fn is_card(text: &str) -> bool {
    let issued = digits(text).next().is_some_and(|digit| (2..=6).contains(&digit));
    issued && (13..=19).contains(&digits(text).count()) && luhn(text).is_multiple_of(10)
}

/// Whether groups are as on a card: all but the last of at least four digits. Lists of small numbers are
/// not.
fn is_grouped(text: &str) -> bool {
    let mut groups = text.split([' ', '-']).rev();
    groups.next().is_some() && groups.all(|group| group.len() >= 4)
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

/// The Italian codice fiscale: letters and digits count by tables, in odd places by an odd one.
pub(super) fn codice_fiscale(text: &str) -> Option<usize> {
    const ODD: [u32; 26] =
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23];
    let value = |c: char| match c.to_digit(36)? {
        digit @ 0..10 => Some(digit),
        letter => Some(letter - 10),
    };
    let mut sum = 0;
    for (place, c) in text.chars().take(15).enumerate() {
        let value = value(c)?;
        sum += if place % 2 == 0 { *ODD.get(usize::try_from(value).ok()?)? } else { value };
    }
    (value(text.chars().last()?)? == sum % 26).then_some(text.len())
}

/// The Swiss AHV number has the check digit of an EAN-13.
pub(super) fn ahv(text: &str) -> Option<usize> {
    let sum: u32 = digits(text).zip([1, 3].into_iter().cycle()).map(|(digit, weight)| digit * weight).sum();
    (digits(text).count() == 13 && sum.is_multiple_of(10)).then_some(text.len())
}

/// The Brazilian CPF has two check digits, each modulo 11.
pub(super) fn cpf(text: &str) -> Option<usize> {
    let all: Vec<u32> = digits(text).collect();
    let check = |count: u32| {
        let sum: u32 = all.iter().zip((2..=count + 1).rev()).map(|(digit, weight)| digit * weight).sum();
        sum * 10 % 11 % 10
    };
    let varied = all.iter().any(|digit| Some(digit) != all.first());
    (varied && all.get(9) == Some(&check(9)) && all.get(10) == Some(&check(10))).then_some(text.len())
}

/// The Canadian SIN; none begins with 0 or 8 today, but examples do with 0.
pub(super) fn sin(text: &str) -> Option<usize> {
    let given = digits(text).any(|digit| digit > 0);
    (given && luhn(text).is_multiple_of(10)).then_some(text.len())
}

/// The Swedish personnummer: a date and a number with Luhn's digit over the last ten.
pub(super) fn personnummer(text: &str) -> Option<usize> {
    let all: Vec<char> = text.chars().filter(char::is_ascii_digit).collect();
    let ten: String = all.get(all.len().checked_sub(10)?..)?.iter().collect();
    let month: u32 = ten.get(2..4)?.parse().ok()?;
    let day: u32 = ten.get(4..6)?.parse().ok()?;
    // A coordination number adds 60 to the day.
    let dated = (1..=12).contains(&month) && matches!(day, 1..=31 | 61..=91);
    (dated && luhn(&ten).is_multiple_of(10)).then_some(text.len())
}

/// The Indian Aadhaar number has a check digit by Verhoeff: a walk through the dihedral group of
/// order ten.
pub(super) fn aadhaar(text: &str) -> Option<usize> {
    const TURNED: [u32; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    let times = |a: u32, b: u32| match (a < 5, b < 5) {
        (true, true) => (a + b) % 5,
        (true, false) => 5 + (a + b) % 5,
        (false, true) => 5 + (a + 5 - b) % 5,
        (false, false) => (a + 5 - b) % 5,
    };
    let mut sum = 0;
    for (place, digit) in digits(text).rev().enumerate() {
        let mut digit = digit;
        for _ in 0..place % 8 {
            digit = *TURNED.get(usize::try_from(digit).ok()?)?;
        }
        sum = times(sum, digit);
    }
    (sum == 0).then_some(text.len())
}

/// Eleven digits: a Polish PESEL or a German tax id.
pub(super) fn eleven_digits(text: &str) -> Option<usize> {
    let all: Vec<u32> = digits(text).collect();
    (pesel(&all) || tax_id(&all)).then_some(text.len())
}

fn pesel(all: &[u32]) -> bool {
    let weights = [1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1];
    let sum: u32 = all.iter().zip(weights).map(|(digit, weight)| digit * weight).sum();
    let month = all.get(2).zip(all.get(3)).map_or(0, |(tens, ones)| (tens * 10 + ones) % 20);
    let day = all.get(4).zip(all.get(5)).map_or(0, |(tens, ones)| tens * 10 + ones);
    sum.is_multiple_of(10) && (1..=12).contains(&month) && (1..=31).contains(&day)
}

fn tax_id(all: &[u32]) -> bool {
    let Some((check, body)) = all.split_last() else { return false };
    let mut counts = [0; 10];
    for digit in body {
        if let Some(count) = usize::try_from(*digit).ok().and_then(|digit| counts.get_mut(digit)) {
            *count += 1;
        }
    }
    // One digit is there two or three times, the others once at the most.
    let repeated = counts.iter().filter(|count| **count > 1).count();
    let most = counts.iter().copied().max().unwrap_or(0);
    let rest = body.iter().fold(10, |product, digit| {
        let sum = (digit + product) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    body.first() != Some(&0) && repeated == 1 && most <= 3 && (11 - rest) % 10 == *check
}
