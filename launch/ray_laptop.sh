#!/usr/bin/env bash
# Train on Ray actors on this machine: a small Ray is started for the run and ended with it.
#
#   launch/ray_laptop.sh [--actors N] [OVERRIDE...]
#   launch/ray_laptop.sh --actors 4 algorithm=fedadam task=fashion_mnist
#
#   --actors N   so many actors (one a core); one that dies is replaced, and its clients run again
#
# What follows are the overrides of `fedlearn run`. PYTHON names another Python than the checkout's own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
wrong() { echo "error: $1 (launch/ray_laptop.sh --help helps)" >&2; exit 2; }

actors=$(getconf _NPROCESSORS_ONLN)
while [ $# -gt 0 ]; do
    case $1 in
        --help|-h) usage; exit 0 ;;
        --actors) [[ ${2:-} =~ ^[0-9]+$ ]] || wrong "--actors: found '${2:-}'; allowed: a whole number"
                  actors=$2; shift 2 ;;
        -*) wrong "found $1; allowed: --actors, --help, then overrides" ;;
        *) break ;;
    esac
done
[ -n "${PYTHON:-}" ] || { PYTHON=$here/.venv/bin/python; [ -x "$PYTHON" ] || PYTHON=python3; }

# RAY_ADDRESS would let the run join a cluster instead.
unset RAY_ADDRESS
exec "$PYTHON" -m fedlearn run backend=ray backend.workers="$actors" "$@"
