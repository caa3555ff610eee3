#!/usr/bin/env bash
# Runs on every machine of a pod, called by pod.py: installs the package and mounts the bucket, starts and ends training.
#
#   machine.sh setup BUCKET     data, models and runs of this checkout become folders of the bucket
#   machine.sh train ARGUMENTS  of `editmgt train`, under a supervisor, in the background
#   machine.sh run ARGUMENTS    of `editmgt`, in the checkout
#   machine.sh status           new, running, stopped (by SIGTERM), or "ended CODE"
#   machine.sh stop             saves and ends
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
environment=$HOME/editmgt-venv
bucket=$HOME/editmgt-bucket
log=$HOME/editmgt.log
supervisor=$HOME/editmgt.pid
code=$HOME/editmgt.exit
gcsfuse_version=3.4.0
export EDITMGT_CACHE=$bucket/cache # compiled programs: the first machine writes them, all machines read them, new ones too

running() {
    [ -f "$supervisor" ] && grep --quiet --text editmgt "/proc/$(cat "$supervisor")/cmdline" 2> /dev/null
}

case "$1" in
setup)
    if ! command -v gcsfuse > /dev/null; then
        package=$(mktemp --suffix=.deb)
        curl --fail --silent --show-error --location --output "$package" \
            "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$gcsfuse_version/gcsfuse_${gcsfuse_version}_amd64.deb"
        sudo apt-get install --yes --quiet "$package"
    fi
    mkdir -p "$bucket"
    mountpoint --quiet "$bucket" || gcsfuse --implicit-dirs "$2" "$bucket"
    for folder in data models runs; do
        mkdir -p "$bucket/$folder"
        ln --symbolic --force --no-dereference "$bucket/$folder" "$checkout/$folder"
    done
    python3 -m pip --version > /dev/null 2>&1 || sudo apt-get install --yes --quiet python3-pip
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv # Ubuntu 24.04 refuses --user without it
    [ -d "$environment" ] || python3 -m uv venv --quiet --python 3.12 "$environment"
    python3 -m uv pip install --quiet --python "$environment/bin/python" "$checkout[tpu]"
    ;;
train)
    shift
    if running; then
        echo "this machine is training: stop it first" >&2
        exit 3
    fi
    if ! mountpoint --quiet "$bucket"; then
        echo "the bucket must be mounted at $bucket: run setup again" >&2
        exit 4
    fi
    rm -f "$code"
    [ ! -f "$log" ] || mv "$log" "$log.before"
    cd "$checkout"
    export PATH="$environment/bin:$PATH"
    # shellcheck disable=SC2016  # expanded by the inner shell
    nohup setsid bash -c 'code=$1; shift; editmgt supervise -- editmgt train --distributed "$@" && done=0 || done=$?; echo "$done" > "$code"' \
        training "$code" "$@" > "$log" 2>&1 < /dev/null &
    echo $! > "$supervisor"
    ;;
run)
    shift
    cd "$checkout"
    PATH="$environment/bin:$PATH" exec editmgt "$@"
    ;;
status)
    if running; then
        echo running
    elif [ ! -f "$code" ]; then
        echo new
    elif grep --quiet "asked to stop" "$log" || [ "$(cat "$code")" = 143 ]; then # 143: before it could save
        echo stopped
    else
        echo "ended $(cat "$code")"
    fi
    ;;
stop)
    if running; then
        pid=$(cat "$supervisor")
        # shellcheck disable=SC2046  # one or more numbers
        kill -TERM $(cat "/proc/$pid/task/$pid/children") || ! running # the supervisor passes it on
    fi
    ;;
*)
    sed -n '2,8p' "$0" >&2
    exit 2
    ;;
esac
