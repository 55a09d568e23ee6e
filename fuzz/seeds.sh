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
# Which of the two are gzipped, the length of the images' file (little endian), both files. First two images of 1 × 2.
printf '\0\x14\0\0\0\x08\x03\0\0\0\x02\0\0\0\x01\0\0\0\x02\0\x40\x80\xff\0\0\x08\x01\0\0\0\x02\x07\x01' > fuzz/corpus/idx/small
images=fixtures/mnist64/t10k-images-idx3-ubyte.gz
length=$(wc -c < "$images")
{
    printf "\\x03\\x$(printf %02x $((length % 256)))\\x$(printf %02x $((length / 256)))"
    cat "$images" fixtures/mnist64/t10k-labels-idx1-ubyte.gz
} > fuzz/corpus/idx/mnist64
