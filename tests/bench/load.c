/*
 * The load that the benchmark puts on a tunnel, and the server behind it. One thread, epoll, plain
 * sockets: it knows nothing of tunnels.
 *
 *   load serve ADDR PORT                     echo TCP and UDP until killed
 *   load rr ADDR PORT CONNS SIZE SECONDS     round trips on held connections
 *   load crr ADDR PORT CONNS SECONDS         connect, exchange 100 bytes, close; CONNS at a time
 *   load udp ADDR PORT SIZE RATE SECONDS     datagrams at RATE a second, echoed
 *   load udpgso ADDR PORT SIZE RATE SECONDS  the same, sent in super-packets (UDP_SEGMENT)
 *   load hold ADDR PORT CONNS                open idle connections, hold them until stdin ends
 *   load sources ADDR PORT COUNT             a datagram from each of COUNT sources, held as well
 *   load start DEVICE PROGRAM ARGUMENTS...   run a tunnel; ms from fork() to its line with "ready"
 *                                            and to its device being up; end it
 *
 * The result is one line of JSON on stdout.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STALLED_NS 10000000000u /* without a new connection: there will be no more */

enum { EVENTS = 256, BUFFER = 65536, SAMPLES_MAX = 1 << 22, CRR_BYTES = 100, UDP_BATCH = 64 };

struct client {
    int fd;
    bool connected;
    size_t sent, received; /* of the exchange that is under way */
    uint64_t started_ns;
};

static struct sockaddr_storage server;
static socklen_t server_len;
static uint32_t *samples; /* microseconds x 10 */
static size_t sample_count;
static uint64_t errors;
static uint8_t buffer[BUFFER];

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void set_server(const char *addr, const char *port)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)&server;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&server;
    uint16_t p = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, addr, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = p;
        server_len = sizeof *v4;
    } else if (inet_pton(AF_INET6, addr, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = p;
        server_len = sizeof *v6;
    } else {
        fprintf(stderr, "load: %s is no address\n", addr);
        exit(2);
    }
}

static int new_socket(int type)
{
    int one = 1;
    int fd = socket(server.ss_family, type | SOCK_NONBLOCK, 0);
    if (fd < 0)
        die("socket");
    if (type == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void watch(int epoll, int fd, void *ptr)
{
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, .data.ptr = ptr};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) != 0)
        die("epoll_ctl");
}

static void sample(uint64_t started_ns)
{
    if (sample_count < SAMPLES_MAX)
        samples[sample_count++] = (uint32_t)((now_ns() - started_ns) / 100);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void report(uint64_t count, double seconds)
{
    qsort(samples, sample_count, sizeof *samples, by_value);
    double p50 = sample_count ? samples[sample_count / 2] / 10.0 : 0;
    double p99 = sample_count ? samples[sample_count * 99 / 100] / 10.0 : 0;
    printf("{\"count\": %llu, \"per_second\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"errors\": %llu}\n",
           (unsigned long long)count, (double)count / seconds, p50, p99,
           (unsigned long long)errors);
}

/* --- the server ----------------------------------------------------------------------------------
 */

static void echo_stream(int fd)
{
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0 || send(fd, buffer, (size_t)n, MSG_NOSIGNAL) != n) {
            close(fd);
            return;
        }
        if ((size_t)n < sizeof buffer)
            return; /* level-triggered: what is left comes again */
    }
}

static void echo_datagrams(int fd)
{
    static uint8_t buffers[UDP_BATCH][2048];
    static struct sockaddr_storage from[UDP_BATCH];
    struct iovec iov[UDP_BATCH];
    struct mmsghdr messages[UDP_BATCH];
    for (int i = 0; i < UDP_BATCH; i++) {
        iov[i] = (struct iovec){buffers[i], sizeof buffers[i]};
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &from[i],
                                                   .msg_namelen = sizeof from[i],
                                                   .msg_iov = &iov[i],
                                                   .msg_iovlen = 1}};
    }
    int n = recvmmsg(fd, messages, UDP_BATCH, MSG_DONTWAIT, NULL);
    for (int i = 0; i < n; i++)
        iov[i].iov_len = messages[i].msg_len;
    if (n > 0)
        sendmmsg(fd, messages, (unsigned)n, MSG_DONTWAIT);
}

static void serve(void)
{
    int one = 1, size = 8 << 20;
    int epoll = epoll_create1(0);
    int tcp = new_socket(SOCK_STREAM), udp = new_socket(SOCK_DGRAM);
    setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    if (bind(tcp, (struct sockaddr *)&server, server_len) != 0 || listen(tcp, 4096) != 0 ||
        bind(udp, (struct sockaddr *)&server, server_len) != 0)
        die("bind");
    struct epoll_event e = {.events = EPOLLIN, .data.fd = tcp}, ready[EVENTS];
    epoll_ctl(epoll, EPOLL_CTL_ADD, tcp, &e);
    e.data.fd = udp;
    epoll_ctl(epoll, EPOLL_CTL_ADD, udp, &e);
    for (;;) {
        int n = epoll_wait(epoll, ready, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.fd == udp) {
                echo_datagrams(udp);
            } else if (ready[i].data.fd != tcp) {
                echo_stream(ready[i].data.fd);
            } else {
                int fd = accept4(tcp, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0)
                    continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                e = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
            }
        }
    }
}

/* --- TCP load ------------------------------------------------------------------------------------
 */

static void start_connect(int epoll, struct client *c)
{
    *c = (struct client){.fd = new_socket(SOCK_STREAM), .started_ns = now_ns()};
    if (connect(c->fd, (struct sockaddr *)&server, server_len) != 0 && errno != EINPROGRESS)
        die("connect");
    watch(epoll, c->fd, c);
}

static void push(struct client *c, size_t size)
{
    while (c->sent < size) {
        ssize_t n = send(c->fd, buffer, size - c->sent, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        c->sent += (size_t)n;
    }
}

/* 1: the exchange is complete; 0: not yet; -1: it failed. */
static int progress(struct client *c, unsigned events, size_t size)
{
    if (events & (EPOLLERR | EPOLLHUP))
        return -1;
    if (!c->connected && !(events & EPOLLOUT))
        return 0;
    c->connected = true;
    push(c, size);
    while (c->received < size) {
        ssize_t n = recv(c->fd, buffer, size - c->received, 0);
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n <= 0)
            return -1;
        c->received += (size_t)n;
    }
    return 1;
}

static void next_exchange(int epoll, struct client *c, bool reconnect, size_t size)
{
    if (reconnect) {
        close(c->fd);
        start_connect(epoll, c);
        return;
    }
    c->sent = c->received = 0;
    c->started_ns = now_ns();
    push(c, size);
}

static void exchange(size_t conns, size_t size, double seconds, bool reconnect)
{
    int epoll = epoll_create1(0);
    struct client *clients = calloc(conns, sizeof *clients);
    struct epoll_event ready[EVENTS];
    for (size_t i = 0; i < conns; i++)
        start_connect(epoll, &clients[i]);
    uint64_t begin = now_ns(), end = begin + (uint64_t)(seconds * 1e9), count = 0;
    while (now_ns() < end) {
        int n = epoll_wait(epoll, ready, EVENTS, 100);
        for (int i = 0; i < n; i++) {
            struct client *c = ready[i].data.ptr;
            int result = progress(c, ready[i].events, size);
            if (result == 0)
                continue;
            if (result < 0) {
                errors++;
                next_exchange(epoll, c, true, size);
                continue;
            }
            sample(c->started_ns);
            count++;
            next_exchange(epoll, c, reconnect, size);
        }
    }
    report(count, (double)(now_ns() - begin) / 1e9);
}

static void hold(size_t conns)
{
    int epoll = epoll_create1(0);
    struct client *clients = calloc(conns, sizeof *clients);
    struct epoll_event ready[EVENTS];
    size_t started = 0, connected = 0;
    uint64_t end = now_ns() + STALLED_NS;
    while (connected + errors < conns && now_ns() < end) {
        while (started < conns && started < connected + errors + 200)
            start_connect(epoll, &clients[started++]);
        int n = epoll_wait(epoll, ready, EVENTS, 1000);
        for (int i = 0; i < n; i++) {
            struct client *c = ready[i].data.ptr;
            if (c->connected)
                continue;
            c->connected = true;
            end = now_ns() + STALLED_NS;
            if (ready[i].events & (EPOLLERR | EPOLLHUP))
                errors++;
            else
                connected++;
        }
    }
    printf("{\"held\": %zu, \"errors\": %llu}\n", connected, (unsigned long long)errors);
    fflush(stdout);
    while (read(0, buffer, sizeof buffer) > 0)
        continue;
}

/* --- UDP load
 * ------------------------------------------------------------------------------------- */

static uint64_t take_echoes(int fd)
{
    static uint8_t buffers[UDP_BATCH][2048];
    struct iovec iov[UDP_BATCH];
    struct mmsghdr messages[UDP_BATCH];
    uint64_t total = 0;
    for (int n = UDP_BATCH; n == UDP_BATCH; total += n > 0 ? (uint64_t)n : 0) {
        for (int i = 0; i < UDP_BATCH; i++) {
            iov[i] = (struct iovec){buffers[i], sizeof buffers[i]};
            messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &iov[i], .msg_iovlen = 1}};
        }
        n = recvmmsg(fd, messages, UDP_BATCH, MSG_DONTWAIT, NULL);
    }
    return total;
}

/* Send `n` datagrams of `size` bytes, in one call; returns how many the kernel took. */
static uint64_t send_datagrams(int fd, size_t size, unsigned n, bool gso)
{
    struct iovec iov = {buffer, gso ? size * n : size};
    struct mmsghdr messages[UDP_BATCH];
    for (unsigned i = 0; i < n; i++)
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &iov, .msg_iovlen = 1}};
    int done = sendmmsg(fd, messages, gso ? 1 : n, MSG_DONTWAIT);
    if (gso)
        return done == 1 ? n : 0;
    return done > 0 ? (uint64_t)done : 0;
}

static void offer_datagrams(size_t size, double rate, double seconds, bool gso)
{
    int big = 8 << 20, segment = (int)size;
    int fd = new_socket(SOCK_DGRAM);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof big);
    if (connect(fd, (struct sockaddr *)&server, server_len) != 0)
        die("connect");
    if (gso && setsockopt(fd, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment) != 0)
        die("UDP_SEGMENT");
    /* The first makes the association, so that what is measured is relaying. */
    uint64_t echoed = 0, sent = 0, begin = now_ns();
    send_datagrams(fd, size, 1, false);
    while (take_echoes(fd) == 0 && now_ns() < begin + 2000000000u)
        usleep(1000);
    begin = now_ns();
    uint64_t end = begin + (uint64_t)(seconds * 1e9);
    while (now_ns() < end) {
        uint64_t due = (uint64_t)((double)(now_ns() - begin) / 1e9 * rate);
        while (sent < due) {
            unsigned n = due - sent < UDP_BATCH ? (unsigned)(due - sent) : UDP_BATCH;
            uint64_t done = send_datagrams(fd, size, n, gso);
            sent += done > 0 ? done : n; /* a full queue loses them */
        }
        echoed += take_echoes(fd);
        usleep(100);
    }
    usleep(200000);
    echoed += take_echoes(fd);
    printf("{\"offered\": %llu, \"echoed\": %llu, \"share\": %.4f}\n", (unsigned long long)sent,
           (unsigned long long)echoed, sent ? (double)echoed / (double)sent : 0);
}

static void hold_sources(size_t count)
{
    int *fds = calloc(count, sizeof *fds);
    size_t answered = 0;
    for (size_t i = 0; i < count; i++) {
        fds[i] = new_socket(SOCK_DGRAM);
        if (connect(fds[i], (struct sockaddr *)&server, server_len) != 0 ||
            send(fds[i], "x", 1, 0) != 1)
            errors++;
        usleep(500);
    }
    usleep(1000000);
    for (size_t i = 0; i < count; i++)
        answered += recv(fds[i], buffer, sizeof buffer, MSG_DONTWAIT) == 1;
    printf("{\"held\": %zu, \"errors\": %llu}\n", answered, (unsigned long long)errors);
    fflush(stdout);
    while (read(0, buffer, sizeof buffer) > 0)
        continue;
}

/* --- start-up ------------------------------------------------------------------------------------
 */

static bool is_up(int fd, const char *device)
{
    struct ifreq ifr = {0};
    strncpy(ifr.ifr_name, device, IFNAMSIZ - 1);
    return ioctl(fd, SIOCGIFFLAGS, &ifr) == 0 && (ifr.ifr_flags & IFF_UP);
}

/* Has "ready" been said? What comes before it fits the buffer, or is forgotten. */
static bool hear_ready(int fd)
{
    static size_t len;
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    if (poll(&ready, 1, 0) <= 0)
        return false;
    len = len < BUFFER / 2 ? len : 0;
    ssize_t n = read(fd, buffer + len, BUFFER - 1 - len);
    len += n > 0 ? (size_t)n : 0;
    buffer[len] = 0;
    return strstr((const char *)buffer, "ready") != NULL;
}

static void print_ms(const char *name, uint64_t ns, const char *end)
{
    if (ns > 0)
        printf("\"%s\": %.2f%s", name, (double)ns / 1e6, end);
    else
        printf("\"%s\": null%s", name, end);
}

static void start_up(const char *device, char **argv)
{
    int said[2], status;
    uint64_t ready = 0, up = 0;
    int query = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (pipe(said) != 0 || query < 0)
        die("pipe");
    uint64_t begin = now_ns();
    pid_t pid = fork();
    if (pid == 0) {
        dup2(said[1], 2);
        close(said[0]);
        execvp(argv[0], argv);
        _exit(127);
    }
    close(said[1]);
    /* One that never says it is ready is waited for a little longer than its device. */
    while ((!ready && now_ns() < begin + 10000000000u) &&
           !(up && now_ns() > up + begin + 500000000u)) {
        if (!up && is_up(query, device))
            up = now_ns() - begin;
        if (!ready && hear_ready(said[0]))
            ready = now_ns() - begin;
        usleep(20);
    }
    if (!up && is_up(query, device))
        up = now_ns() - begin;
    kill(pid, SIGTERM);
    waitpid(pid, &status, 0);
    printf("{");
    print_ms("ready", ready, ", ");
    print_ms("up", up, "}\n");
}

int main(int argc, char **argv)
{
    struct rlimit files;
    if (argc < 4) {
        fprintf(stderr, "usage: load serve|rr|crr|udp|udpgso|hold|sources|start ...\n");
        return 2;
    }
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (strcmp(argv[1], "start") == 0) {
        start_up(argv[2], argv + 3);
        return 0;
    }
    set_server(argv[2], argv[3]);
    samples = malloc(SAMPLES_MAX * sizeof *samples);
    if (strcmp(argv[1], "serve") == 0)
        serve();
    else if (strcmp(argv[1], "rr") == 0 && argc == 7)
        exchange((size_t)atoi(argv[4]), (size_t)atoi(argv[5]), atof(argv[6]), false);
    else if (strcmp(argv[1], "crr") == 0 && argc == 6)
        exchange((size_t)atoi(argv[4]), CRR_BYTES, atof(argv[5]), true);
    else if (strcmp(argv[1], "udp") == 0 && argc == 7)
        offer_datagrams((size_t)atoi(argv[4]), atof(argv[5]), atof(argv[6]), false);
    else if (strcmp(argv[1], "udpgso") == 0 && argc == 7)
        offer_datagrams((size_t)atoi(argv[4]), atof(argv[5]), atof(argv[6]), true);
    else if (strcmp(argv[1], "hold") == 0 && argc == 5)
        hold((size_t)atoi(argv[4]));
    else if (strcmp(argv[1], "sources") == 0 && argc == 5)
        hold_sources((size_t)atoi(argv[4]));
    else
        return 2;
    return 0;
}
