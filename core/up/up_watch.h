/*
 * What `up` watches beside its workers (core/worker/workers.h), which it replaces when they die.
 *
 *   signals    SIGTERM, SIGINT, SIGHUP: stop
 *   rtnetlink  rules or routes of ours that others took away are put back
 *   nftables   the table that a firewall's reloading flushed is put back
 *   inotify    a resolv.conf that others have written is handed over anew, and it is what comes
 *              back in the end; the worker asks the servers it names
 *
 * It parses nothing that comes from the network.
 */
#ifndef CULVERT_UP_WATCH_H
#define CULVERT_UP_WATCH_H

#include "core/command/options.h"
#include "core/command/tun_setup.h"
#include "core/up/journal.h"
#include "core/up/resolvconf.h"
#include "core/up/routing.h"
#include "core/up/up_state.h"
#include "core/worker/tunnel.h"

/* All that `up` knows. */
struct up {
    struct options options; /* with defaults that only `up` has */
    struct up_state state;
    struct journal *journal;
    bool clean;   /* the journal held nothing when we began */
    bool resumed; /* a killed one's block stands, and gives way to ours without a gap */
    struct tun_setup tun;
    struct route_session *routes;
    uint32_t base; /* priorities and table, core/up/routing.h; 0: nothing is in place */
    int ifindex;
    struct resolvconf resolvconf;
    char upstream[RESOLVCONF_PATH_MAX]; /* another file that names the resolvers of before, or "" */
    bool leave_resolvconf;              /* it is not ours to write */

    struct tunnel tunnel;
    struct workers *workers; /* NULL: not started */
    int signal_fd, events_fd, nft_fd, watch_fd;
};

/* Before the first change: from here on signals wait for up_watch_run(). */
void up_watch_block_signals(void);
/* Open what is watched. False: the user has been told. */
bool up_watch_open(struct up *up);
void up_watch_close(struct up *up);

/* Start relaying. False: the user has been told. */
bool up_watch_start_workers(struct up *up);
/* However far starting them has come. */
void up_watch_stop_workers(struct up *up);

/* Watch until a signal asks to stop, or nothing can be relayed any more; the exit status. */
int up_watch_run(struct up *up);

#endif
