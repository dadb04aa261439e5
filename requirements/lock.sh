#!/usr/bin/env bash
# Resolves each extra, alone and with the tools of `make test`, for all Pythons and platforms (`make lock`). The tools
# come second: a test's library never decides the version of one that the product uses.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=(uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --no-annotate
  --custom-compile-command 'make lock' pyproject.toml)
for extra in cpu cuda12 cuda13; do
  torch=2.13.0
  if [ $extra = cuda12 ]; then torch=2.10.0; fi # the last on PyPI that is built for CUDA 12
  echo "torch==$torch" | "${compile[@]}" -c /dev/stdin --extra $extra --extra ray --extra remote \
    --extra export --extra explore -o requirements/$extra.txt
  "${compile[@]}" -c requirements/$extra.txt --extra $extra --extra dev -o requirements/$extra-dev.txt
done
