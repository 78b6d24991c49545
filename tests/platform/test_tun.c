/*
 * What device_linux.c and output.c assume of the kernel's TUN driver: the vnet header both ways,
 * partial checksums, segmentation offloads, queues, take-over, passed descriptors.
 */
#include "stack/output.h"

#include <fcntl.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <linux/if_tun.h>

#include "tests/platform/platform.h"
#include "tests/unit/wire.h"

static uint8_t buffer[PACKET_BUFFER_SIZE];
static uint8_t data[66000];

static const char *const remotes[2] = {"[fd00::5]:8080", "198.18.5.5:8080"};

/* The next packet of that kind; others are skipped. */
static struct packet read_until(struct device *d, enum packet_verdict verdict,
                                struct packet_info *info)
{
    struct packet p = {.buffer = buffer};
    for (int i = 0; i < 100; i++) {
        if (!platform_read(d, &p, PLATFORM_WAIT_MS))
            break;
        packet_parse(&p, info);
        if (info->verdict == verdict)
            return p;
    }
    fail_msg("no such packet came");
    return p;
}

/* A socket of that type, connected to the remote; TCP only begins to. */
static int connect_socket(int type, bool v4)
{
    struct sockaddr_storage sa;
    struct endpoint remote = platform_endpoint(remotes[v4]);
    socklen_t len = endpoint_to_sockaddr(&remote, &sa);
    int fd = socket(sa.ss_family, type | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    assert_true(connect(fd, (struct sockaddr *)&sa, len) == 0 || errno == EINPROGRESS);
    return fd;
}

/* --- TCP: the smallest remote that can talk to a kernel ------------------------------------- */

struct remote {
    struct device *device;
    struct wire headers; /* answers to the application, without payload */
    uint32_t sequence, acknowledged;
    unsigned scale; /* of the application's windows */
    uint32_t edge;  /* right, of the last of them: remote_window() */
};

/* The window scale that a SYN offers (RFC 7323 2.2). */
static unsigned scale_in(const uint8_t *tcp)
{
    const uint8_t *end = tcp + (size_t)(tcp[12] >> 4) * 4;
    for (const uint8_t *o = tcp + 20; o < end && *o != 0; o += *o == 1 ? 1 : o[1])
        if (*o == 3)
            return o[2];
    return 0;
}

static void remote_send(struct remote *r, uint8_t flags, const uint8_t *payload, size_t len,
                        uint16_t mss)
{
    static struct wire w;
    w = r->headers;
    uint8_t *tcp = w.bytes + w.transport;
    size_t header_len = w.transport + (size_t)(tcp[12] >> 4) * 4;
    wire_put32(tcp + 4, r->sequence);
    wire_put32(tcp + 8, r->acknowledged);
    tcp[13] = flags;
    struct iovec iov[3] = {[1] = {w.bytes, header_len}, [2] = {(void *)payload, len}};
    assert_int_equal(output_tcp(r->device, iov, len > 0 ? 3 : 2, header_len, mss), 0);
    r->sequence += (uint32_t)len + (flags & 2 ? 1 : 0);
}

/* Answer the SYN of a connect() that has begun. */
static void remote_accept(struct remote *r, struct device *d)
{
    static const uint8_t options[8] = {2, 4, 0x05, 0x78, 1, 3, 3, 7}; /* MSS 1400, scale 7 */
    struct packet_info info;
    struct packet syn = read_until(d, PACKET_TCP, &info);
    bool v4 = addr_is_v4(&info.src.addr);
    size_t at = v4 ? 12 : 8, len = v4 ? 4 : 16;
    r->device = d;
    r->edge = 0xfffffff0;
    r->scale = scale_in(syn.data + info.ip_header_len);
    r->sequence = 0xfffffff0;
    r->acknowledged = wire_get32(syn.data + info.ip_header_len + 4) + 1;
    wire_tcp(&r->headers, v4, 0, 8, 0);
    uint8_t *ip = r->headers.bytes, *tcp = ip + r->headers.transport;
    memcpy(ip + at, syn.data + at + len, len);
    memcpy(ip + at + len, syn.data + at, len);
    wire_put16(tcp, info.dst.port);
    wire_put16(tcp + 2, info.src.port);
    memcpy(tcp + 20, options, 8);
    remote_send(r, 2 | 16, NULL, 0, 1400);
    memset(tcp + 20, 1, 8);
}

/* Data of the application, as it comes; returns bytes of payload and checks the packet's form. */
static size_t remote_receive(struct remote *r, uint8_t *out, bool *was_super)
{
    struct packet_info info;
    struct packet p = read_until(r->device, PACKET_TCP, &info);
    size_t headers = (size_t)info.ip_header_len + info.transport_header_len;
    size_t len = info.len - headers;
    uint16_t field = wire_get16(p.data + info.ip_header_len + 16);
    if (r->device->caps.csum) {
        assert_int_equal(p.offload.csum, PACKET_CSUM_PARTIAL);
        assert_int_equal(field, wire_pseudo(p.data, IPPROTO_TCP, info.len - info.ip_header_len));
    } else {
        assert_int_equal(p.offload.csum, PACKET_CSUM_NONE);
    }
    if (p.offload.gso != PACKET_GSO_NONE) {
        *was_super = true;
        assert_int_equal(p.offload.gso_size, 1400);
        assert_true(len > 1400);
    }
    if (wire_get32(p.data + info.ip_header_len + 4) != r->acknowledged)
        return 0; /* a retransmission */
    memcpy(out, p.data + headers, len);
    r->acknowledged += (uint32_t)len;
    return len;
}

static void tcp_both_ways(bool v4, bool offload)
{
    static uint8_t got[66000];
    struct device *d = platform_device("tcp", offload, 1500);
    int fd = connect_socket(SOCK_STREAM, v4);
    struct remote r;
    remote_accept(&r, d);
    /* Up: super-packets come when the device has TSO. */
    bool was_super = false;
    size_t received = 0, len = 60000;
    struct pollfd connected = {.fd = fd, .events = POLLOUT};
    assert_int_equal(poll(&connected, 1, PLATFORM_WAIT_MS), 1);
    assert_int_equal(write(fd, data, len), len);
    while (received < len) {
        received += remote_receive(&r, got + received, &was_super);
        remote_send(&r, 16, NULL, 0, 1400);
    }
    assert_memory_equal(got, data, len);
    assert_int_equal(was_super, d->caps.tso);
    /* Down: the kernel takes one, also one with CWR (VIRTIO_NET_HDR_GSO_ECN). */
    remote_send(&r, 16 | 8 | 128, data, len, 1400);
    for (received = 0; received < len;) {
        assert_true(platform_readable(fd, PLATFORM_WAIT_MS));
        ssize_t n = read(fd, got + received, sizeof(got) - received);
        assert_true(n > 0);
        received += (size_t)n;
    }
    assert_memory_equal(got, data, len);
    assert_int_equal(d->write_drops, 0);
    close(fd);
    device_close(d);
}

static void test_tcp_offloaded(void **state)
{
    (void)state;
    tcp_both_ways(false, true);
    tcp_both_ways(true, true);
}

static void test_tcp_plain(void **state)
{
    (void)state;
    tcp_both_ways(false, false);
    tcp_both_ways(true, false);
}

/* --- super-packets above 64 KiB ----------------------------------------------------------------
 */

/* How much the application takes, by the last ACK that came. */
static size_t remote_window(struct remote *r)
{
    struct packet_info info;
    struct packet p = {.buffer = buffer};
    while (platform_read(r->device, &p, 20)) {
        packet_parse(&p, &info);
        if (info.verdict != PACKET_TCP)
            continue;
        const uint8_t *tcp = p.data + info.ip_header_len;
        r->edge = wire_get32(tcp + 8) + ((uint32_t)wire_get16(tcp + 14) << r->scale);
    }
    return (int32_t)(r->edge - r->sequence) > 0 ? r->edge - r->sequence : 0;
}

static int remote_send_big(struct remote *r, const uint8_t *payload, size_t len, uint16_t mss)
{
    struct wire w = r->headers;
    uint8_t *tcp = w.bytes + w.transport;
    size_t header_len = w.transport + (size_t)(tcp[12] >> 4) * 4;
    wire_put32(tcp + 4, r->sequence);
    wire_put32(tcp + 8, r->acknowledged);
    tcp[13] = 16 | 8;
    struct iovec iov[3] = {[1] = {w.bytes, header_len}, [2] = {(void *)payload, len}};
    int error = output_big_tcp(r->device, iov, 3, header_len, mss);
    if (error == 0)
        r->sequence += (uint32_t)len;
    return error;
}

static void read_exactly(int fd, uint8_t *out, size_t len)
{
    for (size_t got = 0; got < len;) {
        assert_true(platform_readable(fd, PLATFORM_WAIT_MS));
        ssize_t n = read(fd, out + got, len - got);
        assert_true(n > 0);
        got += (size_t)n;
    }
}

static void big_tcp_down(bool v4)
{
    enum { BIG = 400000 };
    static uint8_t sent[BIG], got[BIG];
    struct device *d = platform_device("big", true, 1500);
    int fd = connect_socket(SOCK_STREAM, v4);
    struct remote r;
    remote_accept(&r, d);
    for (size_t i = 0; i < BIG; i++)
        sent[i] = (uint8_t)(i * 13 + i / 251);
    unsigned bigs = 0;
    for (int tries = 0; tries < 100 && bigs < 3; tries++) {
        size_t room = remote_window(&r), len = room < BIG ? room : BIG;
        if (len > 100000 && remote_send_big(&r, sent, len, 1400) == 0)
            bigs++;
        else
            remote_send(&r, 16, sent, len = len < 60000 ? len : 60000, 1400);
        read_exactly(fd, got, len);
        assert_memory_equal(got, sent, len);
    }
    assert_int_equal(bigs, 3);
    assert_int_equal(d->write_drops, 0);
    close(fd);
    device_close(d);
}

/*
 * A TUN device takes them for a socket of this machine: IPv4 with a total length of 0, IPv6 with a
 * jumbo payload option. The application's window opens as it reads.
 */
static void test_big_tcp(void **state)
{
    (void)state;
    if (!link_kernel_has_big_tcp())
        skip();
    big_tcp_down(true);
    big_tcp_down(false);
}

/* This kernel does it all; an older one is told by what it lacks (USO: Linux 6.2). */
static void test_caps(void **state)
{
    (void)state;
    struct device *d = platform_device("caps", true, 1500);
    assert_true(d->caps.csum);
    assert_true(d->caps.tso);
    if (!d->caps.uso)
        print_message("this kernel has no USO\n");
    if (!d->caps.big_tcp)
        print_message("this kernel has no super-packets above 64 KiB\n");
    device_close(d);
    d = platform_device("caps", false, 1500);
    assert_false(d->caps.csum || d->caps.tso || d->caps.uso);
    device_close(d);
}

/* --- UDP ------------------------------------------------------------------------------------ */

/* The application's own endpoint, and the remote's, as the answer needs them. */
static void udp_endpoints(int fd, bool v4, struct endpoint *app, struct endpoint *remote)
{
    struct sockaddr_storage sa;
    socklen_t len = sizeof(sa);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
    assert_true(endpoint_from_sockaddr((struct sockaddr *)&sa, app));
    *remote = platform_endpoint(remotes[v4]);
}

static void receive_exactly(int fd, const uint8_t *expected, size_t len)
{
    static uint8_t got[66000];
    assert_true(platform_readable(fd, PLATFORM_WAIT_MS));
    assert_int_equal(recv(fd, got, sizeof(got), 0), len);
    assert_memory_equal(got, expected, len);
}

/* Whole, fragmented, and many in one packet; none lost, none altered. */
static void udp_down(bool v4, bool offload)
{
    static const size_t lengths[] = {0, 1, 1452, 1473, 9000, 65507};
    struct device *d = platform_device("udp", offload, 1500);
    int fd = connect_socket(SOCK_DGRAM, v4);
    struct endpoint app, remote;
    udp_endpoints(fd, v4, &app, &remote);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        assert_int_equal(output_udp(d, &remote, &app, data, lengths[i], 0), 0);
        receive_exactly(fd, data, lengths[i]);
    }
    assert_int_equal(output_udp(d, &remote, &app, data, 10500, 1000), 0);
    for (size_t at = 0; at < 10500; at += 1000)
        receive_exactly(fd, data + at, at == 10000 ? 500 : 1000);
    close(fd);
    device_close(d);
}

static void test_udp_down(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        udp_down(i % 2, i / 2);
}

/* Datagrams that were sent with UDP_SEGMENT arrive as one packet where the device has USO. */
static void udp_up(bool v4, bool offload)
{
    struct device *d = platform_device("udp", offload, 1500);
    int fd = connect_socket(SOCK_DGRAM, v4), size = 1000;
    assert_int_equal(setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof(size)), 0);
    assert_int_equal(send(fd, data, 10500, 0), 10500);
    struct packet_info info;
    size_t at = 0;
    for (int packets = 0; at < 10500; packets++) {
        struct packet p = read_until(d, PACKET_UDP, &info);
        size_t headers = (size_t)info.ip_header_len + info.transport_header_len;
        assert_int_equal(info.len - headers, d->caps.uso ? 10500 : at < 10000 ? 1000 : 500);
        assert_int_equal(p.offload.gso, d->caps.uso ? PACKET_GSO_UDP : PACKET_GSO_NONE);
        assert_int_equal(p.offload.gso_size, d->caps.uso ? 1000 : 0);
        assert_memory_equal(p.data + headers, data + at, info.len - headers);
        at += info.len - headers;
    }
    close(fd);
    device_close(d);
}

static void test_udp_up(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        udp_up(i % 2, i / 2);
}

/* The kernel fragments what exceeds the MTU, with complete checksums. */
static void test_fragments_up(void **state)
{
    (void)state;
    struct device *d = platform_device("udp", true, 1500);
    for (int v4 = 0; v4 <= 1; v4++) {
        int fd = connect_socket(SOCK_DGRAM, v4), off = 0;
        setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &off, sizeof(off));
        assert_int_equal(send(fd, data, 5000, 0), 5000);
        struct packet_info info;
        size_t got = 0;
        while (got < 5008) {
            struct packet p = read_until(d, PACKET_FRAGMENT, &info);
            assert_int_equal(info.protocol, IPPROTO_UDP);
            assert_int_equal(p.offload.csum, PACKET_CSUM_NONE);
            got += info.len - info.ip_header_len;
        }
        assert_int_equal(got, 5008);
        close(fd);
    }
    device_close(d);
}

/* --- checksums ------------------------------------------------------------------------------ */

/*
 * Only a partial checksum spares the kernel from verifying; that it was vouched for
 * (VIRTIO_NET_HDR_F_DATA_VALID) means nothing to a TUN device that is written to.
 */
static void test_checksum_semantics(void **state)
{
    (void)state;
    struct device *d = platform_device("sums", true, 1500);
    int fd = connect_socket(SOCK_DGRAM, true);
    struct endpoint app, remote;
    udp_endpoints(fd, true, &app, &remote);
    static const struct {
        uint8_t csum;
        uint16_t damage;
        bool arrives;
    } rows[] = {
        {PACKET_CSUM_NONE, 0, true},
        {PACKET_CSUM_NONE, 1, false},
        {PACKET_CSUM_VERIFIED, 1, false},
        {PACKET_CSUM_PARTIAL, 0, true},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint8_t headers[PACKET_IP_UDP_HEADER_MAX];
        struct iovec payload = {data, 100};
        bool partial = rows[i].csum == PACKET_CSUM_PARTIAL;
        size_t len = packet_build_udp(headers, &remote, &app, &payload, partial);
        wire_put16(headers + 26, wire_get16(headers + 26) ^ rows[i].damage);
        struct iovec iov[3] = {[1] = {headers, len}, [2] = payload};
        struct offload o = {.csum = rows[i].csum, .csum_start = 20, .csum_offset = 6};
        assert_int_equal(device_write(d, iov, 3, &o), 0);
        if (rows[i].arrives)
            receive_exactly(fd, data, 100);
        else
            assert_true(recv(fd, buffer, sizeof(buffer), 0) < 0 && errno == EAGAIN);
    }
    close(fd);
    device_close(d);
}

/* --- opening, taking over, adopting --------------------------------------------------------- */

static struct device *try_open(const char *name, bool offload, bool multi_queue, int *error)
{
    *error = 0;
    const struct device_tun_options o = {
        .name = name, .offload = offload, .multi_queue = multi_queue};
    return device_tun_open(&o, error);
}

static void test_queues(void **state)
{
    (void)state;
    int error;
    struct device *first = try_open("queues", true, true, &error);
    struct device *second = try_open("queues", true, true, &error);
    assert_true(first && second);
    assert_null(try_open("queues", true, false, &error));
    assert_int_equal(error, -EINVAL);
    platform_configure(first, 1500);
    /* Flows spread over the queues; one flow stays where it is. */
    unsigned seen[2] = {0};
    for (int i = 0; i < 64; i++) {
        int fd = connect_socket(SOCK_DGRAM, true), on_first = -1;
        for (int j = 0; j < 3; j++) {
            assert_int_equal(send(fd, data, 10, 0), 10);
            struct packet p = {.buffer = buffer};
            bool here = platform_read(first, &p, 0);
            if (!here)
                assert_true(platform_read(second, &p, 0));
            assert_true(on_first < 0 || on_first == here);
            on_first = here;
        }
        seen[on_first]++;
        close(fd);
    }
    assert_true(seen[0] > 0 && seen[1] > 0);
    device_close(second);
    device_close(first);
}

/* A device that persists, with its vnet header on, as `ip tuntap add ... vnet_hdr` makes it. */
static void make_persistent(const char *name, int flags)
{
    int fd = open("/dev/net/tun", O_RDWR);
    struct ifreq request = {.ifr_flags = (short)flags};
    strcpy(request.ifr_name, name);
    assert_int_equal(ioctl(fd, TUNSETIFF, &request), 0);
    int len = 12;
    if (flags & IFF_VNET_HDR)
        assert_int_equal(ioctl(fd, TUNSETVNETHDRSZ, &len), 0);
    assert_int_equal(ioctl(fd, TUNSETPERSIST, 1), 0);
    close(fd);
}

static void ping_pong(struct device *d)
{
    int fd = connect_socket(SOCK_DGRAM, true);
    struct endpoint app, remote;
    udp_endpoints(fd, true, &app, &remote);
    assert_int_equal(send(fd, data, 100, 0), 100);
    struct packet_info info;
    struct packet p = read_until(d, PACKET_UDP, &info);
    assert_memory_equal(p.data + 28, data, 100);
    assert_int_equal(output_udp(d, &remote, &app, data, 100, 0), 0);
    receive_exactly(fd, data, 100);
    close(fd);
}

static void test_take_over(void **state)
{
    (void)state;
    int error;
    make_persistent("kept", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR);
    for (int offload = 0; offload <= 1; offload++) {
        struct device *d = try_open("kept", offload, false, &error);
        assert_non_null(d);
        assert_int_equal(d->caps.tso, offload);
        platform_configure(d, 1500);
        ping_pong(d);
        assert_null(try_open("kept", offload, false, &error));
        assert_int_equal(error, -EBUSY);
        device_close(d);
    }
    assert_null(try_open("kept", true, true, &error));
    assert_int_equal(error, -EINVAL);
    assert_int_equal(system("ip link delete kept"), 0);
}

static void test_open_refused(void **state)
{
    (void)state;
    int error;
    assert_null(try_open("lo", true, false, &error));
    assert_int_equal(error, -EINVAL);
    assert_null(try_open("a-name-that-is-too-long", true, false, &error));
    assert_int_equal(error, -EINVAL);
    make_persistent("tap", IFF_TAP | IFF_NO_PI);
    assert_null(try_open("tap", true, false, &error));
    assert_int_equal(error, -EINVAL);
    struct device *d = try_open("", true, false, &error);
    assert_non_null(d);
    assert_true(strncmp(d->name, "tun", 3) == 0);
    device_close(d);
}

static int raw_tun(const char *name, int flags)
{
    int fd = open("/dev/net/tun", O_RDWR);
    struct ifreq request = {.ifr_flags = (short)flags};
    strcpy(request.ifr_name, name);
    assert_int_equal(ioctl(fd, TUNSETIFF, &request), 0);
    return fd;
}

static void test_adopt(void **state)
{
    (void)state;
    static const int flags[] = {IFF_TUN | IFF_NO_PI, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    for (int i = 0; i < 4; i++) {
        int error, fd = raw_tun("passed", flags[i % 2]);
        assert_int_equal(link_set_mtu("passed", 4000), 0);
        struct device *d = device_tun_adopt(fd, 0, i / 2, &error);
        assert_non_null(d);
        assert_string_equal(d->name, "passed");
        assert_int_equal(d->mtu, 4000);
        assert_int_equal(d->caps.tso, i == 3);
        platform_configure(d, 4000);
        ping_pong(d);
        device_close(d);
    }
}

static void refused(int fd, int expected)
{
    int error = 0;
    assert_true(fd >= 0);
    assert_null(device_tun_adopt(fd, 0, true, &error));
    assert_int_equal(error, expected);
    assert_int_equal(close(fd), 0); /* still ours */
}

static void test_adopt_refused(void **state)
{
    (void)state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    refused(fds[0], -ENOTTY);
    refused(fds[1], -ENOTTY);
    refused(open("/dev/null", O_RDWR), -ENOTTY);
    refused(socket(AF_INET, SOCK_DGRAM, 0), -ENOTTY);
    refused(open("/dev/net/tun", O_RDWR), -EBADFD);
    refused(raw_tun("atap", IFF_TAP | IFF_NO_PI), -EPROTOTYPE);
    for (int i = 0; i < 4; i++) {
        int with_information = raw_tun("withpi", IFF_TUN | (i % 2 ? IFF_VNET_HDR : 0));
        assert_int_equal(link_set_up("withpi", i / 2), 0);
        refused(with_information, -EPROTO);
    }
    int error = 0;
    assert_null(device_tun_adopt(-1, 0, true, &error));
    assert_int_equal(error, -EBADF);
}

/* A descriptor works where its device is not seen; a device of that name here is not asked. */
static void test_adopt_of_another_namespace(void **state)
{
    (void)state;
    int error, fd = raw_tun("passed", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR);
    struct device *there = device_tun_adopt(fd, 0, true, &error);
    platform_configure(there, 9000);
    int socket_there = connect_socket(SOCK_DGRAM, true);
    int home = open("/proc/self/ns/net", O_RDONLY);
    platform_enter_namespace();
    int decoy = raw_tun("passed", IFF_TUN | IFF_NO_PI);
    assert_int_equal(link_set_mtu("passed", 1280), 0);
    struct device *d = device_tun_adopt(dup(fd), 0, true, &error);
    assert_non_null(d);
    assert_int_equal(d->mtu, 1500);
    assert_true(d->caps.tso);
    assert_int_equal(send(socket_there, data, 10, 0), 10);
    struct packet_info info;
    read_until(d, PACKET_UDP, &info);
    device_close(d);
    d = device_tun_adopt(dup(fd), 8000, true, &error);
    assert_int_equal(d->mtu, 8000);
    device_close(d);
    close(decoy);
    assert_int_equal(setns(home, CLONE_NEWNET), 0);
    close(home);
    close(socket_there);
    device_close(there);
}

/* --- a link that is down, a device that is gone --------------------------------------------- */

static void test_link_down(void **state)
{
    (void)state;
    struct device *d = platform_device("down", true, 1500);
    struct packet p = {.buffer = buffer};
    struct endpoint remote = platform_endpoint("198.18.5.5:1");
    struct endpoint app = platform_endpoint("198.18.0.1:1");
    ping_pong(d);
    assert_int_equal(link_set_up("down", false), 0);
    assert_int_equal(output_udp(d, &remote, &app, data, 40, 0), -EIO);
    assert_int_equal(d->write_drops, 1);
    assert_int_equal(device_read(d, &p, 1), 0);
    platform_configure(d, 1500);
    ping_pong(d);
    device_close(d);
}

static void test_device_deleted(void **state)
{
    (void)state;
    struct device *d = platform_device("gone", true, 1500);
    struct packet p = {.buffer = buffer};
    assert_int_equal(system("ip link delete gone"), 0);
    assert_true(platform_readable(d->fd, 0)); /* the loop hears of it */
    assert_int_equal(device_read(d, &p, 1), -EBADFD);
    assert_int_equal(output_raw(d, data, 40), -EBADFD);
    device_close(d);
}

int main(void)
{
    if (access("/dev/net/tun", R_OK | W_OK) != 0) {
        fprintf(stderr, "skipped: /dev/net/tun: %s\n", strerror(errno));
        return PLATFORM_SKIPPED;
    }
    platform_enter_namespace();
    wire_payload(data, sizeof(data));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_caps),          cmocka_unit_test(test_big_tcp),
        cmocka_unit_test(test_tcp_offloaded), cmocka_unit_test(test_tcp_plain),
        cmocka_unit_test(test_udp_down),      cmocka_unit_test(test_udp_up),
        cmocka_unit_test(test_fragments_up),  cmocka_unit_test(test_checksum_semantics),
        cmocka_unit_test(test_queues),        cmocka_unit_test(test_take_over),
        cmocka_unit_test(test_open_refused),  cmocka_unit_test(test_adopt),
        cmocka_unit_test(test_adopt_refused), cmocka_unit_test(test_adopt_of_another_namespace),
        cmocka_unit_test(test_link_down),     cmocka_unit_test(test_device_deleted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
