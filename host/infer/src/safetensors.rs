//! safetensors files, read over a memory map: a length, a JSON header that names each tensor's type, shape and place,
//! then the tensors. Nothing in such a file is trusted.
//!
//! Source of the format: <https://github.com/huggingface/safetensors>, `README.md`.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::memory::MappedFile;
use crate::quant::TensorType;
use crate::weights::TensorInfo;
use crate::{Error, Result};

/// Bounds on what a file may claim: the format's own for the header, and one far above any real model's.
const LONGEST_HEADER: u64 = 100_000_000;
const MOST_TENSORS: usize = 1 << 20;

/// A checked file.
#[derive(Debug)]
pub(crate) struct Safetensors {
    file: MappedFile,
    pub(crate) tensors: HashMap<String, TensorInfo>,
    /// Names and types of tensors that are not numbers of a kind that this version computes with.
    pub(crate) others: HashMap<String, String>,
}

impl Safetensors {
    /// Maps the file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        let named = |error| match error {
            Error::Folder(what) => Error::Folder(format!("{}: {what}", path.display())),
            other => other,
        };
        let (tensors, others) = parse(file.bytes()).map_err(named)?;
        Ok(Self {
            file,
            tensors,
            others,
        })
    }

    /// Length of the file.
    pub(crate) fn len(&self) -> usize {
        self.file.bytes().len()
    }

    /// The bytes of one of its tensors.
    pub(crate) fn bytes(&self, info: &TensorInfo) -> Option<&[u8]> {
        self.file.bytes().get(info.offset..info.offset + info.bytes)
    }

    /// Tells the system that the tensors' pages were copied and need not stay in memory.
    pub(crate) fn release_pages(&self) {
        self.file.release_pages();
    }
}

/// What the header says of a tensor.
#[derive(Deserialize)]
struct Claim {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The header's entries in their order; a map would hide that a name is given twice.
struct Entries(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Entries, A::Error> {
                let mut out = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    out.push(entry);
                }
                Ok(Entries(out))
            }
        }
        from.deserialize_map(Reader)
    }
}

type Header = (HashMap<String, TensorInfo>, HashMap<String, String>);

fn parse(bytes: &[u8]) -> Result<Header> {
    let invalid = |what: String| Err(Error::Folder(what));
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return invalid("it is shorter than the length of its header".into());
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER || length > rest.len() as u64 {
        return invalid(format!(
            "a header of {length} bytes, but {} bytes follow (and {LONGEST_HEADER} is the most)",
            rest.len()
        ));
    }
    let (header, data) = rest.split_at(length as usize);
    let Entries(entries) = match serde_json::from_slice(header) {
        Ok(entries) => entries,
        Err(error) => return invalid(format!("its header: {error}")),
    };
    if entries.len() > MOST_TENSORS {
        return invalid(format!("it claims {} tensors", entries.len()));
    }
    let (mut tensors, mut others) = (HashMap::new(), HashMap::new());
    let mut places = Vec::new();
    for (name, claim) in entries {
        if name == "__metadata__" {
            continue;
        }
        let claim = match Claim::deserialize(claim) {
            Ok(claim) => claim,
            Err(error) => return invalid(format!("tensor {name}: {error}")),
        };
        let Claim {
            dtype,
            shape,
            data_offsets: [start, end],
        } = claim;
        let (kind, size) = match dtype.as_str() {
            "F32" => (Some(TensorType::F32), 4),
            "F16" => (Some(TensorType::F16), 2),
            "BF16" => (Some(TensorType::Bf16), 2),
            "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" => (None, 1),
            "I16" | "U16" => (None, 2),
            "I32" | "U32" => (None, 4),
            "F64" | "I64" | "U64" => (None, 8),
            other => {
                return Err(Error::Unsupported(format!(
                    "tensor {name}: the type `{other}`; F32, F16 and BF16 are supported"
                )));
            }
        };
        let product = |sizes: &[usize]| {
            sizes
                .iter()
                .try_fold(1usize, |product, size| product.checked_mul(*size))
        };
        let wanted = product(&shape).and_then(|count| count.checked_mul(size));
        if start > end || end > data.len() {
            return invalid(format!(
                "tensor {name}: the bytes {start} to {end} are not within the file's {}",
                data.len()
            ));
        }
        if wanted != Some(end - start) {
            return invalid(format!(
                "tensor {name}: {} bytes do not hold a shape of {shape:?} of {dtype}",
                end - start
            ));
        }
        if tensors.contains_key(&name) || others.contains_key(&name) {
            return invalid(format!("tensor {name} is given twice"));
        }
        places.push((start, end, name.clone()));
        let (columns, rows) = match shape.split_last() {
            None => (1, 1),
            Some((columns, rest)) => (*columns, product(rest).unwrap_or(0)),
        };
        match kind {
            Some(kind) if columns > 0 && rows > 0 => {
                let info = TensorInfo {
                    kind,
                    columns,
                    rows,
                    offset: 8 + length as usize + start,
                    bytes: end - start,
                };
                tensors.insert(name, info);
            }
            _ => {
                others.insert(name, dtype);
            }
        }
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        let [(_, end, first), (start, _, second)] = pair else {
            continue;
        };
        if start < end {
            return invalid(format!("the bytes of tensors {first} and {second} overlap"));
        }
    }
    Ok((tensors, others))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.resize(out.len() + data, 7);
        out
    }

    fn small() -> Vec<u8> {
        file(
            r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"ids":{"dtype":"I64","shape":[1,2],"data_offsets":[32,48]}}"#,
            48,
        )
    }

    #[test]
    fn a_sound_file_gives_its_tensors() {
        let bytes = small();
        let (tensors, others) = parse(&bytes).unwrap();
        let a = &tensors["a"];
        assert_eq!(
            (a.kind, a.rows, a.columns, a.bytes),
            (TensorType::F32, 2, 3, 24)
        );
        assert_eq!(a.offset + 24, tensors["b"].offset);
        assert_eq!((tensors["b"].rows, tensors["b"].columns), (1, 4));
        assert_eq!(others["ids"], "I64");
    }

    #[test]
    fn every_lie_is_named() {
        let one = |claim: &str| file(&format!(r#"{{"t":{claim}}}"#), 16);
        for (bytes, wanted) in [
            (small()[..5].to_vec(), "shorter"),
            (small()[..60].to_vec(), "bytes follow"),
            (
                u64::MAX.to_le_bytes().to_vec(),
                "a header of 18446744073709551615 bytes",
            ),
            (file("{", 0), "its header"),
            (file("[1]", 0), "its header"),
            (one("3"), "tensor t"),
            (
                one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#),
                "tensor t",
            ),
            (one(r#"{"dtype":"F32","data_offsets":[0,4]}"#), "`shape`"),
            (
                one(r#"{"dtype":"F4","shape":[4],"data_offsets":[0,2]}"#),
                "the type `F4`",
            ),
            (
                one(r#"{"dtype":"F32","shape":[5],"data_offsets":[0,20]}"#),
                "not within the file's 16",
            ),
            (
                one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
                "not within",
            ),
            (
                one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,16]}"#),
                "do not hold a shape of [2]",
            ),
            (
                one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}"#),
                "do not hold a shape",
            ),
            (
                file(
                    r#"{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[4],"data_offsets":[6,14]}}"#,
                    16,
                ),
                "tensors a and b overlap",
            ),
            (
                file(
                    r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"a":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#,
                    16,
                ),
                "tensor a is given twice",
            ),
        ] {
            let error = parse(&bytes).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error} does not say `{wanted}`");
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let bytes = small();
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "cut at {length}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_damage_gives_a_file_or_an_error_and_never_a_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            digits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 0..4),
        ) {
            let mut bytes = small();
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            for (at, value) in digits {
                let at = at.index(bytes.len());
                if bytes[at].is_ascii_digit() {
                    bytes[at] = value;
                }
            }
            if let Ok((tensors, _)) = parse(&bytes) {
                for info in tensors.values() {
                    prop_assert!(info.offset + info.bytes <= bytes.len());
                    prop_assert_eq!(info.rows * info.kind.row_bytes(info.columns), info.bytes);
                }
            }
        }
    }
}
