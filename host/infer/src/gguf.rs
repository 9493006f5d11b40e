//! GGUF files, versions 2 and 3, read over a memory map. Nothing in such a file is trusted: every count,
//! length, offset and type is checked before it is used, and an error names the field that lies.
//!
//! Source of the format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashMap;
use std::path::Path;

use crate::memory::MappedFile;
use crate::quant::TensorType;
use crate::weights::{Source, TensorInfo};
use crate::{Error, Result};

/// Bounds on what a file may claim, far above any real model's, so that a lie costs no memory.
const MAX_TENSORS: u64 = 1 << 20;
const MAX_KEYS: u64 = 1 << 20;
const MAX_NESTING: u32 = 4;

/// A value of a file's metadata. Arrays keep their elements apart, so that a vocabulary costs one vector.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
}

/// A checked file.
#[derive(Debug)]
pub(crate) struct Gguf {
    file: MappedFile,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
}

impl Gguf {
    /// Maps the file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        let (metadata, tensors) = parse(file.bytes())?;
        Ok(Self {
            file,
            metadata,
            tensors,
        })
    }

    /// Length of the file.
    pub(crate) fn len(&self) -> usize {
        self.file.bytes().len()
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A string that must be there.
    pub(crate) fn string(&self, key: &str) -> Result<&str> {
        self.optional_string(key)?.ok_or_else(|| missing(key))
    }

    /// A string that may be there.
    pub(crate) fn optional_string(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong_type(key, "a string")),
        }
    }

    /// A whole number of 32 bits that must be there.
    pub(crate) fn u32(&self, key: &str) -> Result<u32> {
        self.optional_u32(key)?.ok_or_else(|| missing(key))
    }

    /// A whole number of 32 bits that may be there.
    pub(crate) fn optional_u32(&self, key: &str) -> Result<Option<u32>> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(number)) => u32::try_from(*number).ok(),
            Some(Value::Signed(number)) => u32::try_from(*number).ok(),
            Some(_) => None,
        };
        number
            .map(Some)
            .ok_or_else(|| wrong_type(key, "a whole number of 32 bits"))
    }

    /// A number that may be there.
    pub(crate) fn optional_f32(&self, key: &str) -> Result<Option<f32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(*number as f32)),
            Some(_) => Err(wrong_type(key, "a finite floating-point number")),
        }
    }

    /// A truth value that may be there.
    pub(crate) fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(wrong_type(key, "true or false")),
        }
    }

    /// An array that must be there.
    pub(crate) fn array(&self, key: &str) -> Result<&[Value]> {
        match self.get(key) {
            None => Err(missing(key)),
            Some(Value::Array(values)) => Ok(values),
            Some(_) => Err(wrong_type(key, "an array")),
        }
    }

    /// Tells the system that the tensors' pages were copied and need not stay in memory.
    pub(crate) fn release_pages(&self) {
        self.file.release_pages();
    }
}

impl Source for Gguf {
    fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let info = self.tensors.get(name)?;
        let end = info.offset + info.bytes;
        Some((info, self.file.bytes().get(info.offset..end)?))
    }

    fn tensors(&self) -> Box<dyn Iterator<Item = (&str, &TensorInfo)> + '_> {
        let all = self.tensors.iter();
        Box::new(all.map(|(name, info)| (name.as_str(), info)))
    }

    fn invalid(&self, what: String) -> Error {
        Error::Gguf(what)
    }
}

fn missing(key: &str) -> Error {
    Error::Gguf(format!("the key `{key}` is missing"))
}

fn wrong_type(key: &str, wanted: &str) -> Error {
    Error::Gguf(format!("the key `{key}` is not {wanted}"))
}

type Header = (HashMap<String, Value>, HashMap<String, TensorInfo>);

/// Reads and checks the header of a file's bytes.
fn parse(bytes: &[u8]) -> Result<Header> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4, "the magic")? != b"GGUF" {
        return Err(Error::Gguf("it does not begin with `GGUF`".into()));
    }
    let version = reader.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(Error::Gguf(format!(
            "version {version}; 2 and 3 are known (a big-endian file reads as another)"
        )));
    }
    let tensor_count = reader.u64("the tensor count")?;
    let key_count = reader.u64("the key count")?;
    if tensor_count > MAX_TENSORS || key_count > MAX_KEYS {
        return Err(Error::Gguf(format!(
            "it claims {tensor_count} tensors and {key_count} keys"
        )));
    }
    let mut metadata = HashMap::new();
    for index in 0..key_count {
        let key = reader.string(&format!("key {index}"))?;
        let kind = reader.u32(&format!("the type of key `{key}`"))?;
        let value = reader.value(kind, &key, 0)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Error::Gguf(format!("the key `{key}` is given twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n as usize,
        Some(_) => {
            return Err(wrong_type(
                "general.alignment",
                "a power of two up to 1 MiB",
            ));
        }
    };
    let mut claims = Vec::new();
    for index in 0..tensor_count {
        claims.push(reader.tensor(index)?);
    }
    let data = reader
        .at
        .checked_next_multiple_of(alignment)
        .unwrap_or(usize::MAX);
    let mut tensors = HashMap::new();
    for (name, mut info, offset) in claims {
        let start = usize::try_from(offset)
            .ok()
            .and_then(|offset| data.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(info.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= bytes.len() => info.offset = start,
            _ => {
                return Err(Error::Gguf(format!(
                    "tensor {name}: offset {offset} + {} bytes lies beyond the file's {}",
                    info.bytes,
                    bytes.len().saturating_sub(data)
                )));
            }
        }
        if !offset.is_multiple_of(alignment as u64) {
            return Err(Error::Gguf(format!(
                "tensor {name}: offset {offset} is not a multiple of {alignment}"
            )));
        }
        if tensors.insert(name.clone(), info).is_some() {
            return Err(Error::Gguf(format!("tensor {name} is given twice")));
        }
    }
    Ok((metadata, tensors))
}

/// A cursor that never passes the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(Error::Gguf(format!(
                "{what}: {count} bytes at {} lie beyond the file's {}",
                self.at,
                self.bytes.len()
            )));
        };
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A length that fits into memory; whether the bytes are there is for [`Self::take`] to say.
    fn length(&mut self, what: &str) -> Result<usize> {
        let length = self.u64(what)?;
        usize::try_from(length).map_err(|_| Error::Gguf(format!("{what}: a length of {length}")))
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let length = self.length(what)?;
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(Error::Gguf(format!("{what}: not UTF-8 ({error})"))),
        }
    }

    fn value(&mut self, kind: u32, key: &str, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>(key)?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => match self.array::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => {
                    return Err(Error::Gguf(format!(
                        "key `{key}`: {other} is neither true nor false"
                    )));
                }
            },
            8 => Value::String(self.string(&format!("the value of key `{key}`"))?),
            9 => self.values(key, depth)?,
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => {
                return Err(Error::Gguf(format!(
                    "key `{key}`: unknown value type {other}"
                )));
            }
        })
    }

    fn values(&mut self, key: &str, depth: u32) -> Result<Value> {
        if depth >= MAX_NESTING {
            return Err(Error::Gguf(format!(
                "key `{key}`: arrays nested more than {MAX_NESTING} deep"
            )));
        }
        let kind = self.u32(key)?;
        let count = self.length(key)?;
        // The smallest encoding of an element; a count that can not fit costs no memory.
        let smallest = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        let left = self.bytes.len() - self.at;
        if count
            .checked_mul(smallest)
            .is_none_or(|needed| needed > left)
        {
            return Err(Error::Gguf(format!(
                "key `{key}`: {count} elements do not fit into the {left} bytes left"
            )));
        }
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(self.value(kind, key, depth + 1)?);
        }
        Ok(Value::Array(values))
    }

    /// A tensor's claim: its name, its checked shape, and its offset from the start of the data.
    fn tensor(&mut self, index: u64) -> Result<(String, TensorInfo, u64)> {
        let name = self.string(&format!("the name of tensor {index}"))?;
        let dimensions = self.u32(&format!("tensor {name}: its dimension count"))?;
        if !(1..=4).contains(&dimensions) {
            return Err(Error::Gguf(format!(
                "tensor {name}: {dimensions} dimensions; 1 to 4 are known"
            )));
        }
        let mut shape = [1usize; 4];
        for size in shape.iter_mut().take(dimensions as usize) {
            *size = self.length(&format!("tensor {name}: its shape"))?;
        }
        let code = self.u32(&format!("tensor {name}: its type"))?;
        let offset = self.u64(&format!("tensor {name}: its offset"))?;
        let Some(kind) = TensorType::from_code(code) else {
            return Err(Error::Unsupported(format!(
                "tensor {name}: tensor type {code} is not known"
            )));
        };
        let [columns, rest @ ..] = shape;
        let rows = rest
            .iter()
            .try_fold(1usize, |product, size| product.checked_mul(*size));
        let too_large = || Error::Gguf(format!("tensor {name}: the shape {shape:?} is too large"));
        let rows = rows.ok_or_else(too_large)?;
        if columns == 0 || rows == 0 {
            return Err(Error::Gguf(format!(
                "tensor {name}: the shape {shape:?} holds nothing"
            )));
        }
        if !columns.is_multiple_of(kind.block_len()) {
            return Err(Error::Gguf(format!(
                "tensor {name}: rows of {columns} are no multiple of {kind}'s blocks of {}",
                kind.block_len()
            )));
        }
        let bytes = (columns / kind.block_len())
            .checked_mul(kind.block_bytes())
            .and_then(|row| row.checked_mul(rows));
        let bytes = bytes.ok_or_else(too_large)?;
        Ok((
            name,
            TensorInfo {
                kind,
                columns,
                rows,
                offset: 0,
                bytes,
            },
            offset,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::GgufBuilder;
    use proptest::prelude::*;

    fn small() -> Vec<u8> {
        GgufBuilder::new()
            .string("general.architecture", "llama")
            .u32("llama.block_count", 2)
            .f32("llama.rope.freq_base", 1e4)
            .strings("tokenizer.ggml.tokens", &["a", "b", "ab"])
            .tensor("x.weight", TensorType::F32, 4, 2, &[0; 32])
            .tensor("y.weight", TensorType::Q8_0, 32, 1, &[7; 34])
            .build()
    }

    #[test]
    fn a_sound_file_gives_its_keys_and_tensors() {
        let (metadata, tensors) = parse(&small()).unwrap();
        assert_eq!(metadata["llama.block_count"], Value::Unsigned(2));
        assert_eq!(tensors["y.weight"].columns, 32);
        assert_eq!(tensors["x.weight"].rows, 2);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let bytes = small();
        let (_, tensors) = parse(&bytes).unwrap();
        let end = tensors.values().map(|t| t.offset + t.bytes).max().unwrap();
        for length in 0..end {
            let error = parse(&bytes[..length]).unwrap_err().to_string();
            assert!(
                error.contains("beyond") || error.contains("do not fit"),
                "cut at {length}: {error}"
            );
        }
    }

    #[test]
    fn a_tensor_beyond_the_end_is_named_with_its_numbers() {
        let bytes = GgufBuilder::new()
            .tensor("blk.3.attn_q.weight", TensorType::F32, 4, 2, &[0; 16])
            .build();
        let error = parse(&bytes).unwrap_err().to_string();
        assert!(
            error.contains(
                "tensor blk.3.attn_q.weight: offset 0 + 32 bytes lies beyond the file's 16"
            ),
            "{error}"
        );
    }

    #[test]
    fn lying_counts_cost_no_memory() {
        let mut huge_array = b"GGUF\x03\0\0\0".to_vec();
        huge_array.extend(0u64.to_le_bytes());
        huge_array.extend(1u64.to_le_bytes());
        huge_array.extend(1u64.to_le_bytes());
        huge_array.push(b'k');
        huge_array.extend(9u32.to_le_bytes());
        huge_array.extend(4u32.to_le_bytes());
        huge_array.extend((u64::MAX / 2).to_le_bytes());
        assert!(
            parse(&huge_array)
                .unwrap_err()
                .to_string()
                .contains("key `k`")
        );
        let mut huge_counts = b"GGUF\x03\0\0\0".to_vec();
        huge_counts.extend(u64::MAX.to_le_bytes());
        huge_counts.extend(u64::MAX.to_le_bytes());
        assert!(
            parse(&huge_counts)
                .unwrap_err()
                .to_string()
                .contains("claims")
        );
    }

    #[test]
    fn rows_that_do_not_hold_whole_blocks_are_refused_by_name() {
        for kind in TensorType::ALL
            .into_iter()
            .filter(|kind| kind.block_len() > 1)
        {
            let columns = kind.block_len() * 5 / 2;
            let bytes = GgufBuilder::new()
                .tensor("t", kind, columns, 2, &[0; 4096])
                .build();
            let error = parse(&bytes).unwrap_err().to_string();
            let wanted = format!("rows of {columns} are no multiple of {kind}'s blocks");
            assert!(error.contains(&wanted), "{error}");
        }
    }

    #[test]
    fn an_overflowing_shape_is_refused_by_name() {
        for (columns, rows) in [(usize::MAX / 8, 64), (1 << 40, 1 << 40)] {
            let bytes = GgufBuilder::new()
                .tensor("t", TensorType::F32, columns, rows, &[])
                .build();
            assert!(parse(&bytes).unwrap_err().to_string().contains("tensor t"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_damage_gives_a_file_or_an_error_and_never_a_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(), truncate in any::<bool>(),
        ) {
            let mut bytes = small();
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if truncate {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok((_, tensors)) = parse(&bytes) {
                for info in tensors.values() {
                    prop_assert!(info.offset + info.bytes <= bytes.len());
                }
            }
        }
    }
}
