#!/usr/bin/env python3
"""Reads .twn files, version 1, as spec/twn-v1.md says; refuses whatever breaks one of its rules.

    import read_twn;  metadata, tensors = read_twn.read("model.twn")   # {name: (dtype, shape, values)}
    python3 spec/read_twn.py model.twn                                 # one line per tensor
Values are floats or ints in C order; for dense types that Python has no number for, the raw bytes."""
import ctypes, hashlib, json, math, pathlib, re, struct, sys, zlib

BITS = {4: "F4", 6: "F6_E2M3 F6_E3M2", 8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
        16: "I16 U16 F16 BF16", 32: "I32 U32 F32", 64: "C64 F64 I64 U64"}
BITS = {name: bits for bits, names in BITS.items() for name in names.split()}
STRUCT = {"BOOL": "B", "U8": "B", "I8": "b", "I16": "h", "U16": "H", "F16": "e", "I32": "i", "U32": "I", "F32": "f",
          "I64": "q", "U64": "Q", "F64": "d"}
SCALES = {"f32": "f", "f16": "e"}
# Weights per byte; the codes in a byte (None: invalid); the code that fills up the last byte of a filter.
ENCODINGS = {"t2": (4, lambda b: None if b & b >> 1 & 0x55 else [b >> 2 * i & 3 for i in range(4)], 1),
             "t5": (5, lambda b: None if b > 242 else [b // 3**i % 3 for i in range(5)], 1),
             "b1": (8, lambda b: [2 * (b >> i & 1) for i in range(8)], 0)}
# The index: `?` marks what may be absent, `*` stands for any key.
SECTION, SPREAD = {"crc32": int, "length": int, "offset": int}, {"max": float, "mean": float, "min": float}
COUNTS, ERRORS = {"negative": int, "zeros": int, "positive": int}, {"squared_error": float, "squared_norm": float}
TERNARY = {"axis": int, "codes": SECTION, "encoding": str, "granularity": str, "planes": int, "reason?": str,
           "scale_dtype": str,
           "method": {"name": str, "parameters?": {"*": float}}, "scales": SECTION,
           "stats": {"alpha": SPREAD, "delta?": SPREAD, **COUNTS, **ERRORS}}
INT8 = {"axis": int, "codes": SECTION, "reason?": str, "scale_dtype": str, "scales": SECTION,
        "stats": {"alpha": SPREAD, **ERRORS}}
TENSOR = {"name": str, "dtype": str, "shape": [int],
          "dense?": {"reason?": str, "repaired?": str, "section": SECTION}, "int8?": INT8, "ternary?": TERNARY}
INDEX = {"metadata": {"*": str}, "producer": {"name": str, "version": str}, "tensors": [TENSOR]}

def need(good, message):
    if not good:
        raise ValueError(message)

def check(value, schema, where):
    if isinstance(schema, dict):
        need(type(value) is dict, f"{where} has to be an object")
        for key, kind in schema.items():
            if key == "*":
                [check(member, kind, f"{where}.{name}") for name, member in value.items()]
            elif key[-1] != "?" or value.get(key[:-1]) is not None:
                check(value.get(key.rstrip("?")), kind, f"{where}.{key}")
    elif isinstance(schema, list):
        need(type(value) is list, f"{where} has to be an array")
        [check(member, schema[0], f"{where}[{i}]") for i, member in enumerate(value)]
    else:
        good = type(value) is schema or schema is float and type(value) is int
        need(good and (schema is not int or 0 <= value < 2**64), f"{where} is missing, of a wrong type or out of range")

def unique(pairs):
    keys = dict(pairs)
    need(len(keys) == len(pairs), "index: a key stands twice")
    return keys

def parse(data):  # -> (metadata, {name: (dtype, shape, values, kind, raw bytes)})
    need(len(data) >= 64 and data[:8] == b"\x89TWN\r\n\x1a\n", "not a .twn file, or its writing was cut off")
    version, features, index_at, length, total, crc = struct.unpack_from("<IIQQQI", data, 8)
    need(zlib.crc32(data[:60]) == struct.unpack_from("<I", data, 60)[0], "prefix: wrong CRC-32")
    need(version == 1 and features == 0, f"version {version} with features {features:#010x} is not known")
    need(total == len(data) == index_at + length, "the file is not as long as its prefix says")
    placed = index_at >= 64 and index_at % 64 == 0 and length <= 100_000_000
    need(placed and not any(data[44:60]), "prefix: index offset, index length or reserved bytes")
    need(zlib.crc32(data[index_at:]) == crc, "index: wrong CRC-32")
    index = json.loads(data[index_at:].decode(), object_pairs_hook=unique, parse_constant=lambda x: need(False, x))
    check(index, INDEX, "index")
    end, tensors = 64, {}
    def section(place, size):
        nonlocal end  # where the next section has to begin
        start, stop = place["offset"], place["offset"] + place["length"]
        need(start == end and stop <= index_at, f"section at {start} should begin at {end} and end before {index_at}")
        need(stop - start == size, f"section at {start} has {stop - start} bytes, should have {size}")
        need(zlib.crc32(data[start:stop]) == place["crc32"], f"section at {start}: wrong CRC-32")
        end = -(-stop // 64) * 64
        need(not any(data[stop:end]), f"padding after byte {stop} is not zero")
        return data[start:stop]
    for entry in index["tensors"]:
        name, dtype, shape = (entry[key] for key in ("name", "dtype", "shape"))
        dense, int8, ternary = map(entry.get, ("dense", "int8", "ternary"))
        need(len(name.encode()) <= 4096 and name not in tensors and name != "__metadata__", f"name `{name[:64]}`")
        need(dtype in BITS, f"{name}: dtype `{dtype}` is not known")
        bits, count = BITS[dtype], math.prod(shape)
        fits = len(shape) <= 16 and math.prod(max(d, 1) for d in shape) * bits < 2**64
        need(fits and count * bits % 8 == 0, f"{name}: shape {shape} is over the limits or no whole number of bytes")
        need([dense, int8, ternary].count(None) == 2, f"{name}: has to be one of dense, int8 and ternary")
        if dense is not None:
            raw = section(dense["section"], count * bits // 8)
            tensors[name] = dtype, shape, decode_dense(dtype, raw), "dense", raw
        else:
            kind, decode = ("ternary", decode_ternary) if int8 is None else ("int8", decode_int8)
            values = decode(name, dtype, shape, entry[kind], section)
            tensors[name] = dtype, shape, values, kind, struct.pack(f"<{count}f", *values)
    need(end == index_at, f"index begins at {index_at}, should begin at {end}")
    return index["metadata"], tensors

def layout(name, dtype, shape, axis):  # -> (filters, inner, n)
    need(dtype in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"), f"{name}: {dtype} cannot have filters")
    need(axis < len(shape) and 0 not in shape, f"{name}: axis or shape")
    return shape[axis], math.prod(shape[axis + 1:]), math.prod(shape) // shape[axis]

def read_scales(name, count, entry, section):
    need(entry["scale_dtype"] in SCALES, f"{name}: scales of {entry['scale_dtype']} are not known")
    form = f"<{count}{SCALES[entry['scale_dtype']]}"
    scales = struct.unpack(form, section(entry["scales"], struct.calcsize(form)))
    need(all(math.isfinite(a) and math.copysign(1, a) > 0 for a in scales), f"{name}: negative or infinite scale")
    spread, errors = entry["stats"]["alpha"], [entry["stats"][key] for key in ERRORS]
    need((spread["min"], spread["max"]) == (min(scales), max(scales)) and min(errors) >= 0, f"{name}: stats")
    return scales

def decode_int8(name, dtype, shape, entry, section):
    filters, inner, n = layout(name, dtype, shape, entry["axis"])
    codes = struct.unpack(f"<{filters * n}b", section(entry["codes"], filters * n))
    need(-128 not in codes, f"{name}: code -128")
    scales, values = read_scales(name, filters, entry, section), [0.0] * (filters * n)
    for i, j in ((i, j) for i in range(filters) for j in range(n)):
        at = (j // inner * filters + i) * inner + j % inner
        values[at] = ctypes.c_float(scales[i] * codes[i * n + j]).value
    return values

def decode_ternary(name, dtype, shape, entry, section):
    filters, inner, n = layout(name, dtype, shape, entry["axis"])
    planes, granularity, encoding = entry["planes"], entry["granularity"], entry["encoding"]
    group = re.fullmatch("group:([1-9][0-9]{0,19})", granularity)
    need(1 <= planes <= 16 and encoding in ENCODINGS, f"{name}: {planes} planes of `{encoding}`")
    need(granularity in ("filter", "tensor") or group and int(group[1]) < 2**64, f"{name}: granularity `{granularity}`")
    size = int(group[1]) if group else n  # weights of a filter that share a scale
    groups = -(-n // size)
    per_plane = 1 if granularity == "tensor" else filters * groups
    per_byte, unpack, fill = ENCODINGS[encoding]
    packed = section(entry["codes"], planes * filters * (row := -(-n // per_byte)))  # row: bytes of a filter
    scales = read_scales(name, planes * per_plane, entry, section)
    table, values, seen = [unpack(byte) for byte in range(256)], [0.0] * (filters * n), [0, 0, 0]
    for p, i in ((p, i) for p in range(planes) for i in range(filters)):
        rows = [table[byte] for byte in packed[(p * filters + i) * row:][:row]]
        need(None not in rows, f"{name}: plane {p}, filter {i}: invalid code")
        codes = [code for codes in rows for code in codes]
        need(all(code == fill for code in codes[n:]), f"{name}: plane {p}, filter {i}: its last byte is not filled up")
        for j, code in enumerate(codes[:n]):
            alpha = scales[p * per_plane + (0 if granularity == "tensor" else i * groups + j // size)]
            term, at = (-alpha, 0.0, alpha)[code], (j // inner * filters + i) * inner + j % inner
            values[at] = ctypes.c_float(values[at] + term).value if p else term
            seen[code] += 1
    need([entry["stats"][key] for key in COUNTS] == seen, f"{name}: counts")
    return values

def decode_dense(dtype, raw):
    if dtype in STRUCT:
        return [value for value, in struct.iter_unpack("<" + STRUCT[dtype], raw)]
    if dtype == "BF16":  # the upper half of an F32
        return [struct.unpack("<f", bytes(2) + raw[i:i + 2])[0] for i in range(0, len(raw), 2)]
    if dtype == "F8_E5M2":  # the upper half of an F16
        return [struct.unpack("<e", bytes((0, byte)))[0] for byte in raw]
    return [e4m3(byte) for byte in raw] if dtype == "F8_E4M3" else raw

def e4m3(byte):
    exponent, mantissa, sign = byte >> 3 & 15, byte & 7, -1 if byte & 128 else 1
    magnitude = (mantissa + 8) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return sign * (math.nan if byte & 127 == 127 else magnitude)

def read(path):
    metadata, tensors = parse(pathlib.Path(path).read_bytes())
    return metadata, {name: tensor[:3] for name, tensor in tensors.items()}

def main(path):
    try:
        for name, (dtype, shape, _, kind, raw) in parse(pathlib.Path(path).read_bytes())[1].items():
            print(json.dumps(name), dtype, str(shape).replace(" ", ""), kind, hashlib.sha256(raw).hexdigest())
    except (OSError, ValueError, RecursionError) as error:
        sys.exit(f"{path}: {error}".replace("\n", " "))

if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) == 2 else sys.exit("usage: read_twn.py FILE")
