#!/usr/bin/env bash
# Makes the virtual environment of one peer, with pinned packages: setup.sh pfl | flwr | fedlab
#
# It goes below $FEDLEARN_PEERS (default ~/.cache/fedlearn/peers); about 1 GB each. The requirement files
# list everything, so nothing is resolved: flwr asks for a certifi, FedLab for a torchvision that an
# index may not have, and neither is needed (FedLab imports the latter; stubs/ stands in for it).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=${1:-}
list=$here/requirements/$name.txt
if [ -z "$name" ] || [ ! -f "$list" ]; then
    echo "usage: $0 $(cd "$here/requirements" && ls | sed 's/\.txt$//' | paste -sd'|')" >&2
    exit 2
fi
env=${FEDLEARN_PEERS:-$HOME/.cache/fedlearn/peers}/$name
stamp=$env/.installed
if cmp -s "$list" "$stamp"; then
    echo "$name: ready in $env"
    exit
fi
echo "$name: installing into $env (a few minutes) ..."
"${PYTHON:-python3}" -m venv --clear "$env"
"$env/bin/python" -m pip install -qq setuptools wheel
"$env/bin/python" -m pip install -qq --no-deps --no-build-isolation -r "$list"
if [ -d "$here/stubs/$name" ]; then
    cp -r "$here/stubs/$name/." "$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
fi
cp "$list" "$stamp"
echo "$name: ready in $env"
