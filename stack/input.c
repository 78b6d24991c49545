/*
 * The way in: each packet is parsed once and goes to whom it concerns.
 *
 * Fragments are the one thing that lwIP's IP layer is used for. It is given each fragment under
 * the pretence that its destination is the netif's own address, and what it has put together is
 * taken out of its hands by raw control blocks, before TCP and ICMP would see it; then it is
 * parsed anew like any other packet. A reassembled packet's checksum has not been verified by
 * anybody and will be by packet_parse().
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "lwip/ip4_frag.h"
#include "lwip/ip6.h"
#include "lwip/ip6_frag.h"
#include "lwip/raw.h"
#include "core/base/log.h"
#include "stack/internal.h"

enum { FRAGMENT_LIFETIME_MS = (IPV6_REASS_MAXAGE + 2) * 1000 };

static void input_udp(struct stack *s, const struct packet *p, const struct packet_info *info)
{
    uint8_t *payload = p->data + info->ip_header_len + info->transport_header_len;
    size_t len = info->len - info->ip_header_len - info->transport_header_len;
    uint16_t gso_size = p->offload.gso == PACKET_GSO_UDP ? p->offload.gso_size : 0;
    s->ops->datagram(s->ctx, &info->src, &info->dst, payload, len, gso_size,
                     (size_t)(payload - p->buffer));
}

static void input_echo(struct stack *s, const struct packet *p, const struct packet_info *info)
{
    if (!s->icmp_reply)
        return;
    packet_make_echo_reply(p->data, info);
    output_raw(s->device, p->data, info->len);
}

/* --- reassembly ------------------------------------------------------------------------------ */

/*
 * lwIP leaves the IPv4 header checksum to a device that sums, and (2.2.1) makes the IPv6 payload
 * length 8 bytes too short.
 */
static void finish_header(uint8_t *ip, size_t len)
{
    if (ip[0] >> 4 == 6) {
        ip[4] = (uint8_t)((len - 40) >> 8);
        ip[5] = (uint8_t)(len - 40);
        return;
    }
    ip[10] = ip[11] = 0;
    uint16_t sum = (uint16_t)~packet_sum_fold(packet_sum(ip, (size_t)(ip[0] & 15) * 4, 0));
    ip[10] = (uint8_t)(sum >> 8);
    ip[11] = (uint8_t)sum;
}

static u8_t on_reassembled(void *arg, struct raw_pcb *pcb, struct pbuf *p, const ip_addr_t *from)
{
    struct stack *s = stack_instance(); /* these control blocks outlive a stack */
    (void)arg, (void)pcb, (void)from;
    struct rx_buffer *b = rx_buffer_get(s);
    if (b != NULL && p->tot_len >= 28) {
        b->next_free = s->reassembled;
        s->reassembled = b;
        struct packet whole = {
            .buffer = b->bytes,
            .data = b->bytes + PACKET_HEADROOM,
            .len = p->tot_len,
        };
        pbuf_copy_partial(p, whole.data, p->tot_len, 0);
        finish_header(whole.data, whole.len);
        input_packet(s, &whole, NULL);
    } else if (b != NULL) {
        rx_buffer_put(b);
    }
    pbuf_free(p);
    return 1; /* eaten */
}

int reassembly_init(void)
{
    static const u8_t protocols[] = {IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_ICMPV6};
    for (size_t i = 0; i < sizeof protocols; i++) {
        struct raw_pcb *pcb = raw_new_ip_type(IPADDR_TYPE_ANY, protocols[i]);
        if (pcb == NULL)
            return -ENOMEM;
        raw_recv(pcb, on_reassembled, NULL);
    }
    return 0;
}

/* Let lwIP take the packet's destination for its own. */
static void pretend_to_be(struct stack *s, const struct addr *a)
{
    if (addr_is_v4(a)) {
        memcpy(&ip_2_ip4(&s->netif.ip_addr)->addr, addr_v4_bytes(a), 4);
        return;
    }
    memcpy(ip_2_ip6(&s->netif.ip6_addr[0])->addr, a->bytes, 16);
    IP_SET_TYPE_VAL(s->netif.ip6_addr[0], IPADDR_TYPE_V6);
    s->netif.ip6_addr_state[0] = IP6_ADDR_PREFERRED;
}

static void input_fragment(struct stack *s, const struct packet *p, const struct packet_info *info)
{
    struct pbuf *copy = pbuf_alloc(PBUF_RAW, (u16_t)info->len, PBUF_RAM);
    if (copy == NULL)
        return;
    memcpy(copy->payload, p->data, info->len);
    pretend_to_be(s, &info->dst.addr);
    ip_data.current_input_netif = &s->netif; /* ip4_reass() looks before ip4_input() sets it */
    if (s->fragments_until_ms <= s->now_ms)
        s->next_fragment_ms = s->now_ms + FRAGMENT_TICK_MS;
    s->fragments_until_ms = s->now_ms + FRAGMENT_LIFETIME_MS;
    if (addr_is_v4(&info->dst.addr))
        ip4_input(copy, &s->netif);
    else
        ip6_input(copy, &s->netif);
}

void reassembly_tick(struct stack *s)
{
    if (s->fragments_until_ms <= s->now_ms || s->now_ms < s->next_fragment_ms)
        return;
    s->next_fragment_ms = s->now_ms + FRAGMENT_TICK_MS;
    ip_reass_tmr();
    ip6_reass_tmr();
}

void reassembly_flush(void)
{
    for (int i = 0; i <= IP_REASS_MAXAGE || i <= IPV6_REASS_MAXAGE; i++) {
        ip_reass_tmr();
        ip6_reass_tmr();
    }
}

void input_batch_end(struct stack *s)
{
    while (s->reassembled) {
        struct rx_buffer *b = s->reassembled;
        s->reassembled = b->next_free;
        rx_buffer_put(b);
    }
}

/* --- dispatch -------------------------------------------------------------------------------- */

/* Whoever sends the packets also decides how many lines this is: a few, and all when tracing. */
static void log_drop(const struct packet *p, const struct packet_info *info)
{
    static struct log_limit limit = LOG_LIMIT(20);
    if (log_threshold < LOG_LEVEL_DEBUG ||
        (log_threshold == LOG_LEVEL_DEBUG && !log_allowed(&limit)))
        return;
    char src[ENDPOINT_TEXT_MAX], dst[ENDPOINT_TEXT_MAX];
    log_debug("packet dropped (%s): %zu bytes, protocol %u, %s to %s", packet_drop_name(info->drop),
              p->len, info->protocol, endpoint_format(&info->src, src),
              endpoint_format(&info->dst, dst));
}

void input_packet(struct stack *s, const struct packet *p, struct rx_buffer **buffer)
{
    struct packet_info info;
    packet_parse(p, &info);
    switch (info.verdict) {
    case PACKET_TCP:
        conn_input(s, p, &info, buffer);
        break;
    case PACKET_UDP:
        input_udp(s, p, &info);
        break;
    case PACKET_ICMP_ECHO:
        input_echo(s, p, &info);
        break;
    case PACKET_FRAGMENT:
        input_fragment(s, p, &info);
        break;
    case PACKET_DROP:
        s->counters.drops[info.drop]++;
        log_drop(p, &info);
        break;
    }
}
