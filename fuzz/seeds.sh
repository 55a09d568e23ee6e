#!/usr/bin/env bash
# Copies the fixtures into the corpora: small files only, every one under its own name.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p fuzz/corpus/{container,safetensors,round_trip,kernel,network,idx}
find fixtures spec -name '*.twn' -size -17k -exec cp {} fuzz/corpus/container/ \;
find fixtures \( -name '*.safetensors' -o -name '*.index.json' \) -size -17k -exec cp {} fuzz/corpus/safetensors/ \;
# Their inputs have forms of their own (control bytes, then weights or codes); any bytes are a start.
find fixtures -maxdepth 1 -name '*.safetensors' -size -17k -exec cp {} fuzz/corpus/round_trip/ \;
find fixtures -maxdepth 1 -name '*.twn' -size -17k -exec cp {} fuzz/corpus/kernel/ \;
cp src/net/networks/*.toml fixtures/residual/small.toml fuzz/corpus/network/
mkdir -p fuzz/corpus/onnx
cp fixtures/foreign/onnx/*.onnx fuzz/corpus/onnx/
# With codes in every form, of one plane and of two; by the program that TWN_PACK names, or this one.
read -ra program <<< "${TWN_PACK:-cargo run -q --}"
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
for settings in '' planes=2 axis=1; do
    for model in fixtures/foreign/onnx/*.onnx; do
        "${program[@]}" "$model" -o "$scratch/m.twn" --set '*' "keep=ternary,$settings" --force -q
        for format in onnx onnx-nbits; do
            "${program[@]}" export "$scratch/m.twn" --to $format --into "$model" --planes-as-tensors --refused-as-dense \
                -o "fuzz/corpus/onnx/$(basename "$model" .onnx)-$format-$settings" --force -q
        done
    done
done
# Which of the two are gzipped, the length of the images' file (little endian), both files. First two images of 1 × 2.
printf '\0\x14\0\0\0\x08\x03\0\0\0\x02\0\0\0\x01\0\0\0\x02\0\x40\x80\xff\0\0\x08\x01\0\0\0\x02\x07\x01' > fuzz/corpus/idx/small
images=fixtures/mnist64/t10k-images-idx3-ubyte.gz
length=$(wc -c < "$images")
{
    printf "\\x03\\x$(printf %02x $((length % 256)))\\x$(printf %02x $((length / 256)))"
    cat "$images" fixtures/mnist64/t10k-labels-idx1-ubyte.gz
} > fuzz/corpus/idx/mnist64
# The first byte is the kind: .npy images, .npy labels, safetensors, CIFAR-10, CIFAR-100.
mkdir -p fuzz/corpus/arrays
array() { printf '%b\x93NUMPY\x01\x00%b\x00%s%b' "$1" "$2" "$3" "$4"; }
array '\x00' '\x3c' "{'descr': '|u1', 'fortran_order': False, 'shape': (2,1,1,2)}" '\x01\x02\x03\x04' > fuzz/corpus/arrays/images-u1
array '\x00' '\x3c' "{'descr': '<f4', 'fortran_order': False, 'shape': (2,1,1,1)}" '\x00\x00\x80\x3f\x00\x00\x80\x7f' > fuzz/corpus/arrays/images-f4
array '\x01' '\x37' "{'descr': '<i4', 'fortran_order': False, 'shape': (2,)}" '\x00\x00\x00\x00\x07\x00\x00\x00' > fuzz/corpus/arrays/labels-i4
array '\x01' '\x37' "{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}" '\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff' > fuzz/corpus/arrays/labels-i8
tensors='{"images":{"dtype":"U8","shape":[2,1,1,2],"data_offsets":[0,4]},"labels":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}'
printf '\x02%b\x00\x00\x00\x00\x00\x00\x00%s\x01\x02\x03\x04\x00\x01' "\\x$(printf %x ${#tensors})" "$tensors" > fuzz/corpus/arrays/tensors
printf '\x03\x07\x01\x02' > fuzz/corpus/arrays/cifar10
printf '\x04\x07\x09\x08' > fuzz/corpus/arrays/cifar100
# Statistics for `a`, a linear layer of 4 inputs, and `b`, a convolution in two groups of 2.
mkdir -p fuzz/corpus/calibration
statistics() { printf '%b\x00\x00\x00\x00\x00\x00\x00%s%b' "\\x$(printf %x ${#1})" "$1" "$2"; }
one='\x00\x00\x80\x3f' none='\x00\x00\x00\x00'
statistics '{"a.xtx_diagonal":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}' "$one$one$none$one" > fuzz/corpus/calibration/diagonal
statistics '{"a.xtx":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}' "$one$none$none$none$none$one$none$none$none$none$one$none$none$none$none$one" > fuzz/corpus/calibration/full
statistics '{"b.xtx":{"dtype":"F32","shape":[2,2,2],"data_offsets":[0,32]}}' "$one$none$none$one$one$none$none$one" > fuzz/corpus/calibration/groups
# config.json, a zero, and a safetensors file: one packed row of two weights, of four rows each, and its scale.
mkdir -p fuzz/corpus/bitnet
packed='{"a.weight":{"dtype":"U8","shape":[1,2],"data_offsets":[0,2]},"a.weight_scale":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'
for class in bitlinear autobitlinear; do
    printf '{"dtype":"float16","quantization_config":{"quant_method":"bitnet","linear_class":"%s"}}\0%b\x00\x00\x00\x00\x00\x00\x00%s\x55\xa2%b' \
        "$class" "\\x$(printf %x ${#packed})" "$packed" "$one" > fuzz/corpus/bitnet/$class
done
# A file of gguf-py; and `w` of one block of each ternary type, with the keys of an export.
mkdir -p fuzz/corpus/gguf
cp fixtures/foreign/gguf/small.gguf fuzz/corpus/gguf/
block() {
    local keys='{"w":{"axis":0,"dtype":"F16","granularity":"filter","shape":[1,4,64]}}' u64='\x00\x00\x00\x00\x00\x00\x00'
    printf "GGUF\\x03\\x00\\x00\\x00\\x01$u64\\x01$u64"
    printf "\\x10${u64}twn_pack.tensors\\x08\\x00\\x00\\x00\\x$(printf %02x ${#keys})$u64%s" "$keys"
    printf "\\x01${u64}w\\x02\\x00\\x00\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x01$u64\\x$(printf %02x "$1")\\x00\\x00\\x00\\x00$u64"
    # The header has 171 bytes; the data begin at the next multiple of 32.
    printf '\x00%.0s' {172..192}
    sed -n "s/.*\"ggml_$2\": \"\([0-9a-f]*\)\".*/\1/p" fixtures/trits256.json | sed 's/../\\x&/g' | xargs -0 printf '%b'
}
block 34 tq1_0 > fuzz/corpus/gguf/tq1_0
block 35 tq2_0 > fuzz/corpus/gguf/tq2_0
block 42 q2_0 > fuzz/corpus/gguf/q2_0
mkdir -p fuzz/corpus/{pytorch,npz}
find fixtures/foreign/pytorch -type f -size -17k \( -name '*.pt' -o -name '*.bin' \) -exec cp {} fuzz/corpus/pytorch/ \;
find fixtures/foreign/npz -type f -size -17k \( -name '*.np?' -o -name '*.zip' \) -exec cp {} fuzz/corpus/npz/ \;
# Behind a zero: a pickle, which gets a storage of 24 bytes; an array.
printf '\0\x80\x02}(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0%sX\x03\0\0\0cpuK\x06tQK\x00K\x02K\x03\x86K\x01K\x02\x86\x89NtRu.' 0 > fuzz/corpus/pytorch/pickle
array '\0' '\x37' "{'descr': '<f4', 'fortran_order': True, 'shape': (2,1)}" '\0\0\0\0\0\0\0\0' > fuzz/corpus/npz/array
