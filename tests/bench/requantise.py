#!/usr/bin/env python3
"""The default model's file in another tensor type, to measure that type's speed where only one file can be had.

    pip install gguf
    tests/bench/requantise.py MODEL.gguf F16|BF16|F32|Q8_0|Q4_0|Q4_1|Q5_0|Q5_1 OUT.gguf

Every matrix is widened to f32 and rounded to the new type; vectors (norms) stay as they are. The file is no better than
its source: use it for speed, or to compare two engines on one file, not to judge answers.
"""

import sys

import gguf


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    source, kind, target = sys.argv[1:]
    kind = gguf.GGMLQuantizationType[kind]
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        # The header's own fields, and what the writer has written already.
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        types = field.types
        sub = types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), types[0], sub)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values.astype("float32"))
            continue
        packed = gguf.quantize(values, kind)
        writer.add_tensor(tensor.name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
