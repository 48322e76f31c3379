#!/usr/bin/env bash
# Train on this machine: one torchrun rank on every GPU, or without GPUs on every core.
#
#   launch/local.sh [--ranks N] [--restarts N] [OVERRIDE...]
#   launch/local.sh --ranks 2 algorithm=scaffold rounds=100
#
#   --ranks N      so many ranks
#   --restarts N   how often dead ranks are started again (3); the run goes on from its last checkpoint
#
# What follows are the overrides of `fedlearn run`. PYTHON names another Python than the checkout's own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
wrong() { echo "error: $1 (launch/local.sh --help helps)" >&2; exit 2; }
number() { [[ ${2:-} =~ ^[0-9]+$ ]] || wrong "$1: found '${2:-}'; allowed: a whole number"; }

ranks='' restarts=3
while [ $# -gt 0 ]; do
    case $1 in
        --help|-h) usage; exit 0 ;;
        --ranks) number "$@"; ranks=$2; shift 2 ;;
        --restarts) number "$@"; restarts=$2; shift 2 ;;
        -*) wrong "found $1; allowed: --ranks, --restarts, --help, then overrides" ;;
        *) break ;;
    esac
done
if [ -z "$ranks" ]; then
    ranks=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
    [ "$ranks" -gt 0 ] || ranks=$(getconf _NPROCESSORS_ONLN)
fi
[ -n "${PYTHON:-}" ] || { PYTHON=$here/.venv/bin/python; [ -x "$PYTHON" ] || PYTHON=python3; }

# What is wrong with the overrides is said here, once, and not by every rank after every start.
"$PYTHON" -m fedlearn run --cfg job backend=torchrun "$@" >/dev/null

# One thread a rank: more would fight for the cores, and compute other last bits.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$PYTHON" -m torch.distributed.run --standalone \
    --nproc-per-node="$ranks" --max-restarts="$restarts" -m fedlearn run backend=torchrun "$@"
