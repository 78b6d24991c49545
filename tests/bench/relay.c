/*
 * A plain socket-to-socket copy relay, for comparison: it listens where the application connects,
 * asks the SOCKS5 proxy for one fixed target, and copies bytes both ways through a buffer. What
 * it costs is what moving the bytes costs, with no packets in between.
 *
 *   relay LISTEN_ADDR PORT PROXY_ADDR PROXY_PORT TARGET_ADDR TARGET_PORT    (all IPv4)
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 65536, EVENTS = 64 };

struct side {
    int fd;
    struct side *other;
    uint8_t *pending; /* read from `other`, not yet written here */
    size_t pending_at, pending_len;
    bool other_ended, shut;
};

static uint8_t shared[BUFFER];

static struct sockaddr_in address(const char *addr, const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, addr, &a.sin_addr) != 1)
        exit(2);
    return a;
}

/* Connected through the proxy, blocking while it shakes hands; -1 where it cannot be. */
static int dial(const struct sockaddr_in *proxy, const struct sockaddr_in *target)
{
    uint8_t request[13] = {5, 1, 0, 5, 1, 0, 1}, reply[12];
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    memcpy(request + 7, &target->sin_addr, 4);
    memcpy(request + 11, &target->sin_port, 2);
    if (connect(fd, (const struct sockaddr *)proxy, sizeof *proxy) == 0 &&
        send(fd, request, sizeof request, 0) == sizeof request &&
        recv(fd, reply, sizeof reply, MSG_WAITALL) == sizeof reply && reply[3] == 0)
        return fd;
    close(fd);
    return -1;
}

static void watch(int epoll, struct side *s)
{
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, .data.ptr = s};
    epoll_ctl(epoll, EPOLL_CTL_ADD, s->fd, &e);
}

static void open_pair(int epoll, int fd, const struct sockaddr_in *proxy,
                      const struct sockaddr_in *target)
{
    int one = 1, out = dial(proxy, target);
    if (out < 0) {
        close(fd);
        return;
    }
    struct side *pair = calloc(2, sizeof *pair);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    pair[0] = (struct side){.fd = fd, .other = &pair[1]};
    pair[1] = (struct side){.fd = out, .other = &pair[0]};
    watch(epoll, &pair[0]);
    watch(epoll, &pair[1]);
}

/* Write what is pending. False: the socket takes no more for now, or has failed. */
static bool flush(struct side *to)
{
    while (to->pending_len > 0) {
        ssize_t n = send(to->fd, to->pending + to->pending_at, to->pending_len,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return false;
        to->pending_at += (size_t)n;
        to->pending_len -= (size_t)n;
    }
    if (to->other_ended && !to->shut) {
        shutdown(to->fd, SHUT_WR);
        to->shut = true;
    }
    return true;
}

static void keep(struct side *to, const uint8_t *bytes, size_t len)
{
    if (to->pending == NULL)
        to->pending = malloc(BUFFER);
    memcpy(to->pending, bytes, len);
    to->pending_at = 0;
    to->pending_len = len;
}

static void copy(struct side *from, struct side *to)
{
    while (flush(to) && !to->other_ended) {
        ssize_t n = recv(from->fd, shared, BUFFER, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            to->other_ended = true;
            continue;
        }
        ssize_t sent = send(to->fd, shared, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < n)
            keep(to, shared + (sent > 0 ? sent : 0), (size_t)(n - (sent > 0 ? sent : 0)));
    }
}

int main(int argc, char **argv)
{
    struct epoll_event ready[EVENTS];
    if (argc != 7)
        return 2;
    struct sockaddr_in here = address(argv[1], argv[2]), proxy = address(argv[3], argv[4]),
                       target = address(argv[5], argv[6]);
    int one = 1, epoll = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) != 0 || listen(listener, 1024) != 0) {
        perror("relay");
        return 1;
    }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(epoll, ready, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct side *s = ready[i].data.ptr;
            if (s == NULL) {
                open_pair(epoll, accept(listener, NULL, NULL), &proxy, &target);
                continue;
            }
            copy(s, s->other);
            copy(s->other, s);
            if (s->shut && s->other->shut) {
                close(s->fd); /* the pair is leaked: a benchmark ends soon, and a stale event */
                close(s->other->fd); /* of this round may still point to it */
                s->fd = s->other->fd = -1;
                s->shut = s->other->shut = false;
            }
        }
    }
}
