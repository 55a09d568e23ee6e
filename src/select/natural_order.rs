//! Names in the order in which people count them. Not here: which names are looked at.

use std::cmp::Ordering;

/// Compares names with runs of digits as numbers: layer.2 before layer.10.
pub(super) fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (x, y) = (leading_number(a), leading_number(b));
        let (order, skip_a, skip_b) = match (x, y) {
            (Some((p, i)), Some((q, j))) => (p.len().cmp(&q.len()).then_with(|| p.cmp(q)), i, j),
            _ => match (a.chars().next(), b.chars().next()) {
                (Some(p), Some(q)) => (p.cmp(&q), p.len_utf8(), q.len_utf8()),
                (p, q) => return p.cmp(&q),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (&a[skip_a..], &b[skip_b..]);
    }
}

/// The digits at the beginning without leading zeros, and how many bytes they take with them.
fn leading_number(text: &str) -> Option<(&str, usize)> {
    let length = text.bytes().take_while(u8::is_ascii_digit).count();
    (length > 0).then(|| (text[..length].trim_start_matches('0'), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_compare_as_numbers() {
        let mut names = ["l.10.w", "l.2.w", "l.02.v", "conv1", "conv", "l.1"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["conv", "conv1", "l.1", "l.02.v", "l.2.w", "l.10.w"]);
    }
}
