#!/usr/bin/env python3
"""Reads .twn files, version 1, as spec/twn-v1.md says; refuses whatever breaks one of its rules.

    import read_twn;  metadata, tensors = read_twn.read("model.twn")   # {name: (dtype, shape, values)}
    python3 spec/read_twn.py model.twn                                 # one line per tensor
Values are floats or ints in C order; for dense types that Python has no number for, the raw bytes."""
import collections, ctypes, hashlib, json, math, pathlib, re, struct, sys, zlib

BITS = {4: "F4", 6: "F6_E2M3 F6_E3M2", 8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
        16: "I16 U16 F16 BF16", 32: "I32 U32 F32", 64: "C64 F64 I64 U64"}
BITS = {name: bits for bits, names in BITS.items() for name in names.split()}
STRUCT = {"BOOL": "B", "U8": "B", "I8": "b", "I16": "h", "U16": "H", "F16": "e", "I32": "i", "U32": "I", "F32": "f",
          "I64": "q", "U64": "Q", "F64": "d"}
# Weights per byte; the weights over α of a byte (None: invalid); what fills up the last byte of a filter. None is int8.
ENCODINGS = {"t2": (4, lambda b: None if b & b >> 1 & 0x55 else [(b >> 2 * i & 3) - 1 for i in range(4)], 0),
             "t5": (5, lambda b: None if b > 242 else [b // 3**i % 3 - 1 for i in range(5)], 0),
             "b1": (8, lambda b: [2 * (b >> i & 1) - 1 for i in range(8)], -1),
             None: (1, lambda b: None if b == 128 else [b - (b >> 7 << 8)], 0)}
# The index: `?` marks what may be absent, `*` stands for any key.
SECTION, SPREAD = {"crc32": int, "length": int, "offset": int}, {"max": float, "mean": float, "min": float}
COUNTS, ERRORS = {"negative": int, "zeros": int, "positive": int}, {"squared_error": float, "squared_norm": float}
INT8 = {"axis": int, "codes": SECTION, "reason?": str, "scale_dtype": str, "scales": SECTION,
        "stats": {"alpha": SPREAD, **ERRORS}}
TERNARY = {**INT8, "encoding": str, "granularity": str, "method": {"name": str, "parameters?": {"*": float}},
           "planes": int, "source_bytes?": int, "stats": {**INT8["stats"], "delta?": SPREAD, **COUNTS}}
TENSOR = {"name": str, "dtype": str, "shape": [int],
          "dense?": {"reason?": str, "repaired?": str, "section": SECTION}, "int8?": INT8, "ternary?": TERNARY}
INDEX = {"metadata": {"*": str}, "producer": {"name": str, "version": str}, "tensors": [TENSOR]}

def need(good, message):
    if not good:
        raise ValueError(message)

def check(value, schema, where):
    if isinstance(schema, dict):
        need(type(value) is dict, f"{where} has to be an object")
        [check(key, str, f"a key of {where}") for key in value]
        for key, kind in schema.items():
            if key == "*":
                [check(member, kind, f"{where}.{name}") for name, member in value.items()]
            elif key[-1] != "?" or value.get(key[:-1]) is not None:
                check(value.get(key.rstrip("?")), kind, f"{where}.{key}")
        need(schema is not SPREAD or 0 <= value["min"] <= value["mean"] <= value["max"], f"{where} is out of order")
    elif isinstance(schema, list):
        need(type(value) is list, f"{where} has to be an array")
        [check(member, schema[0], f"{where}[{i}]") for i, member in enumerate(value)]
    else:
        need(type(value) is schema or schema is float and type(value) is int, f"{where} is missing or of a wrong type")
        need(not re.search("[\ud800-\udfff]", value) if schema is str else math.isfinite(value), f"{where}: {value!r}")

def parse(data):  # -> (metadata, {name: (dtype, shape, values, kind, raw bytes)})
    need(len(data) >= 64 and data[:8] == b"\x89TWN\r\n\x1a\n", "not a .twn file, or its writing was cut off")
    version, features, index_at, length, total, crc = struct.unpack_from("<IIQQQI", data, 8)
    need(zlib.crc32(data[:60]) == struct.unpack_from("<I", data, 60)[0], "prefix: wrong CRC-32")
    need(version == 1 and features == 0, f"version {version} with features {features:#010x} is not known")
    need(total == len(data) == index_at + length, "the file is not as long as its prefix says")
    placed = index_at >= 64 and index_at % 64 == 0 and length <= 100_000_000
    need(placed and not any(data[44:60]), "prefix: index offset, index length or reserved bytes")
    need(zlib.crc32(data[index_at:]) == crc, "index: wrong CRC-32")
    unique = lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else need(False, "index: a key stands twice")
    # An integer has no sign and is less than 2⁶⁴; other numbers become floats. `int` refuses NaN and Infinity.
    integer = lambda text: int(text) if len(text) <= 20 and "-" not in text and int(text) < 2**64 else float(text)
    index = json.loads(data[index_at:].decode(), object_pairs_hook=unique, parse_int=integer, parse_constant=int)
    check(index, INDEX, "index")
    end, tensors, sources = 64, {}, 0
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
        kind, *more = [key for key in ("dense", "int8", "ternary") if entry.get(key) is not None] or [None]
        need(len(name.encode()) <= 4096 and name not in tensors and name != "__metadata__", f"name `{name[:64]}`")
        need(dtype in BITS and len(shape) <= 16, f"{name}: {len(shape)} dimensions of `{dtype}`")
        bits, count = BITS[dtype], math.prod(shape)
        need(count * bits % 8 == 0 and bits * math.prod(d or 1 for d in shape) < 2**64, f"{name}: size of {shape}")
        need(kind and not more, f"{name}: has to be one of dense, int8 and ternary")
        if kind == "dense":
            values = decode_dense(dtype, raw := section(entry["dense"]["section"], count * bits // 8))
        else:
            values, raw = decode(name, dtype, shape, kind, entry[kind], section)
        sources += count * bits // 8 if (own := (entry.get("ternary") or {}).get("source_bytes")) is None else own
        tensors[name] = dtype, shape, values, kind, raw
    need(end == index_at and sources < 2**64, f"index begins at {index_at}, should at {end}; {sources} source bytes")
    return index["metadata"], tensors

def decode(name, dtype, shape, kind, entry, section):
    ternary, axis, scale_dtype = ("planes", "granularity", "encoding"), entry["axis"], entry["scale_dtype"]
    planes, granularity, encoding = (1, "filter", None) if kind == "int8" else map(entry.get, ternary)
    need(dtype in "F64 F32 F16 BF16 F8_E4M3 F8_E5M2".split() and encoding in ENCODINGS, f"{name}: {dtype}, {encoding}")
    need(0 not in shape and axis < len(shape) and 1 <= planes <= 16, f"{name}: {planes} planes of {shape}, axis {axis}")
    filters, inner, n = shape[axis], math.prod(shape[axis + 1:]), math.prod(shape) // shape[axis]
    group = re.fullmatch("filter|tensor|group:([1-9][0-9]{0,19})", granularity)
    known = scale_dtype in ("f32", "f16") and group and int(group[1] or 1) < 2**64
    need(known, f"{name}: scales of {scale_dtype}, granularity `{granularity}`")
    size = int(group[1] or n)  # weights of a filter that share a scale
    groups = 0 if granularity == "tensor" else -(-n // size)
    per_plane = max(filters * groups, 1)
    per_byte, unpack, fill = ENCODINGS[encoding]
    packed = section(entry["codes"], planes * filters * (row := -(-n // per_byte)))  # row: bytes of a filter
    form = f"<{planes * per_plane}{STRUCT[scale_dtype.upper()]}"
    scales = struct.unpack(form, section(entry["scales"], struct.calcsize(form)))
    need(all(math.isfinite(a) and math.copysign(1, a) > 0 for a in scales), f"{name}: negative or infinite scale")
    table, values, seen = [unpack(byte) for byte in range(256)], [0.0] * (filters * n), collections.Counter()
    for p, i in ((p, i) for p in range(planes) for i in range(filters)):
        rows = [table[byte] for byte in packed[(p * filters + i) * row:][:row]]
        need(None not in rows, f"{name}: plane {p}, filter {i}: invalid code")
        codes = [code for codes in rows for code in codes]
        need(all(code == fill for code in codes[n:]), f"{name}: plane {p}, filter {i}: its last byte is not filled up")
        seen.update(codes[:n])
        for j, code in enumerate(codes[:n]):
            term = ctypes.c_float(scales[p * per_plane + i * groups + j // size] * code).value
            at = (j // inner * filters + i) * inner + j % inner
            values[at] = ctypes.c_float(values[at] + term).value if p else term
    stats, spread = entry["stats"], [entry["stats"]["alpha"][key] for key in ("min", "max")]
    counted = kind == "int8" or [stats[key] for key in COUNTS] == [seen[-1], seen[0], seen[1]]
    need(counted and spread == [min(scales), max(scales)] and min(map(stats.get, ERRORS)) >= 0, f"{name}: stats")
    return values, struct.pack(f"<{len(values)}f", *values)

def decode_dense(dtype, raw):
    if dtype in STRUCT:
        return [value for value, in struct.iter_unpack("<" + STRUCT[dtype], raw)]
    if dtype == "BF16":  # the upper half of an F32
        return [struct.unpack("<f", bytes(2) + raw[i:i + 2])[0] for i in range(0, len(raw), 2)]
    if dtype == "F8_E5M2":  # the upper half of an F16
        return [struct.unpack("<e", bytes((0, byte)))[0] for byte in raw]
    if dtype == "F8_E4M3":
        parts = [(1.0 - (byte >> 6 & 2), max(byte >> 3 & 15, 1), (byte & 7) + 8 * (byte & 120 > 0)) for byte in raw]
        return [math.nan if (power, m) == (15, 15) else sign * m * 2.0 ** (power - 10) for sign, power, m in parts]
    return raw

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
