/*
 * The whole worker (core/worker/worker.c), from the device's vnet headers to the proxy's bytes:
 * packets into a device, a proxy that says and does what it likes, and a clock, all of them driven
 * by the input (tests/fuzz/world.h).
 *
 *   | modes | features | operations, a byte each with their arguments behind ...
 *
 * Some operations are sensible by themselves (a segment in sequence, an answer to what was asked),
 * so that the fuzzer gets deep without having to guess checksums and numbers; others are raw.
 * Whatever comes out of the device must be a packet that the kernel would take; in the end the loop
 * must have nothing left to do, and no descriptor may be open. The sanitizers see to the rest.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "core/base/cursor.h"
#include "core/base/log.h"
#include "core/base/map.h"
#include "core/worker/worker.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/script.h"
#include "tests/fuzz/world.h"
#include "tests/support/peer.h"

enum { PEERS = 6 };

static struct peer peers[PEERS];

/* --- what comes out of the device ------------------------------------------------------------- */

/* The fake address in a DNS answer is where a peer goes next. */
static void heed_answer(const uint8_t *payload, size_t len)
{
    struct peer *p = &peers[1];
    if (len > 16 && payload[7] == 1 && payload[len - 6] == 0 && payload[len - 5] == 4)
        p->dst.addr = addr_from_v4(payload + len - 4);
}

static void heed_segment(const struct packet *p, const struct packet_info *info)
{
    struct reader r = reader_over(p->data + info->ip_header_len, 8);
    reader_skip(&r, 4);
    uint32_t seq = reader_u32(&r);
    size_t len = info->len - info->ip_header_len - info->transport_header_len;
    for (size_t i = 0; i < PEERS; i++) {
        struct peer *to = &peers[i];
        if (endpoint_equal(&to->src, &info->dst) && endpoint_equal(&to->dst, &info->src))
            to->ack = seq + (uint32_t)len + ((info->tcp_flags & (SYN | FIN)) != 0);
    }
}

static void drain_device(void)
{
    static uint8_t buffer[PACKET_BUFFER_SIZE];
    struct packet p = {.buffer = buffer};
    while (world_pop(&p)) {
        struct packet_info info;
        packet_parse(&p, &info);
        /* ICMP errors and echo replies are well-formed, and no business of the parser. */
        FUZZ_CHECK(info.drop == PACKET_DROP_NONE || info.drop == PACKET_DROP_PROTOCOL);
        FUZZ_CHECK(info.len == p.len);
        if (info.verdict == PACKET_TCP)
            heed_segment(&p, &info);
        size_t headers = (size_t)info.ip_header_len + info.transport_header_len;
        if (info.verdict == PACKET_UDP && info.src.port == 53)
            heed_answer(p.data + headers, info.len - headers);
    }
}

/* --- what the applications do ----------------------------------------------------------------- */

static struct peer *choose_peer(void)
{
    return &peers[reader_u8(&script.input) % PEERS];
}

/* A vnet header and a packet as they stand. */
static void push_raw(void)
{
    uint8_t vnet[WORLD_VNET_MAX] = {0};
    size_t header_len = 10, len = reader_u16(&script.input) % 2048;
    const uint8_t *header = script_bytes(&header_len);
    memcpy(vnet, header, header_len);
    const uint8_t *packet = script_bytes(&len);
    world_push(vnet, packet, len);
}

static void push_segment(void)
{
    static uint8_t out[66000], payload[4096];
    static const uint8_t options[40] = {2, 4, 5, 0xb4, 3, 3, 7, 4, 2, 1};
    struct peer *p = choose_peer();
    uint8_t flags = reader_u8(&script.input), skew = reader_u8(&script.input);
    size_t len = (size_t)reader_u8(&script.input) * 16;
    p->window = reader_u16(&script.input);
    struct peer skewed = *p;
    if (skew & 1)
        skewed.seq += (uint32_t)((int32_t)(int8_t)skew * 100);
    if (skew & 2)
        skewed.ack -= skew;
    size_t options_len = flags & SYN ? (size_t)(skew >> 4) % 11 * 4 : 0;
    size_t n = peer_write_segment(&skewed, out, flags & 63, payload, len, options, options_len);
    world_push(NULL, out, n);
    if (!(skew & 1))
        p->seq += (uint32_t)len + ((flags & (SYN | FIN)) != 0);
}

/* The input's bytes, in sequence: requests to port 53, above all. */
static void push_stream(void)
{
    uint8_t out[66000];
    struct peer *p = choose_peer();
    size_t len = reader_u8(&script.input);
    const uint8_t *payload = script_bytes(&len);
    world_push(NULL, out, peer_write_segment(p, out, ACK | PSH, payload, len, NULL, 0));
    p->seq += (uint32_t)len;
}

/* Super-packets, with a vnet header that is right but for what the input says. */
static void push_super(void)
{
    static uint8_t out[66000], payload[65000];
    struct peer *p = choose_peer();
    uint8_t gso = reader_u8(&script.input), wrong = reader_u8(&script.input);
    uint16_t size = reader_u16(&script.input);
    size_t len = reader_u16(&script.input) % sizeof payload;
    size_t ip_len = addr_is_v4(&p->src.addr) ? 20 : 40;
    bool udp = (gso & 7) == 5;
    size_t n = udp ? peer_write_datagram(out, &p->src, &p->dst, payload, len)
                   : peer_write_segment(p, out, ACK, payload, len, NULL, 0);
    uint8_t vnet[WORLD_VNET_MAX] = {1, gso};
    uint16_t fields[4] = {(uint16_t)(ip_len + (udp ? 8 : 20)), size, (uint16_t)ip_len,
                          udp ? 6 : 16};
    fields[wrong & 3] = (uint16_t)(fields[wrong & 3] + (wrong >> 2)); /* 0 for most inputs */
    memcpy(vnet + 2, fields, sizeof fields);
    world_push(vnet, out, n);
    if (!udp)
        p->seq += (uint32_t)len;
}

static void push_datagram(void)
{
    uint8_t out[48 + 255];
    const struct peer *p = choose_peer();
    size_t len = reader_u8(&script.input);
    const uint8_t *payload = script_bytes(&len);
    world_push(NULL, out, peer_write_datagram(out, &p->src, &p->dst, payload, len));
}

static void push_fragment(void)
{
    uint8_t out[PEER_FRAGMENT_MAX];
    const struct peer *p = choose_peer();
    uint8_t id = reader_u8(&script.input) % 4;
    uint16_t field = reader_u16(&script.input);
    world_push(NULL, out, peer_write_fragment(p, out, id, field, reader_u8(&script.input)));
}

static void push_query(void)
{
    static const uint8_t name[] = "\1a\4test";
    uint8_t query[64], out[48 + sizeof query];
    struct peer to_dns = peers[1];
    struct writer w = writer_over(query, sizeof query);
    writer_u16(&w, reader_u8(&script.input));
    writer_u16(&w, 0x100);
    writer_u16(&w, 1);
    writer_u32(&w, 0);
    writer_u16(&w, 0);
    writer_bytes(&w, name, sizeof name);
    writer_u16(&w, reader_u8(&script.input));
    writer_u16(&w, 1);
    to_dns.dst = peers[3].dst;
    to_dns.src.port = 2000;
    world_push(NULL, out,
               peer_write_datagram(out, &to_dns.src, &to_dns.dst, query, writer_used(&w)));
}

/* --- what the proxy does ---------------------------------------------------------------------- */

/* What a proxy says, in pieces that may be put together rightly or not. */
static void say_usual(void)
{
    static const struct {
        uint8_t len, bytes[31];
    } usual[] = {
        {2, {5, 0}},
        {2, {5, 2}},
        {2, {1, 0}},
        {10, {5, 0, 0, 1, 10, 0, 0, 1, 4, 56}},
        {12, {5, 0, 5, 0, 0, 1, 10, 0, 0, 1, 4, 56}},
        {14, {5, 2, 1, 0, 5, 0, 0, 1, 10, 0, 0, 1, 4, 56}},
        {12, {5, 0, 5, 5, 0, 1, 0, 0, 0, 0, 0, 0}},
        {12, {5, 0, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0}},
        {14, {0, 0, 0, 1, 192, 0, 2, 1, 0, 80, 'd', 'a', 't', 'a'}},          /* a datagram */
        {15, {0, 0, 0, 3, 6, 'a', '.', 't', 'e', 's', 't', 0, 80, 'x', 'y'}}, /* from a name */
    };
    const struct world_socket *s = script_socket();
    uint8_t which = reader_u8(&script.input) % (sizeof usual / sizeof usual[0]);
    script_say(s, usual[which].bytes, usual[which].len);
}

/* Where a query's question ends; `len` where it does not. */
static size_t question_end(const uint8_t *message, size_t len)
{
    size_t at = 12;
    while (at < len && message[at] != 0)
        at += message[at] + 1u;
    return at + 5 < len ? at + 5 : len;
}

/* Answer a query over TCP: its id and question, then what the input says. */
static void answer_query(void)
{
    uint8_t message[2 + 512 + 255];
    const struct world_socket *s = script_socket();
    uint8_t counts = reader_u8(&script.input), rcode = reader_u8(&script.input);
    size_t len = reader_u8(&script.input);
    const uint8_t *bytes = script_bytes(&len);
    ssize_t n = s && s->stream ? recv(s->far, message, 2 + 512, 0) : -1;
    if (n < 14)
        return;
    uint8_t *dns = message + 2;
    dns[2] |= 0x80;
    dns[3] = rcode;
    dns[7] = counts & 3;
    dns[9] = counts >> 2 & 3;
    dns[11] = counts >> 4 & 3;
    size_t size = question_end(dns, (size_t)n - 2);
    memcpy(dns + size, bytes, len);
    size += len;
    message[0] = (uint8_t)(size >> 8);
    message[1] = (uint8_t)size;
    script_say(s, message, size + 2);
}

/* --- the script ------------------------------------------------------------------------------- */

void world_turn(void)
{
    static operation *const operations[] = {
        push_raw,
        push_segment,
        push_stream,
        push_super,
        push_datagram,
        push_query,
        script_let_time_pass,
        script_say_raw,
        say_usual,
        answer_query,
        script_pour,
        script_end_socket,
        script_choose_errors,
        push_fragment,
        script_choose_run_size,
    };
    drain_device();
    if (!script_turn(operations, sizeof operations / sizeof operations[0]))
        world.on_signal(world.signal_arg, SIGTERM);
}

static void name_peers(void)
{
    static const char *const sources[PEERS] = {"10.0.0.2:1000", "10.0.0.2:1001", "[fd00::2]:1000",
                                               "10.0.0.2:1002", "10.0.0.2:1003", "[fd00::2]:1004"};
    static const char *const targets[PEERS] = {"192.0.2.1:80",     "198.18.0.3:443",
                                               "[2001:db8::1]:80", "198.18.0.2:53",
                                               "192.0.2.2:80",     "[fd01::2]:53"};
    for (size_t i = 0; i < PEERS; i++) {
        endpoint_parse(sources[i], 0, &peers[i].src);
        endpoint_parse(targets[i], 0, &peers[i].dst);
        peers[i].seq = 0xfffff000; /* wraps early */
        peers[i].ack = 0;
        peers[i].window = 60000;
    }
}

static void choose_options(struct options *o, uint8_t modes)
{
    /* Never a name for a resolver: nothing here asks the real network. */
    static const char *const dns[] = {"fake", "tcp", "relay", "tcp"};
    static const char *const proxies[] = {"socks5://192.0.2.99", "socks5://user:word@192.0.2.99",
                                          "socks5://[2001:db8::99]", "direct://"};
    size_t proxy = modes >> 6;
    size_t dns_mode = proxy == 3 && (modes & 3) == 0 ? 2 : modes & 3;
    char text[512], error[OPTIONS_ERROR_MAX];
    char *argv[32], *rest = NULL;
    int argc = 0;
    snprintf(
        text, sizeof text,
        "culvert tun --address 198.18.0.1/28 --address fd01::1/120 --connect-timeout 3 --dns %s "
        "--udp %s --icmp %s --pipeline %s --max-flows %s --tcp-idle-timeout 60 %s",
        dns[dns_mode], modes & 4 ? "block" : "associate", modes & 8 ? "reply" : "drop",
        modes & 16 ? "on" : "off", modes & 32 ? "3" : "100", proxies[proxy]);
    for (char *at = strtok_r(text, " ", &rest); at; at = strtok_r(NULL, " ", &rest))
        argv[argc++] = at;
    FUZZ_CHECK(options_parse(argc, argv, o, error) == OPTIONS_RUN);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct options options;
    script_begin(reader_over(data, size));
    uint8_t modes = reader_u8(&script.input), features = reader_u8(&script.input);
    hash_seed(1, 2);
    if (log_threshold != LOG_LEVEL_TRACE) {
        log_set_level(LOG_LEVEL_TRACE);
        FUZZ_CHECK(log_open_file("/dev/null") == 0);
    }
    name_peers();
    choose_options(&options, modes);
    struct device *d = world_begin_with_device(features);
    const struct worker_seat seat = {.device = d, .looks_at_proxy = true, .latency_fd = -1};
    FUZZ_CHECK(worker_run(&seat, &options, NULL, NULL) == 0);
    drain_device();
    device_close(d);
    options_wipe(&options);
    FUZZ_CHECK(world_end());
    return 0;
}
