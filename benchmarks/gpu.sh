#!/usr/bin/env bash
# Runs a point of benchmarks/GPU_AGENDA.md on a machine without a network: unpacks, prepares, runs, fills $OUT.
#
#     bash benchmarks/gpu.sh POINT          POINT is a, b, c, d or e
#     DRY=1 bash benchmarks/gpu.sh POINT    the same at toy size on a CPU, without carry/ (CI runs it)
#
# OUT     where results go, at most 8 files of 16 MiB          (default: runs/gpu/POINT)
# STATE   what later calls resume from, on the machine's disk  (default: /tmp/dit-jax-gpu)
# BUDGET  seconds that this call may take in total             (default: 530)
# Exit code 0: the point is done. 75: it is not; the same call resumes it. Else it failed; $OUT/log.txt says why.
set -euo pipefail
begin=$(date +%s)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
point=${1:?which point: a, b, c, d or e}
[[ $point == [abcde] ]] || { echo "error: there is no point '$point'; choose a, b, c, d or e" >&2; exit 2; }
dry=${DRY:-}
out=${OUT:-runs/gpu/$point}
state=${STATE:-/tmp/dit-jax-gpu}
budget=${BUDGET:-530}
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
mkdir -p "$out" "$state"
: >"$out/log.txt"

if compgen -G 'carry/wheels/*.whl' >/dev/null && [[ -z $dry && ! -e $state/site.done ]]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$state/site" \
    carry/wheels/*.whl 2>&1 | tee -a "$out/log.txt"
  touch "$state/site.done"
fi
[[ -d $state/site ]] && export PYTHONPATH="$state/site${PYTHONPATH:+:$PYTHONPATH}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$state/xla}" PYTHONUNBUFFERED=1

set +e
{
  if [[ -z $dry ]]; then
    JAX_PLATFORMS=cpu "$python" -m benchmarks.pack --unpack carry --state "$state" &
    unpacking=$!
    [[ $point == [ab] ]] || wait "$unpacking" || exit  # these need no data
  fi
  "$python" -m benchmarks.agenda "$point" --state="$state" --out="$out" ${dry:+--dry} \
    --seconds=$((budget - $(date +%s) + begin))
  code=$?
  [[ -n $dry ]] || wait "$unpacking" || code=$((code ? code : 1))
  exit "$code"
} 2>&1 | tee -a "$out/log.txt"
exit "${PIPESTATUS[0]}"
