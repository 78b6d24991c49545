# What tests/all and tests/demo share: shell functions, to be sourced.

die() {
    echo "$*" >&2
    exit 1
}

# A signal ends what is running, then the script by way of its exit trap.
child=
clean_up_on_exit() {
    trap 'interrupted 129' HUP
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
}

interrupted() {
    trap '' HUP INT TERM
    [ -z "$child" ] || kill "$child" 2>/dev/null || true
    [ -z "$child" ] || wait "$child" || true
    exit "$1"
}

# Run a command such that the shell can still hear signals. Returns the command's status.
in_background() {
    "$@" &
    child=$!
    wait "$child"
    set -- $?
    child=
    return "$1"
}
