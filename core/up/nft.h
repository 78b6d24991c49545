/*
 * What policy rules cannot do, nftables does: our table `inet culvert`, made through libnftables.
 *
 * Sockets that are bound to a device pass every rule and table, so a filter on what leaves drops
 * their DNS queries, and with the kill switch all else that should have been captured. Only
 * nftables knows a packet's cgroup: it marks packets, which are then routed anew. And it marks what
 * comes in from elsewhere, so that the answers go back there (core/up/answers.h).
 *
 * Without the kill switch all of that must end with culvert, however it ends: the table belongs to
 * the netlink socket that made it (NFT_TABLE_F_OWNER, Linux 5.12), and is removed as that closes.
 *
 * libnftables costs megabytes, and is not everywhere: it is opened only when it is needed, in a
 * child process that does this one thing and ends.
 */
#ifndef CULVERT_NFT_H
#define CULVERT_NFT_H

#include "core/command/options.h"
#include "core/up/answers.h"

enum { NFT_SCRIPT_MAX = 131072 };

struct network_list {
    struct cidr items[1024];
    size_t count;
};

/* Do these options tell packets by their cgroups? */
bool nft_wants_cgroups(const struct options *o);

/* A cgroup as nftables wants it. */
struct nft_cgroup {
    char path[256]; /* below /sys/fs/cgroup */
    unsigned level; /* its depth in the cgroup v2 hierarchy, the root's children being 1 */
};

/*
 * Where a cgroup is: `name` is its path below the cgroup v2 mount point `mount`, or all of it.
 * False where the mount point is none that nftables looks at, or the name is no path below it.
 */
bool nft_find_cgroup(const char *mount, const char *name, struct nft_cgroup *out);

/* What the table is made of. */
struct nft_table {
    const struct options *options;
    const char *device;                   /* ours */
    const struct network_list *networks;  /* they stay direct under the kill switch */
    const struct connection_list *before; /* answered where they came from; NULL: nothing is */
    const char *cgroup_mount;
    bool owned; /* it belongs to the socket that it is made over */
};

/*
 * The whole table as a script for nft(8), which replaces what was there in one transaction. Returns
 * the length; 0: it does not fit, or a cgroup cannot be found (`*problem` names it).
 */
size_t nft_compose(const struct nft_table *t, char *out, size_t size, const char **problem);

/*
 * Run a script. 0; -ENOSYS without libnftables; -EIO when it was refused, with the first line of
 * the reason in `why`. `socket` NULL, or the netlink socket that it was sent over, which a table
 * made with `flags owner` lives as long as; the caller's to close, -1 on failure.
 */
int nft_run(const char *script, int *socket, char *why, size_t size);

/* Take our table away, if it is there. 0 or -errno as above. */
int nft_remove(char *why, size_t size);

/* The cgroup v2 mount point into `out`; false: there is none. */
bool nft_cgroup_mount(char *out, size_t size);

#endif
