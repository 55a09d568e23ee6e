#!/usr/bin/env bash
# Copies the fixtures into the corpora: small files only, every one under its own name.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p fuzz/corpus/{container,safetensors,round_trip,kernel}
find fixtures spec -name '*.twn' -size -17k -exec cp {} fuzz/corpus/container/ \;
find fixtures \( -name '*.safetensors' -o -name '*.index.json' \) -size -17k -exec cp {} fuzz/corpus/safetensors/ \;
# Their inputs have forms of their own (control bytes, then weights or codes); any bytes are a start.
find fixtures -maxdepth 1 -name '*.safetensors' -size -17k -exec cp {} fuzz/corpus/round_trip/ \;
find fixtures -maxdepth 1 -name '*.twn' -size -17k -exec cp {} fuzz/corpus/kernel/ \;
