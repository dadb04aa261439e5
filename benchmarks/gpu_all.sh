#!/usr/bin/env bash
# Checks and times everything on one GPU, in some 20 minutes; goes on past what fails, and says at the end what did.
#
#   benchmarks/gpu_all.sh OUT [CLIPS]
#
# OUT gets a log of each stage, stages.csv, the rows that the benchmarks appended, a profile. CLIPS (250,000) of 1 s
# stand for the paper's 250,000 of 10 s: once log-mels are resident a crop costs the same whatever it is cut from.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?give a folder for the results}" && cd "$1" && pwd)
clips=${2:-250000}
python=${PYTHON:-python}
failed=0
echo "stage,exit_code,seconds" >"$out/stages.csv"

stage() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    echo "== $name"
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    echo "$name,$code,$((SECONDS - start))" >>"$out/stages.csv"
    if [ $code -ne 0 ]; then
        failed=1
        tail -n 5 "$out/$name.log"
    fi
}

before=$(mktemp -d)
cp -r benchmarks/results/. "$before"

stage doctor 60 "$python" -m unfused_fast doctor --json
stage tests 360 "$python" -m pytest -q -m gpu
stage bench-quick 180 "$python" -m unfused_fast bench all --quick --rows "$out/bench.csv" --json
stage step 180 "$python" benchmarks/step.py --width 64 --batch-size 512 --repeats 5
stage step-large 120 "$python" benchmarks/step.py --width 64 --batch-size 2048 --precisions bf16 --repeats 3
stage kmeans-fp32 180 "$python" benchmarks/bench_kmeans.py --shape 250000 512 512
stage kmeans-bf16 120 "$python" benchmarks/bench_kmeans.py --shape 250000 512 512 --dtype bfloat16
stage bank 120 "$python" -m unfused_fast bench bank --rows "$out/bench.csv"
stage loader 180 "$python" benchmarks/loader.py --clips 4000 --repeats 3
stage epoch 420 "$python" -m unfused_fast bench epoch --synthetic "$clips" --seconds 1 --rows "$out/bench.csv" \
    --set cluster.k=512 --set train.batch_size=512

# What this run measured, apart from the rows of other machines.
for csv in benchmarks/results/*.csv; do
    name=$(basename "$csv")
    { head -n 1 "$csv" && comm -13 <(sort "$before/$name" 2>/dev/null) <(sort "$csv"); } >"$out/$name"
done

profiled=$(mktemp -d)
stage profile-shards 60 "$python" -c "
from pathlib import Path
from unfused_fast.commands.measure.synthetic import synthetic_set
if __name__ == '__main__':
    synthetic_set(Path('$profiled'), 4096, 2.0)"
stage profile 120 "$python" -m unfused_fast train pretrain "$profiled/shards" --out "$profiled/run" --epochs 3 \
    --set train.batch_size=512 --profile
cp "$profiled/run/profile/operators.txt" "$out/" 2>/dev/null
gzip -c "$profiled/run/profile/trace.json" >"$out/trace.json.gz" 2>/dev/null
rm -rf "$profiled" "$before"

column -s, -t "$out/stages.csv"
exit $failed
