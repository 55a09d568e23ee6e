#!/usr/bin/env bash
# Copies the fixtures into the corpora: small files only, every one under its own name.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p fuzz/corpus/{container,safetensors,round_trip}
find fixtures spec -name '*.twn' -size -17k -exec cp {} fuzz/corpus/container/ \;
find fixtures \( -name '*.safetensors' -o -name '*.index.json' \) -size -17k -exec cp {} fuzz/corpus/safetensors/ \;
# The weights of a checkpoint behind control bytes of its header: a start is enough.
find fixtures -maxdepth 1 -name '*.safetensors' -size -17k -exec cp {} fuzz/corpus/round_trip/ \;
