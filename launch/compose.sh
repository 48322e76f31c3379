#!/usr/bin/env bash
# Train in containers: a coordinator and N nodes with data of their own, on a private network of this machine.
#
#   launch/compose.sh run torchrun --nodes 3 algorithm=scaffold rounds=100   up, wait, show the table, stop
#   launch/compose.sh run ray --nodes 3 algorithm=scaffold rounds=100        the same on a Ray cluster
#   launch/compose.sh up torchrun --nodes 3 rounds=100                       begin a training, and come back at once
#   launch/compose.sh up ray --nodes 3                                       only the cluster; `run ray` trains on it
#   launch/compose.sh logs torchrun                                          what was said so far
#   launch/compose.sh fetch torchrun DIR                                     copy the runs to DIR
#   launch/compose.sh down torchrun                                          all goes but the runs
#   launch/compose.sh down torchrun --volumes                                the runs go, too
#   launch/compose.sh build                                                  the image again, after a change
#
#   --nodes N       so many nodes (2), each as if it were a machine of its own
#   --least N       torchrun: train as soon as N of them are there, and while N are left (1; with --data all)
#   --ranks N       ranks, or actors, on every node (1)
#   --data DIR      DIR/1, DIR/2, ... are copied to /data of the first node, the second, ..., DIR/coordinator, if there,
#                   to that of the coordinator or head; no other sees them. `fedlearn split DIR` makes such folders
#   --wait SECONDS  how long a training waits for nodes that are missing before it gives up (torchrun 600, with --data a
#                   day; ray, where it is backend.timeout, 60, with --data an hour)
#   --launch WORD   torchrun: names the training; the same word goes on with it after `down` (the time)
#
# In the environment: BASE_IMAGE for the image (docker/Dockerfile), FEDLEARN_IMAGE its name, FEDLEARN_TOKEN the file of
# the nodes' secret (~/.fedlearn/compose.token, made if need be), COMPOSE_PROJECT_NAME, DOCKER and COMPOSE the programs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
wrong() { echo "error: $1 (launch/compose.sh --help helps)" >&2; exit 2; }
number() { [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || wrong "$1: found '${2:-}'; allowed: a whole number from 1"; }

read -ra docker <<<"${DOCKER:-docker}"
if [ -n "${COMPOSE:-}" ]; then read -ra compose <<<"$COMPOSE"
elif "${docker[@]}" compose version >/dev/null 2>&1; then compose=("${docker[@]}" compose)
else compose=(docker-compose); fi

verb=${1:-} kind=${2:-}
case $verb in
    --help|-h|'') usage; exit 0 ;;
    build) DOCKER_BUILDKIT=1 exec "${docker[@]}" build -f "$here/docker/Dockerfile" -t "${FEDLEARN_IMAGE:-fedlearn}" \
               --build-arg BASE_IMAGE="${BASE_IMAGE:-python:3.11-slim}" "${@:2}" "$here" ;;
    up|run|logs|fetch|down) ;;
    *) wrong "found '$verb'; allowed: build, up, run, logs, fetch, down" ;;
esac
case $kind in
    torchrun) head=coordinator node=node ;;
    ray) head=head node=worker ;;
    *) wrong "$verb: found '$kind'; allowed: torchrun, ray" ;;
esac
shift 2

nodes=2 least='' ranks=1 data='' wait='' launch='' overrides=() rest=()
while [ $# -gt 0 ]; do
    case $1 in
        --nodes) number "$@"; nodes=$2; shift 2 ;;
        --least) number "$@"; least=$2; shift 2 ;;
        --ranks) number "$@"; ranks=$2; shift 2 ;;
        --data) [ -d "${2:-}" ] || wrong "--data: found '${2:-}'; allowed: a folder"; data=$(cd "$2" && pwd); shift 2 ;;
        --wait) number "$@"; wait=$2; shift 2 ;;
        --launch) launch=${2:-}; shift 2 ;;
        --volumes) rest+=(--volumes); shift ;;
        -*) wrong "found $1; allowed: --nodes, --least, --ranks, --data, --wait, --launch, --volumes, then overrides" ;;
        *) overrides+=("$1"); shift ;;
    esac
done

# Containers run as who calls this, who alone reads the secret; nobody runs as root.
user=$(id -u):$(id -g)
[ "${user%%:*}" != 0 ] || user=1000:1000
export FEDLEARN_USER=$user FEDLEARN_RANKS=$ranks FEDLEARN_SLOTS=$((2 * ranks))
[ -z "$wait" ] || [ "$verb-$kind" != up-ray ] || \
    wrong "--wait: found '$wait' for 'up ray', which trains nothing; allowed: with 'run ray'"
if [ -n "$data" ]; then
    for i in $(seq "$nodes"); do
        [ -d "$data/$i" ] || wrong "--data: found no $data/$i; allowed: a folder for every node, 1 to $nodes"
    done
    [ ! -e "$data/$((nodes + 1))" ] || wrong "--data: found $data/$((nodes + 1)); allowed: a folder for every node, \
1 to $nodes (--nodes)"
    # What only one node has no other can do: all of them are needed, and one that died may come back late. Ray takes an
    # actor that froze for dead after the same time.
    [ "$kind" = ray ] && patience=3600 || patience=86400
    least=${least:-$nodes} wait=${wait:-$patience}
fi
least=${least:-1}
[ "$least" -le "$nodes" ] || wrong "--least: found $least; allowed: 1 to $nodes (--nodes)"
export FEDLEARN_MACHINES=$((least + 1)):$((nodes + 1)) FEDLEARN_WAIT=${wait:-600}
export FEDLEARN_TOKEN=${FEDLEARN_TOKEN:-$HOME/.fedlearn/compose.token}
FEDLEARN_LAUNCH=${launch:-$(date -u +%Y%m%d-%H%M%S)}
FEDLEARN_OVERRIDES=''
[ ${#overrides[@]} = 0 ] || FEDLEARN_OVERRIDES=$(printf '%q ' "${overrides[@]}")
export FEDLEARN_LAUNCH FEDLEARN_OVERRIDES COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-fedlearn-$kind}
compose+=(-f "$here/docker/compose.$kind.yaml")

# The containers of a service, in the order of their numbers.
containers() {
    local ids number='{{index .Config.Labels "com.docker.compose.container-number"}}'
    ids=$("${compose[@]}" ps -aq "$1" 2>/dev/null)
    # shellcheck disable=SC2086  # ids are words
    [ -z "$ids" ] || "${docker[@]}" inspect -f "$number {{.Id}}" $ids | sort -n | cut -d' ' -f2
}

# End the containers that there are, and remove them together with the copies of data in them.
clear_away() { "${compose[@]}" rm --force --stop -v >/dev/null; }

# Copy what is in a folder to /data of a container.
give() { tar -C "$1" --owner="${user%%:*}" --group="${user##*:}" -cf - . | "${docker[@]}" cp - "$2:/data"; }

up() {
    "${docker[@]}" image inspect "${FEDLEARN_IMAGE:-fedlearn}" >/dev/null 2>&1 || "${BASH_SOURCE[0]}" build
    if [ ! -s "$FEDLEARN_TOKEN" ]; then
        mkdir -p "$(dirname "$FEDLEARN_TOKEN")"
        (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$FEDLEARN_TOKEN")
        [ "$(id -u)" != 0 ] || chown "$user" "$FEDLEARN_TOKEN"
    fi
    clear_away
    # Created first: /data is filled before anybody looks.
    "${compose[@]}" up --no-start --scale "$node=$nodes"
    if [ -n "$data" ]; then
        local i=0 id
        for id in $(containers "$node"); do
            i=$((i + 1))
            give "$data/$i" "$id"
        done
        [ ! -d "$data/coordinator" ] || give "$data/coordinator" "$(containers "$head")"
    fi
    "${compose[@]}" up --detach --scale "$node=$nodes"
}

# What Docker says of the container with the present id.
state() { "${docker[@]}" inspect -f "{{$1}}" "$id"; }

case $verb-$kind in
    up-*) up ;;
    run-torchrun)
        up
        id=$(containers coordinator)
        trap '"${compose[@]}" stop; exit 130' INT TERM
        since=0
        until [ "$(state .State.Running)" = false ]; do  # true also between two starts
            "${docker[@]}" logs --follow --since "$since" "$id"
            since=$(date +%s)
            sleep 1
        done
        status=$(state .State.ExitCode)
        "${compose[@]}" stop
        exit "$status" ;;
    run-ray)
        id=$(containers head)
        if [ -z "$id" ] || [ "$(state .State.Running)" != true ]; then up
        elif [ -n "$data" ]; then wrong "--data: found a cluster that is up; allowed: 'down ray' before this"; fi
        for id in $(containers worker) $(containers head); do  # actors are spread over the machines that have joined
            for _ in $(seq 60); do
                [[ $(state .State.Running)-$(state .State.Health.Status) = true-*ing ]] || break
                sleep 2
            done
        done
        tty=()
        [ ! -t 0 ] || tty=(--interactive --tty)  # so that Ctrl-C gets there
        exec "${docker[@]}" exec ${tty[@]+"${tty[@]}"} "$id" fedlearn run backend=ray backend.address=auto \
            backend.workers="$((nodes * ranks))" ${wait:+"backend.timeout=$wait"} runs=/runs \
            ${overrides[@]+"${overrides[@]}"} ;;
    logs-*) exec "${compose[@]}" logs ;;
    fetch-*)
        [ ${#overrides[@]} = 1 ] || wrong "fetch: found ${#overrides[@]} folders; allowed: one"
        mkdir -p "${overrides[0]}"
        exec "${docker[@]}" cp "$(containers "$head"):/runs/." "${overrides[0]}" ;;
    down-*)
        clear_away
        exec "${compose[@]}" down --remove-orphans ${rest[@]+"${rest[@]}"} ;;
esac
