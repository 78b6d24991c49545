/*
 * Theory: c-ares asks, this file remembers. A `name` is what is known, or being asked, about one
 * host name; look-ups of a name that is being asked wait for the same answer.
 *
 *   RESOLVING --c-ares answers--> KNOWN --look-up after its time--> RESOLVING
 *
 *   RESOLVING   requests may join, and be cancelled; the name stays, its answer will be cached
 *   KNOWN       requests are answered at the turn's end; without any, the name is idle and may
 *               be evicted, the one idle longest first
 *
 * Answers are delivered by a deferred call, never from within c-ares, so that a callback may
 * look up, cancel, close and free what it likes except the resolver.
 *
 * c-ares reads resolv.conf when a channel is made. culvert may start before the network does
 * and outlive many of them, so the file is looked at (one stat) whenever a query is about to be
 * sent or a failure to be repeated; if it is another one, a new channel is made. The old one stays
 * until its last query is answered. Timers run only while queries are under way.
 */
#include "core/proxy/resolver.h"

#include <ares.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/map.h"
#include "core/base/memory.h"

enum {
    NAME_MAX_BYTES = 255,    /* RFC 1035, 2.3.4 */
    CACHE_MAX = 512,         /* names */
    IN_FLIGHT_MAX = 1024,    /* queries; each ends by itself within seconds */
    TTL_MIN_S = 1,           /* /etc/hosts says 0 */
    TTL_MAX_S = 3600,        /* a proxy that moves is found again within the hour */
    FAILURE_MS = 5000,       /* how long a failure is believed */
    QUERY_TIMEOUT_MS = 2000, /* of a server's first turn, doubled in the second */
    QUERY_TRIES = 2,
};

static const char default_conf_path[] = "/etc/resolv.conf";

/* What tells one resolv.conf from the next. All zero: there is none. */
struct conf_stamp {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec changed;
};

struct resolver {
    struct loop *loop;
    const struct outbound_options *options;
    const char *conf_path;
    uint16_t port;           /* 0: 53 */
    struct conf_stamp stamp; /* of the file that `channel` was made from */
    unsigned generation;     /* counts the channels */
    struct channel *channel; /* for new queries; NULL before the first */
    struct link channels;    /* all of them */
    struct map names;        /* those that are cached, or will be */
    struct link all_names;
    struct link idle_names; /* KNOWN, cached, without requests; idle longest first */
    size_t in_flight;
    bool freeing;
};

struct channel {
    struct link link;
    struct resolver *resolver;
    ares_channel ares;
    struct link sockets;
    struct loop_timer timer;
    struct loop_deferred retire;
    unsigned queries;
};

struct channel_socket {
    struct link link;
    struct channel *channel;
    struct loop_io io;
    ares_socket_t fd;
};

enum name_state { NAME_RESOLVING, NAME_KNOWN };

struct name {
    struct map_entry entry;
    struct link all;
    struct link idle;
    struct resolver *resolver;
    struct channel *channel; /* RESOLVING: where it was asked */
    enum name_state state;
    bool cached;     /* in the map; numeric names and refusals of our own are not */
    bool delivering; /* its requests are being called */
    unsigned generation;
    uint64_t expires_ms;
    struct link requests;
    struct loop_deferred deliver;
    struct resolver_answer answer;
    char text[];
};

struct resolver_request {
    struct link link; /* in its name's requests, or in the batch being delivered */
    resolver_fn *fn;
    void *arg;
};

int outbound_prepare_socket(int fd, const struct outbound_options *options)
{
    if (options->mark != 0 &&
        setsockopt(fd, SOL_SOCKET, SO_MARK, &options->mark, sizeof(options->mark)) < 0)
        return -errno;
    socklen_t len = (socklen_t)strnlen(options->bind_interface, sizeof(options->bind_interface));
    if (len > 0 && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, options->bind_interface, len) < 0)
        return -errno;
    return 0;
}

void outbound_keep_alive(int fd)
{
    static const struct {
        int level, option, value;
    } options[] = {
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, 60},
        {IPPROTO_TCP, TCP_KEEPINTVL, 10},
        {IPPROTO_TCP, TCP_KEEPCNT, 6},
    };
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
        (void)setsockopt(fd, options[i].level, options[i].option, &options[i].value, sizeof(int));
}

/* --- channels: c-ares driven by the loop ----------------------------------------------------- */

static void channel_arm_timer(struct channel *c);

static void on_channel_timer(void *arg)
{
    struct channel *c = arg;
    ares_process_fd(c->ares, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
    channel_arm_timer(c);
}

/* A timer for the earliest time-out of a query, none without queries. */
static void channel_arm_timer(struct channel *c)
{
    struct timeval tv;
    if (!ares_timeout(c->ares, NULL, &tv)) {
        loop_timer_stop(&c->timer);
        return;
    }
    uint64_t ms = (uint64_t)tv.tv_sec * 1000 + (uint64_t)tv.tv_usec / 1000 + 1;
    loop_timer_start(c->resolver->loop, &c->timer, ms, on_channel_timer, c);
}

static void on_socket_ready(void *arg, unsigned ready)
{
    struct channel_socket *s = arg;
    struct channel *c = s->channel; /* c-ares may close the socket, which frees `s` */
    ares_process_fd(c->ares, ready & LOOP_READ ? s->fd : ARES_SOCKET_BAD,
                    ready & LOOP_WRITE ? s->fd : ARES_SOCKET_BAD);
    channel_arm_timer(c);
}

static struct channel_socket *channel_find_socket(struct channel *c, ares_socket_t fd)
{
    LIST_EACH (it, &c->sockets) {
        struct channel_socket *s = CONTAINER_OF(it, struct channel_socket, link);
        if (s->fd == fd)
            return s;
    }
    return NULL;
}

static void channel_drop_socket(struct channel_socket *s)
{
    loop_ignore(&s->io);
    list_remove(&s->link);
    free(s);
}

/* c-ares says what it waits for on a socket; neither: it is about to close it. */
static void on_socket_state(void *arg, ares_socket_t fd, int readable, int writable)
{
    struct channel *c = arg;
    struct channel_socket *s = channel_find_socket(c, fd);
    if (!readable && !writable) {
        if (s)
            channel_drop_socket(s);
        return;
    }
    if (!s) {
        s = memory_zeroed(sizeof(*s));
        if (!s)
            return; /* unwatched, its query times out */
        s->channel = c;
        s->fd = fd;
        list_push_back(&c->sockets, &s->link);
    }
    unsigned what = (readable ? (unsigned)LOOP_READ : 0) | (writable ? (unsigned)LOOP_WRITE : 0);
    loop_watch(c->resolver->loop, &s->io, fd, what, on_socket_ready, s);
}

/* Put one of the broker's in the place of a socket that c-ares has made. 0 or -errno. */
static int replace_socket(int fd, int type, const struct outbound_options *outbound)
{
    int family = 0;
    socklen_t len = sizeof(family);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &len) < 0)
        return -errno;
    int made = outbound_open(outbound, family, type);
    if (made < 0)
        return made;
    int error = dup3(made, fd, O_CLOEXEC) < 0 ? -errno : 0;
    close(made);
    return error;
}

/* Before connect(): the mark decides the route. A query that cannot be marked is not sent. */
static int on_socket_created(ares_socket_t fd, int type, void *arg)
{
    const struct channel *c = arg;
    const struct outbound_options *outbound = c->resolver->options;
    if (outbound->broker)
        return replace_socket(fd, type, outbound) < 0 ? -1 : 0;
    return outbound_prepare_socket(fd, outbound) < 0 ? -1 : 0;
}

static void channel_free(struct channel *c)
{
    if (c->ares)
        ares_destroy(c->ares);
    LIST_EACH (it, &c->sockets)
        channel_drop_socket(CONTAINER_OF(it, struct channel_socket, link));
    loop_timer_stop(&c->timer);
    loop_undefer(&c->retire);
    list_remove(&c->link);
    free(c);
}

static int channel_init_ares(struct channel *c)
{
    struct resolver *r = c->resolver;
    char *path = strdup(r->conf_path);
    if (!path)
        return ARES_ENOMEM;
    struct ares_options options = {
        .timeout = QUERY_TIMEOUT_MS,
        .tries = QUERY_TRIES,
        .udp_port = r->port, /* host byte order, whatever the manual says */
        .tcp_port = r->port,
        .sock_state_cb = on_socket_state,
        .sock_state_cb_data = c,
        .resolvconf_path = path,
    };
    int mask = ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_SOCK_STATE_CB | ARES_OPT_RESOLVCONF;
    if (r->port != 0)
        mask |= ARES_OPT_UDP_PORT | ARES_OPT_TCP_PORT;
    int status = ares_init_options(&c->ares, &options, mask);
    free(path);
    if (status == ARES_SUCCESS)
        ares_set_socket_configure_callback(c->ares, on_socket_created, c);
    else
        c->ares = NULL;
    return status;
}

static struct channel *channel_new(struct resolver *r)
{
    static struct log_limit limit = LOG_LIMIT(1);
    int status = ARES_ENOMEM;
    struct channel *c = memory_zeroed(sizeof(*c));
    if (c) {
        c->resolver = r;
        list_init(&c->sockets);
        list_push_back(&r->channels, &c->link);
        status = channel_init_ares(c);
    }
    if (status == ARES_SUCCESS)
        return c;
    log_limited(LOG_LEVEL_WARN, &limit, "no name resolution: %s: %s", r->conf_path,
                ares_strerror(status));
    if (c)
        channel_free(c);
    return NULL;
}

static void on_retire(void *arg)
{
    struct channel *c = arg;
    if (c->queries == 0 && c != c->resolver->channel)
        channel_free(c);
}

static void channel_retire_when_done(struct channel *c)
{
    if (c->queries == 0 && c != c->resolver->channel)
        loop_defer(c->resolver->loop, &c->retire, on_retire, c);
}

static struct conf_stamp stamp_of(const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return (struct conf_stamp){0};
    return (struct conf_stamp){
        .device = st.st_dev, .inode = st.st_ino, .size = st.st_size, .changed = st.st_mtim};
}

static bool stamp_equal(const struct conf_stamp *a, const struct conf_stamp *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec;
}

/* The channel for new queries, made anew when resolv.conf is another one. NULL: there is none. */
static struct channel *current_channel(struct resolver *r)
{
    struct conf_stamp stamp = stamp_of(r->conf_path);
    if (r->channel && stamp_equal(&stamp, &r->stamp))
        return r->channel;
    struct channel *old = r->channel;
    if (old)
        log_debug("%s has changed: reading it again", r->conf_path);
    r->channel = channel_new(r);
    r->stamp = stamp;
    r->generation++;
    if (old)
        channel_retire_when_done(old);
    return r->channel;
}

/* --- names ----------------------------------------------------------------------------------- */

static bool name_equal(const struct map_entry *entry, const void *key)
{
    return strcmp(CONTAINER_OF(entry, const struct name, entry)->text, key) == 0;
}

static struct name *name_new(struct resolver *r, const char *text)
{
    size_t size = strlen(text) + 1;
    struct name *n = memory_zeroed(sizeof(*n) + size);
    if (!n)
        return NULL;
    memcpy(n->text, text, size);
    n->resolver = r;
    n->state = NAME_KNOWN;
    list_init(&n->idle);
    list_init(&n->requests);
    list_push_back(&r->all_names, &n->all);
    return n;
}

static void name_free(struct name *n)
{
    LIST_EACH (it, &n->requests)
        free(CONTAINER_OF(it, struct resolver_request, link));
    loop_undefer(&n->deliver);
    if (n->cached)
        map_remove(&n->resolver->names, &n->entry);
    list_remove(&n->idle);
    list_remove(&n->all);
    free(n);
}

static void evict_idle_names(struct resolver *r)
{
    struct link *first;
    while (r->names.size > CACHE_MAX && (first = list_first(&r->idle_names)) != NULL)
        name_free(CONTAINER_OF(first, struct name, idle));
}

static void on_deliver(void *arg)
{
    struct name *n = arg;
    struct resolver *r = n->resolver;
    struct link batch;
    list_init(&batch);
    list_insert_after(n->requests.prev, &batch);
    list_remove(&n->requests); /* `batch` now heads what has waited so far */
    n->delivering = true;
    struct link *first;
    while ((first = list_first(&batch)) != NULL) {
        struct resolver_request *request = CONTAINER_OF(first, struct resolver_request, link);
        resolver_fn *fn = request->fn;
        void *fn_arg = request->arg;
        list_remove(&request->link);
        free(request);
        fn(fn_arg, &n->answer);
    }
    n->delivering = false;
    list_remove(&n->idle);
    if (!list_empty(&n->requests))
        loop_defer(r->loop, &n->deliver, on_deliver, n); /* asked again meanwhile */
    else if (!n->cached)
        name_free(n);
    else
        list_push_back(&r->idle_names, &n->idle);
}

/* Its answer stands in `answer`, good for `ms` milliseconds. */
static void name_settle(struct name *n, uint64_t ms)
{
    struct resolver *r = n->resolver;
    n->state = NAME_KNOWN;
    n->expires_ms = loop_now(r->loop) + ms;
    n->generation = r->generation;
    if (!r->freeing)
        loop_defer(r->loop, &n->deliver, on_deliver, n);
}

static void name_fail(struct name *n, const char *why, uint64_t ms)
{
    n->answer.count = 0;
    n->answer.error = why;
    name_settle(n, ms);
}

/* Copy the addresses, in c-ares' (RFC 6724) order; returns the smallest TTL, in seconds, clamped.
 */
static unsigned take_addresses(struct resolver_answer *answer, const struct ares_addrinfo *info)
{
    int ttl = TTL_MAX_S;
    answer->count = 0;
    answer->error = NULL;
    for (const struct ares_addrinfo_cname *c = info->cnames; c; c = c->next)
        ttl = c->ttl < ttl ? c->ttl : ttl;
    for (const struct ares_addrinfo_node *node = info->nodes; node; node = node->ai_next) {
        struct endpoint e;
        if (answer->count == RESOLVER_ADDRS_MAX)
            break;
        if (!endpoint_from_sockaddr(node->ai_addr, &e))
            continue;
        answer->addrs[answer->count++] = e.addr;
        ttl = node->ai_ttl < ttl ? node->ai_ttl : ttl;
    }
    return ttl > TTL_MIN_S ? (unsigned)ttl : (unsigned)TTL_MIN_S;
}

static void on_addrinfo(void *arg, int status, int timeouts, struct ares_addrinfo *info)
{
    (void)timeouts;
    struct name *n = arg;
    struct channel *c = n->channel;
    n->channel = NULL;
    c->queries--;
    n->resolver->in_flight--;
    if (!n->resolver->freeing)
        channel_retire_when_done(c);
    if (status == ARES_SUCCESS && info) {
        unsigned ttl = take_addresses(&n->answer, info);
        if (n->answer.count > 0)
            name_settle(n, (uint64_t)ttl * 1000);
        else
            name_fail(n, ares_strerror(ARES_ENODATA), FAILURE_MS);
    } else {
        /* Want of memory is ours, not the name's: whoever asks next may be luckier. */
        name_fail(n, ares_strerror(status), status == ARES_ENOMEM ? 0 : FAILURE_MS);
    }
    if (info)
        ares_freeaddrinfo(info);
}

static void name_ask(struct name *n)
{
    struct resolver *r = n->resolver;
    if (r->in_flight >= IN_FLIGHT_MAX) {
        name_fail(n, "too many names are being looked up at once", 0);
        return;
    }
    struct channel *c = current_channel(r);
    if (!c) {
        name_fail(n, "no name resolution", FAILURE_MS);
        return;
    }
    const struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    n->state = NAME_RESOLVING;
    n->channel = c;
    c->queries++;
    r->in_flight++;
    ares_getaddrinfo(c->ares, n->text, NULL, &hints, on_addrinfo, n);
    channel_arm_timer(c);
}

/* A failure is not worth its five seconds when the servers are others now. */
static bool name_is_fresh(struct name *n)
{
    struct resolver *r = n->resolver;
    if (loop_now(r->loop) >= n->expires_ms)
        return false;
    return n->answer.count > 0 || (current_channel(r) && n->generation == r->generation);
}

/* The name as the cache's key: in lower case. False for what can be no host name. */
static bool normalise(const char *text, char key[NAME_MAX_BYTES + 1])
{
    size_t len = strnlen(text, NAME_MAX_BYTES + 1);
    if (len == 0 || len > NAME_MAX_BYTES)
        return false;
    for (size_t i = 0; i <= len; i++)
        key[i] = (char)tolower((unsigned char)text[i]);
    return true;
}

/* A name outside the cache whose answer is there already. */
static struct name *settled_name(struct resolver *r, const struct addr *addr, const char *error)
{
    struct name *n = name_new(r, "");
    if (!n)
        return NULL;
    if (addr)
        n->answer.addrs[n->answer.count++] = *addr;
    n->answer.error = error;
    name_settle(n, 0);
    return n;
}

static struct name *cached_name(struct resolver *r, const char *key)
{
    uint64_t hash = hash_bytes(key, strlen(key));
    struct map_entry *entry = map_find(&r->names, hash, key);
    if (entry) {
        struct name *n = CONTAINER_OF(entry, struct name, entry);
        bool waits = n->state == NAME_RESOLVING || n->deliver.pending || n->delivering;
        list_remove(&n->idle);
        if (!waits && !name_is_fresh(n))
            name_ask(n);
        else if (n->state == NAME_KNOWN)
            loop_defer(r->loop, &n->deliver, on_deliver, n);
        return n;
    }
    struct name *n = name_new(r, key);
    if (!n)
        return NULL;
    n->cached = true;
    map_insert(&r->names, &n->entry, hash);
    evict_idle_names(r);
    name_ask(n);
    return n;
}

struct resolver_request *resolver_lookup(struct resolver *r, const char *name, resolver_fn *fn,
                                         void *arg)
{
    struct resolver_request *request = memory_zeroed(sizeof(*request));
    if (!request)
        return NULL;
    request->fn = fn;
    request->arg = arg;
    char key[NAME_MAX_BYTES + 1];
    struct addr numeric;
    struct name *n;
    if (!normalise(name, key))
        n = settled_name(r, NULL, "not a host name");
    else if (addr_parse(key, &numeric))
        n = settled_name(r, &numeric, NULL);
    else
        n = cached_name(r, key);
    if (!n) {
        free(request);
        return NULL;
    }
    list_push_back(&n->requests, &request->link);
    return request;
}

void resolver_cancel(struct resolver_request *request)
{
    list_remove(&request->link);
    free(request);
}

/* --- the resolver ---------------------------------------------------------------------------- */

struct resolver *resolver_new(struct loop *loop, const struct outbound_options *options)
{
    struct resolver *r = memory_zeroed(sizeof(*r));
    if (!r)
        return NULL;
    r->loop = loop;
    r->options = options;
    r->conf_path = default_conf_path;
    list_init(&r->channels);
    list_init(&r->all_names);
    list_init(&r->idle_names);
    if (map_init(&r->names, 0, name_equal) < 0) {
        free(r);
        return NULL;
    }
    if (ares_library_init_mem(ARES_LIB_INIT_ALL, memory_get, free, memory_resized) !=
        ARES_SUCCESS) {
        map_free(&r->names);
        free(r);
        return NULL;
    }
    return r;
}

void resolver_set_servers(struct resolver *r, const char *conf_path, uint16_t port)
{
    r->conf_path = conf_path;
    r->port = port;
}

void resolver_free(struct resolver *r)
{
    if (!r)
        return;
    r->freeing = true;
    LIST_EACH (it, &r->channels)
        channel_free(CONTAINER_OF(it, struct channel, link));
    LIST_EACH (it, &r->all_names)
        name_free(CONTAINER_OF(it, struct name, all));
    map_free(&r->names);
    ares_library_cleanup();
    free(r);
}
