//! Any text as the description of a network. What is accepted has to have tensors of shapes that can be
//! counted, be the same when nothing is changed, and survive any width, number of classes and input.

#![no_main]

use libfuzzer_sys::fuzz_target;
use twn_pack::limits::LAYER_VALUES;
use twn_pack::net::{Description, Overrides};
use twn_pack::{Error, Result};

fuzz_target!(|text: &str| {
    let Some(description) = accepted(Description::parse("net.toml", text)) else { return };
    check(&description);
    let same = description.clone().with(Overrides::default()).expect("nothing was changed");
    assert_eq!(same.tensors(), description.tensors());
    let [channels, height, width] = description.input();
    for overrides in [
        Overrides { width: Some(0.3), ..Overrides::default() },
        Overrides { width: Some(1e6), ..Overrides::default() },
        Overrides { classes: Some(3), ..Overrides::default() },
        Overrides { input: Some([channels, height.div_ceil(2), width * 2]), ..Overrides::default() },
    ] {
        if let Some(changed) = accepted(description.clone().with(overrides)) {
            check(&changed);
            assert!(overrides.classes.is_none_or(|_| changed.tensors().iter().any(|(_, shape)| shape[0] == 3)));
            assert!(overrides.input.is_none_or(|input| changed.input() == input));
        }
    }
});

/// `None` where it is refused, with words.
fn accepted(result: Result<Description>) -> Option<Description> {
    match result {
        Ok(description) => Some(description),
        Err(Error::Request(message)) => {
            assert!(message.starts_with("net.toml: ") && message.len() > "net.toml: ".len());
            None
        }
        Err(other) => panic!("{other}"),
    }
}

fn check(description: &Description) {
    let size = description.input().iter().product::<usize>();
    assert!((1..=LAYER_VALUES).contains(&size) && (1..=LAYER_VALUES).contains(&description.classes()));
    for (name, shape) in description.tensors() {
        let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
        assert!(elements.is_some_and(|elements| elements > 0), "{name}: {shape:?}");
    }
}
