//! 256 trits, and their bytes in the layouts of several projects (`fixtures/trits256.json`).

use std::collections::BTreeMap;

/// Their bytes in that layout.
pub fn bytes(layout: &str) -> Vec<u8> {
    let json: BTreeMap<String, String> =
        serde_json::from_slice(include_bytes!("../../fixtures/trits256.json")).unwrap();
    let hex = &json[layout];
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

/// The trits, −1, 0 and 1.
pub fn trits() -> Vec<f64> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from((state >> 16) % 3) - 1.0
    };
    (0..256).map(|_| next()).collect()
}
