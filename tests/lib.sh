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

# A process and all that it started: compilers, tests, the programs of tests.
kill_tree() {
    for descendant in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
        kill_tree "$descendant"
    done
    kill "$1" 2>/dev/null || true
}

interrupted() {
    trap '' HUP INT TERM
    [ -z "$child" ] || kill_tree "$child"
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
