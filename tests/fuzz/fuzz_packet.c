/*
 * Any packet, with any offload metadata, through the parser; what passes goes out again in all the
 * forms that output.c knows, and must pass the parser as it comes out.
 *
 *   | csum:2 | gso:3 | ecn:1 | mend:1 | - |  gso_size  |  header_len  |  csum_start | csum_offset |
 *   | the packet ...
 *
 * `mend`: the IPv4 header's checksum is made right first, else few inputs would get past it.
 */
#include "stack/output.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "tests/support/device_memory.h"

enum { METADATA_LEN = 9, MTU = 1280 };

static uint8_t input[PACKET_BUFFER_SIZE];
static uint8_t output[PACKET_BUFFER_SIZE];

static uint16_t word(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static struct offload read_metadata(const uint8_t *at)
{
    return (struct offload){
        .csum = at[0] & 3,
        .gso = at[0] >> 2 & 7,
        .ecn = (at[0] & 0x20) != 0,
        .gso_size = word(at + 1),
        .header_len = word(at + 3),
        .csum_start = word(at + 5),
        .csum_offset = word(at + 7),
    };
}

static void mend_ipv4(uint8_t *ip, size_t len)
{
    size_t header_len = (size_t)(ip[0] & 0x0f) * 4;
    if (ip[0] >> 4 != 4 || header_len < 20 || header_len > len)
        return;
    memset(ip + 10, 0, 2);
    uint16_t sum = (uint16_t)~packet_sum_fold(packet_sum(ip, header_len, 0));
    ip[10] = (uint8_t)(sum >> 8);
    ip[11] = (uint8_t)sum;
}

/* Everything that was written parses as `verdict`, or as fragments; returns the payload's length.
 */
static size_t drain(struct device *d, enum packet_verdict verdict)
{
    size_t payload = 0;
    struct packet p = {.buffer = output};
    while (device_memory_pop(d, &p)) {
        struct packet_info info;
        packet_parse(&p, &info);
        FUZZ_CHECK(info.verdict == verdict || info.verdict == PACKET_FRAGMENT);
        FUZZ_CHECK(info.len == p.len);
        payload += info.len - info.ip_header_len - info.transport_header_len;
    }
    return payload;
}

/* With the payload in several pieces. A SYN that carries data is none of lwIP's. */
static void check_tcp(const struct packet_info *info, struct device *d, uint16_t mss)
{
    static uint8_t copy[PACKET_BUFFER_SIZE];
    uint8_t *ip = input + PACKET_HEADROOM;
    memcpy(copy, ip, info->len);
    size_t header_len = (size_t)info->ip_header_len + info->transport_header_len;
    size_t payload = info->len - header_len, first = payload / 3;
    struct iovec iov[3] = {
        [1] = {copy, header_len + first},
        [2] = {copy + header_len + first, payload - first},
    };
    if (payload / mss > 1000 || (info->tcp_flags & 2))
        return;
    bool extended = addr_is_v4(&info->src.addr) ? false : info->ip_header_len != 40;
    int error = output_tcp(d, iov, 3, header_len, mss);
    FUZZ_CHECK(extended || error == 0);
    if (error == 0)
        FUZZ_CHECK(drain(d, PACKET_TCP) == payload);
}

static void check_udp(const struct packet_info *info, struct device *d, uint16_t gso_size)
{
    size_t header_len = (size_t)info->ip_header_len + 8, payload = info->len - header_len;
    if (gso_size > 0 && payload / gso_size > 1000)
        return;
    const uint8_t *at = input + PACKET_HEADROOM + header_len;
    int error = output_udp(d, &info->dst, &info->src, at, payload, gso_size);
    FUZZ_CHECK(error == 0);
    (void)drain(d, PACKET_UDP);
}

static void check_answers(const struct packet_info *info, size_t len)
{
    uint8_t *ip = input + PACKET_HEADROOM;
    uint8_t error[PACKET_ICMP_ERROR_MAX];
    size_t n = packet_build_unreachable(error, ip, len, (enum unreachable)(len % 4));
    FUZZ_CHECK(n <= sizeof(error));
    if (info->verdict != PACKET_ICMP_ECHO)
        return;
    packet_make_echo_reply(ip, info);
    struct packet p = {.buffer = input, .data = ip, .len = info->len};
    struct packet_info reply;
    packet_parse(&p, &reply);
    FUZZ_CHECK(reply.drop == PACKET_DROP_PROTOCOL); /* well-formed, and no request any more */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct device_caps caps[3] = {
        {0}, {.csum = true}, {.csum = true, .tso = true, .uso = true}};
    if (size < METADATA_LEN || size - METADATA_LEN > PACKET_SIZE_MAX)
        return 0;
    size_t len = size - METADATA_LEN;
    struct packet p = {.buffer = input, .data = input + PACKET_HEADROOM, .len = len};
    p.offload = read_metadata(data);
    memcpy(p.data, data + METADATA_LEN, len);
    if ((data[0] & 0x40) && len > 0)
        mend_ipv4(p.data, len);
    struct packet_info info;
    packet_parse(&p, &info);
    FUZZ_CHECK((info.verdict == PACKET_DROP) == (info.drop != PACKET_DROP_NONE));
    if (info.verdict != PACKET_DROP) {
        FUZZ_CHECK(info.len <= len);
        FUZZ_CHECK((size_t)info.ip_header_len + info.transport_header_len <= info.len);
    }
    uint16_t size_hint = p.offload.gso_size;
    for (size_t i = 0; i < 3; i++) {
        struct device *d = device_memory_new(MTU, caps[i]);
        if (d && info.verdict == PACKET_TCP)
            check_tcp(&info, d, size_hint ? size_hint : 1);
        if (d && info.verdict == PACKET_UDP)
            check_udp(&info, d, size_hint);
        if (d)
            device_close(d);
    }
    check_answers(&info, len);
    return 0;
}
