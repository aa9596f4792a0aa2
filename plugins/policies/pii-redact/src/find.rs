//! Finds personal data in text.

use forethought_policy::prelude::*;

/// A kind of personal data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Email,
    Card,
    Iban,
    Phone,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Email, Self::Card, Self::Iban, Self::Phone];

    fn mark(self) -> &'static str {
        match self {
            Self::Email => "[EMAIL]",
            Self::Card => "[CARD]",
            Self::Iban => "[IBAN]",
            Self::Phone => "[PHONE]",
        }
    }

    /// Where in `text` something of this kind that begins at `start` ends.
    fn end(self, text: &str, start: usize) -> Option<usize> {
        match self {
            Self::Email => email(text, start),
            Self::Card => card(text, start),
            Self::Iban => iban(text, start),
            Self::Phone => phone(text, start),
        }
    }
}

/// The text without what is of these kinds, and how many pieces were taken out.
pub(crate) fn redact(text: &str, kinds: &[Kind]) -> (String, usize) {
    let (mut clean, mut count, mut at) = (String::new(), 0, 0);
    while let Some(c) = text[at..].chars().next() {
        // Only at the start of a word: half a number is no number.
        let starts = text[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric());
        let found = starts.then(|| kinds.iter().find_map(|kind| Some((kind, kind.end(text, at)?)))).flatten();
        match found {
            Some((kind, end)) => {
                clean.push_str(kind.mark());
                count += 1;
                at = end;
            }
            None => {
                clean.push(c);
                at += c.len_utf8();
            }
        }
    }
    (clean, count)
}

fn run(text: &str, good: impl Fn(char) -> bool) -> usize {
    text.find(|c| !good(c)).unwrap_or(text.len())
}

fn email(text: &str, start: usize) -> Option<usize> {
    let local = run(&text[start..], |c| c.is_alphanumeric() || "._%+-".contains(c));
    let domain = text[start + local..].strip_prefix('@')?;
    let length = run(domain, |c| c.is_alphanumeric() || c == '.' || c == '-');
    let domain = domain[..length].trim_end_matches(['.', '-']);
    let (name, top) = domain.rsplit_once('.')?;
    let right =
        local > 0 && !name.is_empty() && top.chars().count() >= 2 && top.chars().all(char::is_alphabetic);
    right.then_some(start + local + 1 + domain.len())
}

/// Reads up to `most` characters that `good` takes, with single blanks, dots or dashes between them.
fn spaced(text: &str, start: usize, most: usize, good: impl Fn(char) -> bool) -> (String, usize) {
    let (mut taken, mut end, mut gap) = (String::new(), start, true);
    for (index, c) in text[start..].char_indices() {
        if good(c) && taken.len() < most {
            taken.push(c);
            (end, gap) = (start + index + 1, false);
        } else if !gap && " .-".contains(c) {
            gap = true;
        } else {
            break;
        }
    }
    (taken, end)
}

fn whole(text: &str, end: usize) -> bool {
    text[end..].chars().next().is_none_or(|after| !after.is_alphanumeric())
}

/// 13 to 19 digits with a right check digit (Luhn).
fn card(text: &str, start: usize) -> Option<usize> {
    let (digits, end) = spaced(text, start, 19, |c| c.is_ascii_digit());
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(index, digit)| match u32::from(digit - b'0') {
            digit if index % 2 == 0 => digit,
            digit => digit * 2 / 10 + digit * 2 % 10,
        })
        .sum();
    (digits.len() >= 13 && sum % 10 == 0 && sum > 0 && whole(text, end)).then_some(end)
}

/// Two letters and 13 to 32 letters and digits, with the right remainder (ISO 13616).
fn iban(text: &str, start: usize) -> Option<usize> {
    if !text[start..].bytes().take(2).all(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let (taken, end) = spaced(text, start, 34, |c| c.is_ascii_uppercase() || c.is_ascii_digit());
    if taken.len() < 15 || !taken.bytes().skip(2).take(2).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let rest = taken.bytes().skip(4).chain(taken.bytes().take(4)).fold(0u32, |rest, byte| match byte {
        b'0'..=b'9' => (rest * 10 + u32::from(byte - b'0')) % 97,
        letter => (rest * 100 + u32::from(letter - b'A') + 10) % 97,
    });
    (rest == 1 && whole(text, end)).then_some(end)
}

/// A plus sign and 8 to 15 digits (E.164).
fn phone(text: &str, start: usize) -> Option<usize> {
    let digits = text[start..].strip_prefix('+')?;
    let (digits, end) =
        spaced(text, text.len() - digits.len(), 16, |c| c.is_ascii_digit() || "()".contains(c));
    let count = digits.bytes().filter(u8::is_ascii_digit).count();
    ((8..=15).contains(&count) && whole(text, end)).then_some(end)
}
