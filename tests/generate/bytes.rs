//! Bytes by hand: a random generator, floats of every width, a safetensors file.

use std::collections::BTreeMap;

/// The linear congruential generator of Numerical Recipes; the high bits are the random ones.
pub struct Lcg(pub u32);

impl Lcg {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 16
    }

    /// Bell-shaped, mean 0, standard deviation about 0.02, as trained weights are. The sum of four
    /// 16-bit integers and one product: the same on every machine.
    pub fn weight(&mut self) -> f64 {
        let sum: u32 = (0..4).map(|_| self.next()).sum();
        (f64::from(sum) - 131_070.0) * (1.0 / 2_097_152.0)
    }

    pub fn weights(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.weight()).collect()
    }
}

/// Little-endian bytes of floats in a type, rounded to nearest.
pub fn floats(dtype: &str, values: &[f64]) -> Vec<u8> {
    let each = |encode: &dyn Fn(f64) -> Vec<u8>| values.iter().flat_map(|&v| encode(v)).collect();
    match dtype {
        "F64" => each(&|v| v.to_le_bytes().to_vec()),
        "F32" => each(&|v| (v as f32).to_le_bytes().to_vec()),
        "F16" => each(&|v| half::f16::from_f64(v).to_le_bytes().to_vec()),
        "BF16" => each(&|v| half::bf16::from_f64(v).to_le_bytes().to_vec()),
        other => panic!("{other} is made byte by byte"),
    }
}

/// A safetensors file under construction: tensors in the order of their bytes.
#[derive(Default)]
pub struct Safetensors {
    metadata: BTreeMap<String, String>,
    header: BTreeMap<String, String>,
    data: Vec<u8>,
}

impl Safetensors {
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn tensor(mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) -> Self {
        let begin = self.data.len();
        self.data.extend(bytes);
        let entry = format!(
            r#"{{"data_offsets":[{begin},{}],"dtype":"{dtype}","shape":{}}}"#,
            self.data.len(),
            serde_json::to_string(shape).unwrap()
        );
        self.header.insert(name.to_owned(), entry);
        self
    }

    /// A tensor of floats that the generator makes.
    pub fn random(self, name: &str, dtype: &str, shape: &[usize], seed: u32) -> Self {
        let values = Lcg(seed).weights(shape.iter().product());
        self.tensor(name, dtype, shape, &floats(dtype, &values))
    }

    /// The file, its header filled up with blanks to a multiple of 8.
    pub fn build(self) -> Vec<u8> {
        let mut header = self.json();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        raw(&header, &self.data)
    }

    /// The file with a header of an odd length: no tensor is aligned to anything.
    pub fn build_unaligned(self) -> Vec<u8> {
        let mut header = self.json();
        header.push_str(if header.len().is_multiple_of(2) { " " } else { "" });
        raw(&header, &self.data)
    }

    fn json(&self) -> String {
        let mut fields = self.header.clone();
        if !self.metadata.is_empty() {
            fields.insert("__metadata__".to_owned(), serde_json::to_string(&self.metadata).unwrap());
        }
        let fields: Vec<String> =
            fields.iter().map(|(key, value)| format!("{}:{value}", serde_json::to_string(key).unwrap())).collect();
        format!("{{{}}}", fields.join(","))
    }
}

/// A safetensors file of any header and data, right or wrong.
pub fn raw(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}
