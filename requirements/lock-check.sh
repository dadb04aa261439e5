#!/usr/bin/env bash
# Resolves each extra and the tools of `make test` anew within their lock file, for each Python on Linux x86-64, as pip
# would: every package must be listed and have a wheel (`make lock-check`).
set -euo pipefail
cd "$(dirname "$0")/.."
pins() { grep -oE '^[A-Za-z0-9._-]+==[^ ]+' "$@" | sort -u; }
check() { # PYTHON EXTRA
  local lock=requirements/$2-dev.txt resolved unlisted
  resolved=$(uv pip compile --quiet --python-version "$1" --python-platform x86_64-manylinux_2_28 --no-annotate \
    --only-binary :all: -c "$lock" --extra "$2" --extra dev pyproject.toml)
  unlisted=$(comm -23 <(pins <<<"$resolved") <(pins "$lock"))
  if [ -n "$unlisted" ]; then
    echo "$lock does not list what Python $1 needs; run: make lock" "$unlisted" >&2
    return 1
  fi
  echo "$lock resolves for Python $1: $(pins <<<"$resolved" | wc -l) packages"
}
jobs=()
for python in 3.11 3.12 3.13; do
  for extra in cpu cuda12 cuda13; do
    check $python $extra &
    jobs+=($!)
  done
done
for job in "${jobs[@]}"; do wait "$job"; done
