#!/bin/sh
# Finds out on a machine with a GPU and a Python torch what no other machine can tell: sh run.sh [FOLDER FOR RESULTS]
# Each stage is a process of its own with a time limit, and its findings are written as soon as it ends. All together take at
# most eight minutes. ELF_GPU_CHECK=rehearsal makes a CPU take the way for GPUs, in tiny sizes; ELF_TORCH names the folder of
# a libtorch.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
out=${1:-$here/results}
mkdir -p "$out" || exit 1
unpacked=$(mktemp -d) || exit 1
trap 'rm -rf "$unpacked"' EXIT
gzip -dc "$here/elf.gz" > "$unpacked/elf" && chmod +x "$unpacked/elf" || exit 1

torch=${ELF_TORCH:-$(python3 -c 'import torch; print(torch.__path__[0])')} || exit 1
export LD_LIBRARY_PATH="$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export ELF_PARITY_DIR="$here/parity"
begun=$(date +%s)
together=480
states=0
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used --format=csv,noheader 2> /dev/null | head -1)
: > "$out/entries.txt"
printf '%-12s %-11s %5s  %s\n' stage state s finding > "$out/table.txt"

# stage NAME SECONDS OPTIONS...
stage() {
    name=$1 limit=$2
    shift 2
    at=$(date +%s)
    left=$((begun + together - at))
    [ "$left" -ge "$limit" ] || limit=$left
    rm -f "$out/$name.json"
    if [ "$limit" -ge 1 ]; then
        timeout -k 5 "$limit" "$unpacked/elf" bench --device "$device" --preset "$preset" --json "$out/$name.json" "$@" \
            > "$out/$name.txt" 2> "$out/$name.log"
        case $? in
            0) state=ok ;;
            124 | 137) state='out of time' ;;
            *) state=failed ;;
        esac
    else
        state='no time left'
    fi
    seconds=$(($(date +%s) - at))
    [ "$state" = ok ] || states=1
    echo "== $name: $state after $seconds s: $*"
    cat "$out/$name.txt"
    [ "$state" = ok ] || tail -n 5 "$out/$name.log"
    finding=$(awk '/^(ceilings|checks):/ { found = $0 }
        /^(training|sampling) / { found = $2 " positions/s, " $5 " of the ceiling, median " $6 " ms" }
        /^GPU memory / { memory = ", " $(NF - 1) " GB" }
        END { print found memory }' "$out/$name.txt" 2> /dev/null)
    printf '%-12s %-11s %5d  %s\n' "$name" "$state" "$seconds" "$finding" >> "$out/table.txt"
    [ -s "$out/entries.txt" ] && echo , >> "$out/entries.txt"
    {
        printf '"%s": {"state": "%s", "seconds": %d, "result": ' "$name" "$state" "$seconds"
        cat "$out/$name.json" 2> /dev/null || echo null
        echo }
    } >> "$out/entries.txt"
    {
        printf '{"gpu": "%s", "stages": {\n' "$gpu"
        cat "$out/entries.txt"
        echo '}}'
    } > "$out/gpu-check.json"
}

if [ "${ELF_GPU_CHECK:-}" = rehearsal ]; then
    export ELF_GPU_PATH=1
    device=cpu preset=mini few='--batch 2 --seq 8' seq=8 rows='2 3 4' steps=1 sampling=2
else
    device=cuda preset=elf-b few='--batch 2 --seq 256' seq=1024 rows='32 64 128' steps=8 sampling=32
fi
least=${rows%% *}
# Options are words of their own.
# shellcheck disable=SC2086
{
    stage loading 120 --only ceilings
    stage operations 90 --only operations $few
    stage parity 60 --only parity
    stage speeds 60 --only speeds --batch "$least" --seq $seq
    for batch in $rows; do
        stage "train-$batch" 60 --only train --batch "$batch" --seq $seq --steps $steps
    done
    stage "sample-$least" 60 --only sample --batch "$least" --seq $seq --sampling-steps $sampling
    stage sample-1 40 --only sample --batch 1 --seq $seq --sampling-steps $sampling
    stage breakdown 60 --only train --profile --batch "$least" --seq $seq --steps $steps
}
rm -f "$out/entries.txt"
echo
cat "$out/table.txt"
exit $states
