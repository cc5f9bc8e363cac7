#!/bin/sh
# Check the files of a release: sh tools/check_release.sh [PYTHON]
#
# Builds wheel and sdist from what is committed, checks them with twine, installs the wheel into an empty environment
# from wheels alone (no compiler), segments the bundled sample there, and uninstalls it.
set -eu

python=${1:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/release.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
began=$(date +%s)

step() {
    printf '%4d s: %s\n' "$(($(date +%s) - began))" "$*"
}

install() {
    environment=$1
    shift
    "$environment/bin/python" "$root/tools/install.py" --only-binary=:all: -c "$root/constraints.txt" "$@"
}

export PIP_DISABLE_PIP_VERSION_CHECK=1 MPLCONFIGDIR="$work/matplotlib"
unset PYTHONPATH
mkdir "$work/source" "$work/run"
if git -C "$root" rev-parse --verify -q HEAD >/dev/null 2>&1; then
    (cd "$root" && git archive HEAD) | tar -x -C "$work/source"
else # a copy without its history
    (cd "$root" && tar -c --exclude=./.venv --exclude=./demo --exclude=./site .) | tar -x -C "$work/source"
fi

step "wheel and sdist"
"$python" -m venv "$work/tools"
install "$work/tools" build twine
PIP_CONSTRAINT="" "$work/tools/bin/python" -m build --outdir "$work/dist" "$work/source" >"$work/build.log" 2>&1 || {
    cat "$work/build.log"
    exit 1
}
"$work/tools/bin/twine" check --strict "$work"/dist/*
ls -l "$work"/dist

step "empty environment, wheels alone"
"$python" -m venv "$work/empty"
bin="$work/empty/bin"
install "$work/empty" "$work"/dist/*.whl
"$bin/pip" check

step "sample and stream"
cd "$work/run"
"$bin/distill" --version
"$bin/distill" sample sample.h5
"$bin/distill" stream sample.h5:volumes/raw --model ac4 --out sample.zarr
"$bin/distill" evaluate sample.zarr:segmentation sample.h5:volumes/labels/neuron_ids
"$bin/distill" init mine
test -s mine/student.yaml

step "uninstall"
"$bin/pip" uninstall -q -y affinity-distill
# Machine code that numba compiled next to the modules stays, as with every package; nothing else may.
left=$(find "$work"/empty/lib/python3*/site-packages/distill -type f ! -name '*.nb[ci]' 2>/dev/null || true)
if [ -n "$left" ] || [ -e "$bin/distill" ] || "$bin/python" -c 'from distill import load' 2>/dev/null; then
    echo "found files after the uninstallation, expected none: $left" >&2
    exit 1
fi
step "done"
