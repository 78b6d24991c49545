/*
 * Theory: a new flow costs one dial, so this is the path that bounds the connect rate. The
 * greeting (pipelined: the whole of what is to be said) is sent right after connect(), which
 * succeeds where the proxy is near; then only reading is watched. Else one event tells that the
 * connection is there, which the first send() proves: no getsockopt() is needed.
 * The socket is added to epoll once, edge-triggered, and never modified.
 *
 * Exactly the bytes of the proxy's answer are read, so that payload which follows it stays in
 * the socket for whoever takes it over.
 */
#include "core/proxy/attempt.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/log.h"

enum { DOUBT_MS = 20 };

static void on_ready(void *arg, unsigned ready);
static void proceed(struct attempt *a, unsigned ready);

static int watch(struct attempt *a, bool also_write)
{
    unsigned what = LOOP_READ | LOOP_EDGE | (also_write ? (unsigned)LOOP_WRITE : 0);
    a->watches_write = also_write;
    return loop_watch(a->loop, &a->io, a->fd, what, on_ready, a);
}

/* Send what the handshake has to say. 0, EAGAIN, or another errno. */
static int send_output(struct attempt *a)
{
    const uint8_t *out;
    size_t len;
    while ((len = socks5_client_output(&a->client, &out)) > 0) {
        ssize_t n = send(a->fd, out, len, MSG_NOSIGNAL);
        if (n >= 0)
            socks5_client_sent(&a->client, (size_t)n);
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

static int open_socket(struct attempt *a, const struct outbound_options *outbound,
                       struct sockaddr_storage *sa, socklen_t *sa_len)
{
    const int on = 1, off = 0;
    *sa_len = endpoint_to_sockaddr(&a->peer, sa);
    int fd = outbound_open(outbound, sa->ss_family, SOCK_STREAM);
    if (fd < 0)
        return -fd;
    a->fd = fd;
    setsockopt(a->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* slower without, that is all */
    /*
     * We speak first, at once: the ACK that ends the handshake rides on the greeting, and the ACKs
     * of the answers on what comes next. In bulk the kernel acknowledges as ever.
     */
    if (a->speaks_socks)
        setsockopt(a->fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof(off));
    return 0;
}

/*
 * The first send's errors that tell of a connection which was there and has gone; they are found
 * again, and told, by proceed(). A SYN that is refused gives others (tcp_reset() in the kernel).
 */
static bool was_connected(int error)
{
    return error == 0 || error == EPIPE || error == ECONNRESET;
}

/*
 * After connect(): is it connected already? 0, EAGAIN (not yet) or another errno. The kernel says
 * EINPROGRESS also for a peer that has answered before connect() returned, as one on this machine
 * does; sending finds out, and saves a wait and a turn of the loop.
 */
static int try_at_once(struct attempt *a, int connect_error)
{
    if (connect_error == EAGAIN)
        return EADDRNOTAVAIL; /* what old kernels say when the ports have run out */
    if (connect_error != 0 && connect_error != EINPROGRESS)
        return connect_error;
    if (a->speaks_socks)
        return send_output(a);
    return connect_error == 0 ? 0 : EAGAIN;
}

int attempt_start(struct attempt *a, struct loop *loop, const struct outbound_options *outbound)
{
    struct sockaddr_storage sa;
    socklen_t sa_len;
    a->loop = loop;
    a->fd = -1;
    int error = open_socket(a, outbound, &sa, &sa_len);
    if (error == 0) {
        int failed = connect(a->fd, (struct sockaddr *)&sa, sa_len);
        error = try_at_once(a, failed ? errno : 0);
        a->connected = was_connected(error);
    }
    if (a->connected || error == EAGAIN)
        error = -watch(a, !a->connected);
    if (error != 0) {
        a->connected = false;
        attempt_close(a);
    }
    return error;
}

void attempt_close(struct attempt *a)
{
    socks5_client_wipe(&a->client);
    loop_timer_stop(&a->doubt);
    loop_ignore(&a->io);
    if (a->fd >= 0)
        close(a->fd);
    a->fd = -1;
}

int attempt_take_socket(struct attempt *a)
{
    int fd = a->fd;
    socks5_client_wipe(&a->client);
    loop_timer_stop(&a->doubt);
    a->fd = -1;
    return fd;
}

static void fail_to_connect(struct attempt *a, int error)
{
    a->error = error;
    a->fn(a->arg, a, ATTEMPT_UNREACHED);
}

static enum attempt_event verdict(const struct attempt *a)
{
    if (a->client.state == SOCKS5_CLIENT_DONE)
        return ATTEMPT_SUCCEEDED;
    switch (a->client.failure) {
    case SOCKS5_FAILURE_METHOD:
        return ATTEMPT_NO_METHOD;
    case SOCKS5_FAILURE_AUTH:
        return ATTEMPT_NOT_TRUSTED;
    case SOCKS5_FAILURE_REPLY:
        return ATTEMPT_REPLIED;
    case SOCKS5_FAILURE_NONE:
    case SOCKS5_FAILURE_BAD:
        break;
    }
    return ATTEMPT_NONSENSE;
}

static void resolve_doubt(void *arg)
{
    proceed(arg, LOOP_READ | LOOP_CLOSED);
}

/*
 * Less was read than asked for: the socket is empty, and edge-triggered epoll tells of what comes
 * later. An end that was there already tells no more. An orderly one is known from LOOP_CLOSED; a
 * reset right behind the bytes is hidden by libevent (EPOLLERR becomes "readable and writable"),
 * so after a moment of silence the socket is read once more, to EAGAIN. False: read on now.
 */
static bool trust_short_read(struct attempt *a, unsigned ready)
{
    if (ready & LOOP_CLOSED)
        return false;
    loop_timer_start(a->loop, &a->doubt, DOUBT_MS, resolve_doubt, a);
    return true;
}

/*
 * The handshake's next steps, as far as the socket lets them go. What was sent is no reason not
 * to read on: a proxy may have answered and closed while it was written to.
 */
static void proceed(struct attempt *a, unsigned ready)
{
    bool readable = ready & LOOP_READ;
    for (;;) {
        int error = send_output(a);
        if (error == EAGAIN && !a->watches_write && watch(a, true) < 0)
            error = ENOMEM;
        if (error != 0 && error != EAGAIN)
            readable = true;
        if (!readable)
            return;
        uint8_t bytes[SOCKS5_REPLY_MAX];
        size_t wanted = socks5_client_wants(&a->client);
        ssize_t n = recv(a->fd, bytes, wanted < sizeof(bytes) ? wanted : sizeof(bytes), 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN && (error == 0 || error == EAGAIN))
            return;
        if (n <= 0) {
            if (n < 0)
                a->error = errno != EAGAIN ? errno : error;
            a->fn(a->arg, a, ATTEMPT_CLOSED);
            return;
        }
        socks5_client_input(&a->client, bytes, (size_t)n);
        if (socks5_client_wants(&a->client) == 0) {
            a->fn(a->arg, a, verdict(a));
            return;
        }
        if (a->client.method_seen && !a->told_method) {
            a->told_method = true;
            a->fn(a->arg, a, ATTEMPT_METHOD_SEEN);
            if (a->fd < 0)
                return;
        }
        if ((size_t)n < wanted)
            readable = !trust_short_read(a, ready);
    }
}

static void on_ready(void *arg, unsigned ready)
{
    struct attempt *a = arg;
    if (ready & LOOP_CLOSED)
        a->hung_up = true;
    if (a->fd < 0) /* taken, and about to be taken over */
        return;
    if (!a->connected) {
        int error = 0;
        socklen_t len = sizeof(error);
        if (a->speaks_socks)
            error = send_output(a);
        else if (getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
            error = errno;
        if (error == EAGAIN)
            return; /* not yet: SYN_SENT */
        if (!was_connected(error)) {
            fail_to_connect(a, error);
            return;
        }
        a->connected = true;
        a->fn(a->arg, a, ATTEMPT_CONNECTED);
        if (a->fd < 0)
            return;
    }
    if (!a->speaks_socks) {
        a->fn(a->arg, a, ATTEMPT_SUCCEEDED);
        return;
    }
    proceed(a, ready);
}
