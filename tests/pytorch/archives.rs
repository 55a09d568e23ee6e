//! The zip file: lies in its directory, damage, and size. Not here: pickles ([`crate::pickles`]).

use std::time::{Duration, Instant};

use twn_pack::{Fault, import};

use crate::common::zip::{End, Entry, zip, zip_ending};
use crate::{common, dict, file, fixture, floats, open_bytes, tensor};

#[test]
fn lying_zip_files_are_refused() {
    let pickle = dict(&[("w", tensor(6, 0, &[2, 3], &[3, 1]))]);
    let entry = Entry::new("m/data.pkl", &pickle);
    let data = Entry::new("m/data/0", &floats(6));
    let size = |bytes: &[u8]| bytes.len() as u64;
    let good = [entry.clone(), data.clone()];
    let wide = good.clone().map(|entry| Entry { wide: true, ..entry });
    for (entries, end) in [
        (&good, End::default()),
        (&wide, End::default()),
        (&good, End { wide: true, ..End::default() }),
        (&wide, End { wide: true, ..End::default() }),
    ] {
        let checkpoint = open_bytes(&zip_ending(entries, &end)).unwrap();
        assert_eq!(checkpoint.by_name("w").unwrap().stored, floats(6));
    }
    let crc = open_bytes(&zip(&[Entry { crc: Some(1), ..entry.clone() }, data.clone()])).unwrap();
    assert!(crc.warnings().concat().contains("does not have its checksum"));

    let with = |change: Entry| vec![entry.clone(), change];
    let max = Some(u64::MAX);
    let cases = [
        ("packed", with(Entry { packed: Some(1 << 31), unpacked: Some(1 << 31), ..data.clone() }), "cut off"),
        ("unpacked", with(Entry { unpacked: Some(1 << 31), ..data.clone() }), "the directory says 2147483648"),
        ("wide sizes", with(Entry { wide: true, packed: max, unpacked: max, ..data.clone() }), "cut off"),
        (
            "wide unpacked",
            with(Entry { wide: true, unpacked: max, ..data.clone() }),
            "the directory says 18446744073709551615",
        ),
        ("wide offset", with(Entry { wide: true, offset: max, ..data.clone() }), "cut off"),
        ("offset", with(Entry { offset: Some(4), ..data.clone() }), "cut off"),
        ("same bytes", with(Entry { offset: Some(0), local_name: None, ..data.clone() }), "another name"),
        ("overlap", with(Entry { packed: Some(25), unpacked: Some(25), ..data.clone() }), "share bytes"),
        ("name", with(Entry { local_name: Some("m/data/1".into()), ..data.clone() }), "another name in its own header"),
        ("twice", vec![entry.clone(), data.clone(), data.clone()], "two entries `m/data/0`"),
        (
            "two pickles",
            vec![entry.clone(), Entry { name: "n/data.pkl".into(), ..entry.clone() }],
            "several entries data.pkl",
        ),
        ("deflated", with(Entry { method: 8, ..data.clone() }), "is compressed, expected it stored"),
        ("method", with(Entry { method: 93, ..data.clone() }), "expected it to be stored or deflated"),
        ("encrypted", with(Entry { flags: 1, ..data.clone() }), "is encrypted"),
        (
            "long pickle",
            vec![
                Entry { packed: Some(size(&pickle) + 1), unpacked: Some(size(&pickle) + 1), ..entry.clone() },
                data.clone(),
            ],
            "share bytes",
        ),
        ("none", vec![], "a zip file of 0 entries"),
        ("other", vec![Entry::new("word/document.xml", b"")], "(the first: `word/document.xml`), expected data.pkl"),
    ];
    for (what, entries, says) in cases {
        let found = open_bytes(&zip(&entries)).unwrap_err().to_string();
        assert!(found.contains(says), "{what}: {found}");
    }
    for wide in [false, true] {
        for (count, size, offset) in [
            (Some(1), None, None),
            (Some(3), None, None),
            (None, None, Some(0)),
            (None, None, Some(1 << 31)),
            (Some(65534), None, None),
            (Some(1 << 40), None, None),
            (None, None, Some(u64::MAX)),
            (None, max, max),
        ] {
            let end = End { wide, count, size, offset };
            if !wide && [count, offset].into_iter().flatten().any(|value| value > u32::MAX.into()) {
                continue;
            }
            let error = open_bytes(&zip_ending(&good, &end)).unwrap_err();
            assert_eq!(error.fault(), Fault::Input, "{error}");
        }
    }
}

/// Cut off anywhere it is an error; with any byte changed an error or another good file. Never a panic.
#[test]
fn damaged_files_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.pt");
    let check = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match import::open(&path) {
            Ok(checkpoint) => {
                let bytes: usize = checkpoint.tensors().map(|tensor| tensor.stored.len()).sum();
                assert!(bytes < 1 << 26);
                true
            }
            Err(error) => {
                assert_eq!(error.fault(), Fault::Input, "{error}");
                assert!(error.to_string().len() < 1500, "{error}");
                false
            }
        }
    };
    let whole = std::fs::read(fixture("small.pt")).unwrap();
    assert!(check(&whole));
    for length in 0..whole.len() {
        assert!(!check(&whole[..length]), "{length}");
    }
    common::every_damage(&whole, |damaged| {
        check(damaged);
    });
}

/// 2 GiB, of which almost nothing is looked at.
#[test]
fn opening_is_fast_however_large_the_file_is() {
    use std::io::{Seek, SeekFrom, Write};
    const BYTES: u64 = 2 << 30;
    let values = BYTES as i64 / 4;
    let pickle = dict(&[("w", tensor(values, 0, &[values / 1024, 1024], &[1024, 1]))]);
    let small = file(&pickle, &[("0", b"")]);
    // The directory is written anew, for a storage that is a hole of the file system.
    let start = small.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let mut end = small[start..].to_vec();
    let second = 4 + end[4..].windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    for at in [20, 24] {
        end[second + at..second + at + 4].copy_from_slice(&(BYTES as u32).to_le_bytes());
    }
    let offset = end.len() - 6;
    end[offset..offset + 4].copy_from_slice(&((start as u64 + BYTES) as u32).to_le_bytes());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.pt");
    let mut large = std::fs::File::create(&path).unwrap();
    large.write_all(&small[..start]).unwrap();
    large.seek(SeekFrom::Current(BYTES as i64)).unwrap();
    large.write_all(&end).unwrap();
    drop(large);
    let begin = Instant::now();
    let checkpoint = import::open(&path).unwrap();
    let took = begin.elapsed();
    assert_eq!(checkpoint.by_name("w").unwrap().stored.len() as u64, BYTES);
    assert!(took < Duration::from_secs(1), "{took:?}");
}
