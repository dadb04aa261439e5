#!/usr/bin/env bash
# Resolves each extra anew within its lock file, for each Python on Linux x86-64, as pip would: every package must be
# listed and have a wheel (`make lock-check`).
set -euo pipefail
cd "$(dirname "$0")/.."
pins() { grep -oE '^[A-Za-z0-9._-]+==[^ ]+' "$@" | sort -u; }
check() { # LOCK EXTRA...
  local lock=requirements/$1.txt extras=("${@:2}") resolved unlisted
  for python in 3.11 3.12 3.13; do
    resolved=$(uv pip compile --quiet --python-version $python --python-platform x86_64-manylinux_2_28 \
      --only-binary :all: --no-annotate -c "$lock" "${extras[@]/#/--extra=}" pyproject.toml)
    unlisted=$(comm -23 <(pins <<<"$resolved") <(pins "$lock"))
    if [ -n "$unlisted" ]; then
      echo "$lock does not list what Python $python needs; run: make lock" "$unlisted" >&2
      exit 1
    fi
  done
  echo "$lock: $(wc -l <<<"$resolved") lines resolve for Python 3.11, 3.12 and 3.13"
}
for extra in cpu cuda12 cuda13; do
  check $extra $extra ray remote sklearn export
  check $extra-dev $extra dev
done
