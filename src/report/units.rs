//! Numbers as people read them. Not here: numbers for programs, which stay in full.

/// Bytes in binary units: `482 B`, `2.23 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.*} {unit}", decimals(value)) }
}

/// Three significant digits and a factor of a thousand: `580 k`, `1.24 G`.
pub fn count(n: u64) -> String {
    const UNITS: [&str; 5] = [" k", " M", " G", " T", " P"];
    let mut value = n as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 10_000.0 && unit.is_empty() || value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit.is_empty() { n.to_string() } else { format!("{value:.*}{unit}", decimals(value)) }
}

/// A ratio: `15.9×`; of nothing, `-`.
pub fn ratio(r: f64) -> String {
    if r == 0.0 { "-".to_owned() } else { format!("{r:.*}×", decimals(r)) }
}

/// For three significant digits.
fn decimals(value: f64) -> usize {
    match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!([bytes(0), bytes(999), bytes(2_336_984), bytes(1 << 33)], ["0 B", "999 B", "2.23 MiB", "8.00 GiB"]);
        assert_eq!([count(9999), count(580_000), count(1_235_000_000)], ["9999", "580 k", "1.24 G"]);
        assert_eq!([ratio(15.94), ratio(1.0), ratio(131.2), ratio(0.0)], ["15.9×", "1.00×", "131×", "-"]);
    }
}
