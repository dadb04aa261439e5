#!/usr/bin/env bash
# Checks and times everything on a machine with GPUs, within ten minutes; installs nothing.
#
#   benchmarks/gpu_all.sh [--dry-run] OUT [CLIPS]
#
# OUT gets page.md with all results, the rows as CSV (append them to benchmarks/results/), a log of each stage, and a
# profile. A stage that fails does not stop the others; the exit code is then 1. CLIPS (250,000) of 1 s stand for the
# paper's 250,000 of 10 s: once log-mels are resident a crop costs the same whatever it is cut from. --dry-run runs all
# but the large step and the steps in CUDA graphs on a CPU, on tiny sizes, to see that they work.
set -uo pipefail
cd "$(dirname "$0")/.."
dry=0 budget=600
if [ "${1:-}" = --dry-run ]; then
    dry=1 budget=3600
    shift
fi
out=$(mkdir -p "${1:?give a folder for the results}" && cd "$1" && pwd)
python=${PYTHON:-python}
export RESULTS=$out # where the scripts append their rows
failed=0
echo "stage,exit code,seconds" >"$out/stages.csv"
rm -f "$out"/*.log "$out/page.md"

stage() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS left=$((budget - SECONDS)) code=124
    shift 2
    echo "== $name"
    if [ $left -le 0 ]; then
        echo "no time is left of the $budget s" >"$out/$name.log"
    else
        timeout --kill-after=10 "$((dry || limit > left ? left : limit))" "$@" >"$out/$name.log" 2>&1
        code=$?
    fi
    echo "$name,$code,$((SECONDS - start))" >>"$out/stages.csv"
    if [ $code -ne 0 ]; then
        failed=1
        tail -n 5 "$out/$name.log"
    fi
}

if [ $dry = 1 ]; then
    clips=${2:-32}
    device=(--device cpu)
    tests=(--collect-only tests/kernels)
    step=(--width 4 --batch-size 8 --steps 4 --repeats 1 --precisions fp32)
    kmeans=(--shape 300 16 8 --repeats 1)
    bank=(--synthetic 32 --seconds 1 --quick)
    loader=(--clips 16 --seconds 1 --batch-size 8 --repeats 1)
    tiny=(--set model.channels=4 --set model.dim=128 --set model.proj_hidden=32 --set model.proj_dim=16)
    epoch=("${tiny[@]}" --set cluster.k=4 --set train.batch_size=8 --quick)
    parts=("${epoch[@]}" --synthetic 32 --seconds 1)
    profile=("${tiny[@]}" --set train.batch_size=8)
    profiled_clips=32
else
    clips=${2:-250000}
    device=(--device cuda)
    tests=()
    step=(--width 64 --batch-size 512 --repeats 5)
    kmeans=(--shape 250000 512 512)
    bank=()
    loader=(--clips 4000 --repeats 3)
    epoch=(--set cluster.k=512 --set train.batch_size=512)
    parts=()
    profile=(--set train.batch_size=512)
    profiled_clips=4096
fi
bench=("$python" -m unfused_fast bench)

stage doctor 60 "$python" -m unfused_fast doctor --json
stage tests 240 "$python" -m pytest -q -m gpu "${tests[@]}"
stage parts 120 "${bench[@]}" all --quick "${parts[@]}" --rows "$out/bench.csv" --json "${device[@]}"
stage step 120 "$python" benchmarks/step.py "${step[@]}" "${device[@]}"
[ $dry = 1 ] || stage step-large 60 "$python" benchmarks/step.py --width 64 --batch-size 2048 --repeats 3 \
    --precisions bf16 "${device[@]}"
[ $dry = 1 ] || stage step-graphs 60 "$python" benchmarks/step.py --width 64 --batch-size 512 --repeats 3 \
    --precisions bf16 --modes reduce-overhead "${device[@]}"
stage kmeans-fp32 60 "$python" benchmarks/bench_kmeans.py "${kmeans[@]}" "${device[@]}"
stage kmeans-bf16 60 "$python" benchmarks/bench_kmeans.py "${kmeans[@]}" --dtype bfloat16 "${device[@]}"
stage bank 60 "${bench[@]}" bank "${bank[@]}" --rows "$out/bench.csv" "${device[@]}"
stage loader 90 "$python" benchmarks/loader.py "${loader[@]}" "${device[@]}"
stage epoch 180 "${bench[@]}" epoch --synthetic "$clips" --seconds 1 --rows "$out/bench.csv" "${epoch[@]}" "${device[@]}"
profiled=$(mktemp -d)
stage profile-shards 60 "$python" -c "
from pathlib import Path
from unfused_fast.commands.measure.synthetic import synthetic_set
if __name__ == '__main__':
    synthetic_set(Path('$profiled'), $profiled_clips, 2.0)"
stage profile 90 "$python" -m unfused_fast train pretrain "$profiled/shards" --out "$profiled/run" --epochs 3 \
    --profile "${profile[@]}" "${device[@]}"
cp "$profiled/run/profile/operators.txt" "$out/" 2>/dev/null
gzip -c "$profiled/run/profile/trace.json" >"$out/trace.json.gz" 2>/dev/null
rm -rf "$profiled"
# last, as the compiler tries kernels for minutes
[ $dry = 1 ] || stage step-autotune 180 "$python" benchmarks/step.py --width 64 --batch-size 512 --repeats 3 \
    --precisions bf16 --modes max-autotune-no-cudagraphs max-autotune "${device[@]}"

"$python" benchmarks/gpu_page.py "$out" || failed=1
exit $failed
