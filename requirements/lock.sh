#!/usr/bin/env bash
# Resolves each extra, alone and with the tools of `make test`, for all Pythons and platforms (`make lock`). The tools
# come second: a test's library never decides the version of one that the product uses. Nor do those of `make docs`.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=(uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --no-annotate
  --custom-compile-command 'make lock')
for extra in cpu cuda12 cuda13; do
  torch=2.13.0
  if [ $extra = cuda12 ]; then torch=2.10.0; fi # the last on PyPI that is built for CUDA 12
  echo "torch==$torch" | "${compile[@]}" pyproject.toml -c /dev/stdin --extra $extra --extra ray --extra remote \
    --extra export --extra explore --extra hub --extra wandb --extra mlflow -o requirements/$extra.txt
  "${compile[@]}" pyproject.toml -c requirements/$extra.txt --extra $extra --extra dev -o requirements/$extra-dev.txt
done
# added to any of these; cuML for CUDA 12 keeps `packaging` at another version
"${compile[@]}" --group docs --no-emit-package packaging -c requirements/cpu.txt -o requirements/docs.txt
