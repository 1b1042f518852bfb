//! Text without `core::fmt` and without a check that could panic with a number: what small rules
//! would otherwise link is half of them.

/// The parts, one after another.
pub(crate) fn joined(parts: &[&str]) -> String {
    let mut text = String::new();
    for part in parts {
        text.push_str(part);
    }
    text
}

/// A number in decimal.
pub(crate) fn decimal(mut number: u64) -> String {
    let mut digits = [0; 20];
    let mut start = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        start -= 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    let digits = digits.get(start..).unwrap_or_default();
    joined(&[std::str::from_utf8(digits).unwrap_or_default()])
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
