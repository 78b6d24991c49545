/*
 * The way in: each packet is parsed once and goes to whom it concerns. Fragments wait in
 * reassembly.c, and what they make comes back here, to be parsed like any other packet: nobody
 * has verified its checksum yet.
 */
#include "core/base/log.h"
#include "stack/internal.h"

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
        reassembly_input(s, p->data, &info);
        break;
    case PACKET_DROP:
        s->counters->drops[info.drop]++;
        log_drop(p, &info);
        break;
    }
}
