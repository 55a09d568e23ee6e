//! Zip files by hand, from the format's description, with whatever is to be wrong with them.

/// One entry; what is `None` is as it should be.
#[derive(Clone, Default)]
pub struct Entry {
    pub name: String,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub crc: Option<u32>,
    pub packed: Option<u64>,
    pub unpacked: Option<u64>,
    pub offset: Option<u64>,
    pub local_name: Option<String>,
    /// Sizes and offset in 64 bits, in an extra field.
    pub wide: bool,
}

impl Entry {
    pub fn new(name: &str, data: &[u8]) -> Self {
        Self { name: name.to_owned(), data: data.to_vec(), ..Self::default() }
    }
}

/// What the end of the directory says; what is `None` is as it should be.
#[derive(Default)]
pub struct End {
    pub wide: bool,
    pub count: Option<u64>,
    pub size: Option<u64>,
    pub offset: Option<u64>,
}

pub fn zip(entries: &[Entry]) -> Vec<u8> {
    zip_ending(entries, &End::default())
}

pub fn zip_ending(entries: &[Entry], end: &End) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let size = entry.data.len() as u64;
        let (packed, unpacked) = (entry.packed.unwrap_or(size), entry.unpacked.unwrap_or(size));
        let offset = entry.offset.unwrap_or(file.len() as u64);
        let crc = entry.crc.unwrap_or_else(|| crc32fast::hash(&entry.data));
        let local = entry.local_name.as_deref().unwrap_or(&entry.name);
        let narrow = |value: u64| if entry.wide { u32::MAX } else { value as u32 };
        let mut extra = Vec::new();
        if entry.wide {
            extra.extend([1, 0, 24, 0]);
            [unpacked, packed, offset].iter().for_each(|value| extra.extend(value.to_le_bytes()));
        }
        let fixed = |bytes: &mut Vec<u8>| {
            [45, entry.flags, entry.method, 0, 0].iter().for_each(|x: &u16| bytes.extend(x.to_le_bytes()));
            [crc, narrow(packed), narrow(unpacked)].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        };
        file.extend(b"PK\x03\x04");
        fixed(&mut file);
        file.extend((local.len() as u16).to_le_bytes());
        file.extend([0, 0]);
        file.extend(local.as_bytes());
        file.extend(&entry.data);
        directory.extend(b"PK\x01\x02\x2d\x00");
        fixed(&mut directory);
        directory.extend((entry.name.len() as u16).to_le_bytes());
        directory.extend((extra.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(narrow(offset).to_le_bytes());
        directory.extend(entry.name.as_bytes());
        directory.extend(extra);
    }
    let start = file.len() as u64;
    let (count, size) = (end.count.unwrap_or(entries.len() as u64), end.size.unwrap_or(directory.len() as u64));
    let offset = end.offset.unwrap_or(start);
    file.extend(directory);
    if end.wide {
        let here = file.len() as u64;
        file.extend(b"PK\x06\x06");
        file.extend(44u64.to_le_bytes());
        file.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        [count, count, size, offset].iter().for_each(|x| file.extend(x.to_le_bytes()));
        file.extend(b"PK\x06\x07\x00\x00\x00\x00");
        file.extend(here.to_le_bytes());
        file.extend([1, 0, 0, 0]);
    }
    let narrow = |value: u64| if end.wide { u32::MAX } else { value as u32 };
    let count = if end.wide { u16::MAX } else { count as u16 };
    file.extend(b"PK\x05\x06\x00\x00\x00\x00");
    [count, count].iter().for_each(|x| file.extend(x.to_le_bytes()));
    [narrow(size), narrow(offset)].iter().for_each(|x| file.extend(x.to_le_bytes()));
    file.extend([0, 0]);
    file
}
