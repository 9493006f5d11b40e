//! A writer of small GGUF files, for tests.

use crate::quant::TensorType;

/// Collects keys and tensors, and writes them as a version 3 file. It writes what it is told, lies included.
#[derive(Default)]
pub(crate) struct GgufBuilder {
    keys: Vec<Vec<u8>>,
    tensors: Vec<(String, TensorType, usize, usize, Vec<u8>)>,
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn key(mut self, name: &str, kind: u32, value: &[u8]) -> Self {
        let mut out = Vec::new();
        put_string(&mut out, name);
        out.extend(kind.to_le_bytes());
        out.extend(value);
        self.keys.push(out);
        self
    }

    pub(crate) fn string(self, name: &str, value: &str) -> Self {
        let mut out = Vec::new();
        put_string(&mut out, value);
        self.key(name, 8, &out)
    }

    pub(crate) fn u32(self, name: &str, value: u32) -> Self {
        self.key(name, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, name: &str, value: f32) -> Self {
        self.key(name, 6, &value.to_le_bytes())
    }

    pub(crate) fn strings<S: AsRef<str>>(self, name: &str, values: &[S]) -> Self {
        let mut out = 8u32.to_le_bytes().to_vec();
        out.extend((values.len() as u64).to_le_bytes());
        for value in values {
            put_string(&mut out, value.as_ref());
        }
        self.key(name, 9, &out)
    }

    pub(crate) fn i32s(self, name: &str, values: &[i32]) -> Self {
        let mut out = 5u32.to_le_bytes().to_vec();
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.key(name, 9, &out)
    }

    /// A tensor of `rows` rows of `columns` elements, with these bytes.
    pub(crate) fn tensor(
        mut self,
        name: &str,
        kind: TensorType,
        columns: usize,
        rows: usize,
        bytes: &[u8],
    ) -> Self {
        self.tensors
            .push((name.into(), kind, columns, rows, bytes.to_vec()));
        self
    }

    pub(crate) fn build(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        let mut data = Vec::new();
        for (name, kind, columns, rows, bytes) in &self.tensors {
            put_string(&mut out, name);
            out.extend(2u32.to_le_bytes());
            out.extend((*columns as u64).to_le_bytes());
            out.extend((*rows as u64).to_le_bytes());
            out.extend(kind.code().to_le_bytes());
            data.resize(data.len().next_multiple_of(32), 0);
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

/// Opens a file of these bytes.
pub(crate) fn open(bytes: &[u8]) -> crate::Result<crate::gguf::Gguf> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    crate::gguf::Gguf::open(file.path())
}
