#!/usr/bin/env bash
# Train on several machines under torchrun. Say the same on every one of them, in any order:
#
#   launch/torchrun.sh --host node1 --nodes 4 --ranks 2 --token ~/.fedlearn.token --launch monday [OVERRIDE...]
#   launch/torchrun.sh --host node1 --nodes 2:4 ...      begins with two machines, takes in who comes later
#
#   --host NAME[:PORT]  the machine that coordinates and keeps the run's folder, as the others know it (port 29400)
#   --coordinator       this is that machine, though it does not know itself by this name
#   --nodes N|MIN:MAX   how many machines take part
#   --ranks N           ranks on this machine (1); the GPUs, or the cores
#   --restarts N        how often ranks that died are started again (10)
#   --wait SECONDS      how long a machine waits for those that are missing, at the start and later (600)
#   --token FILE        the secret of the run, the same file on every machine: `fedlearn token FILE` writes one
#   --launch WORD       names this launch: after a restart, a run that was begun with this word is gone on with.
#                       A word of its own for every new training
#
# A machine that dies is left out after seven seconds or so, and taken in again when it comes back; the run goes on from
# its last checkpoint (checkpoint.every), to the same result. One that the run cannot do without, as all are with
# --nodes N, is waited for. If the coordinating machine dies, the others end: start this everywhere again. Traffic is
# not encrypted: use a private network, and name its interface in GLOO_SOCKET_IFNAME. An algorithm whose clients
# keep a state needs a folder `runs` that all machines share.
#
# What follows are the overrides of `fedlearn run`. PYTHON names another Python than the checkout's own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
wrong() { echo "error: $1 (launch/torchrun.sh --help helps)" >&2; exit 2; }
need() { [[ ${2:-} =~ ^($3)$ ]] || wrong "$1: found '${2:-}'; allowed: $4"; }

host='' coordinator='' nodes='' ranks=1 restarts=10 wait=600 launch='' overrides=()
while [ $# -gt 0 ]; do
    case $1 in
        --help|-h) usage; exit 0 ;;
        --host) need "$1" "${2:-}" '[A-Za-z0-9._-]+(:[0-9]+)?' 'NAME or NAME:PORT'; host=$2; shift 2 ;;
        --coordinator) coordinator=yes; shift ;;
        --nodes) need "$1" "${2:-}" '[1-9][0-9]*(:[1-9][0-9]*)?' 'N or MIN:MAX'; nodes=$2; shift 2 ;;
        --ranks) need "$1" "${2:-}" '[1-9][0-9]*' 'a whole number from 1'; ranks=$2; shift 2 ;;
        --restarts) need "$1" "${2:-}" '[0-9]+' 'a whole number'; restarts=$2; shift 2 ;;
        --wait) need "$1" "${2:-}" '[1-9][0-9]*' 'a whole number of seconds from 1'; wait=$2; shift 2 ;;
        --token) [ -r "${2:-}" ] || wrong "--token: found '${2:-}'; allowed: a file that can be read"
                 overrides+=("backend.token=$2"); shift 2 ;;
        --launch) need "$1" "${2:-}" '[A-Za-z0-9][A-Za-z0-9._+=-]*' 'letters, digits and . _ + = -'
                  launch=$2; overrides+=("launch=$2"); shift 2 ;;
        -*) wrong "found $1; allowed: --host, --coordinator, --nodes, --ranks, --restarts, --wait, --token, --launch" ;;
        *) break ;;
    esac
done
[ -n "$host" ] || wrong "found no --host; allowed: the name of the machine that coordinates"
[ -n "$nodes" ] || wrong "found no --nodes; allowed: N or MIN:MAX, how many machines take part"
[ -n "${PYTHON:-}" ] || { PYTHON=$here/.venv/bin/python; [ -x "$PYTHON" ] || PYTHON=python3; }
name=${host%:*} port=${host##*:}
[ "$name" != "$host" ] || port=29400

# What is wrong with the overrides is said here, once, and not by every rank after every start.
"$PYTHON" -m fedlearn run --cfg job backend=torchrun ${overrides[@]+"${overrides[@]}"} "$@" >/dev/null

# torchrun numbers machines in the order of their addresses as text, so that the coordinator's must come first: the
# others call themselves by a name after all others. Only the first one's is ever connected to.
own="$(hostname) $(hostname -s 2>/dev/null) $(hostname -f 2>/dev/null) $(hostname -I 2>/dev/null) localhost 127.0.0.1"
case " $own ${coordinator:+$name} " in
    *" $name "*) is_host=true address=$name ;;
    *) is_host=false address="~$(hostname)" ;;
esac
conf=is_host=$is_host,join_timeout=$wait,last_call_timeout=3,keep_alive_interval=2,keep_alive_max_attempt=3

# Without TORCH_DISABLE_SHARE_RDZV_TCP_STORE a machine that comes later would hang. One thread a rank: more would fight
# for the cores, and compute other last bits.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m torch.distributed.run --nnodes="$nodes" --nproc-per-node="$ranks" --max-restarts="$restarts" \
    --rdzv-backend=c10d --rdzv-endpoint="$name:$port" --rdzv-id="${launch:-fedlearn}" --rdzv-conf="$conf" \
    --local-addr="$address" -m fedlearn run backend=torchrun ${overrides[@]+"${overrides[@]}"} "$@"
