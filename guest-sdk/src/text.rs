//! Text without `core::fmt` and without a check that could panic with a number: what small rules
//! would otherwise link is half of them.

#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
pub(crate) use crate::guest::{append, push};

/// More bytes at the end.
#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
pub(crate) fn append(to: &mut Vec<u8>, more: &[u8]) {
    to.extend_from_slice(more);
}

/// More text at the end.
#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
pub(crate) fn push(to: &mut String, more: &str) {
    to.push_str(more);
}

/// The parts, one after another.
pub(crate) fn joined(parts: &[&str]) -> String {
    let mut text = String::new();
    for part in parts {
        push(&mut text, part);
    }
    text
}

/// A number in decimal.
pub(crate) fn decimal(number: u64) -> String {
    let mut text = String::new();
    push_decimal(&mut text, number);
    text
}

fn push_decimal(text: &mut String, number: u64) {
    if number >= 10 {
        push_decimal(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn the_digits_are_those_of_fmt() {
        for number in [0, 1, 9, 10, 99, 100, 4_294_967_295, u64::MAX] {
            assert_eq!(decimal(number), number.to_string());
        }
    }
}
