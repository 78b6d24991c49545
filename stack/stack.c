/*
 * The stack as a whole: its life, a batch of packets from beginning to end, lwIP's way out, and
 * time.
 */
#include "stack/stack.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cursor.h"
#include "lwip/init.h"
#include "lwip/sys.h"
#include "lwip_port.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "stack/internal.h"

static struct stack *the_stack;

struct stack *stack_instance(void)
{
    return the_stack;
}

/* lwIP's clock: ms. */
u32_t sys_now(void)
{
    return the_stack ? (u32_t)the_stack->now_ms : 0;
}

/* --- lwIP's way out --------------------------------------------------------------------------- */

/* A packet in more pieces than the device layer takes, as one piece. */
static int flatten(const struct pbuf *p, struct iovec iov[OUTPUT_IOV_MAX])
{
    static uint8_t flat[PACKET_SIZE_MAX]; /* tot_len is 16 bits */
    big_tcp_flush(the_stack);             /* what is kept may lie there */
    iov[1].iov_base = flat;
    iov[1].iov_len = pbuf_copy_partial(p, flat, p->tot_len, 0);
    return 2;
}

static int gather(const struct pbuf *p, struct iovec iov[OUTPUT_IOV_MAX])
{
    int n = 1; /* iov[0] is the device's */
    for (const struct pbuf *q = p; q != NULL; q = q->next) {
        if (q->len == 0)
            continue;
        if (n == OUTPUT_IOV_MAX)
            return flatten(p, iov);
        iov[n].iov_base = q->payload;
        iov[n].iov_len = q->len;
        n++;
    }
    return n;
}

/* Addresses, ports and the length of all headers of a TCP packet that lwIP has built. */
static bool read_headers(const struct iovec *first, struct endpoint *src, struct endpoint *dst,
                         size_t *header_len)
{
    struct reader r = reader_over(first->iov_base, first->iov_len);
    const uint8_t *ip = reader_bytes(&r, 20);
    if (ip == NULL)
        return false;
    if (ip[0] >> 4 == 4) {
        if (ip[9] != IP_PROTO_TCP)
            return false;
        src->addr = addr_from_v4(ip + 12);
        dst->addr = addr_from_v4(ip + 16);
        reader_skip(&r, (size_t)(ip[0] & 15) * 4 - 20);
    } else {
        reader_skip(&r, 20);
        if (r.bad || ip[6] != IP_PROTO_TCP)
            return false;
        src->addr = addr_from_v6(ip + 8);
        dst->addr = addr_from_v6(ip + 24);
    }
    size_t ip_len = reader_used(&r);
    src->port = reader_u16(&r);
    dst->port = reader_u16(&r);
    reader_skip(&r, 8);
    *header_len = ip_len + (size_t)(reader_u8(&r) >> 4) * 4;
    return !r.bad && *header_len <= first->iov_len;
}

static err_t output(struct pbuf *p)
{
    struct stack *s = the_stack;
    struct iovec iov[OUTPUT_IOV_MAX];
    struct endpoint src, dst;
    size_t header_len;
    int n = gather(p, iov);
    /* Nothing but TCP leaves by here: lwIP's own ICMP is not for our users to see. */
    if (n < 2 || !read_headers(&iov[1], &src, &dst, &header_len))
        return ERR_OK;
    s->counters->packets_out++;
    s->counters->bytes_out += p->tot_len;
    uint16_t mss = conn_mss_of(s, &dst, &src);
    /* What the device refuses is lost, as on any wire: TCP sends it again. */
    if (!big_tcp_take(s, iov + 1, n - 1, header_len, mss))
        output_tcp(s->device, iov, n, header_len, mss);
    return ERR_OK;
}

static err_t output_ip4(struct netif *netif, struct pbuf *p, const ip4_addr_t *to)
{
    (void)netif, (void)to;
    return output(p);
}

static err_t output_ip6(struct netif *netif, struct pbuf *p, const ip6_addr_t *to)
{
    (void)netif, (void)to;
    return output(p);
}

static err_t init_netif(struct netif *netif)
{
    const struct stack *s = netif->state;
    netif->mtu = (u16_t)(s->device->mtu < 0xffff ? s->device->mtu : 0xffff);
    netif->output = output_ip4;
    netif->output_ip6 = output_ip6;
    netif->flags = NETIF_FLAG_LINK_UP;
    NETIF_SET_CHECKSUM_CTRL(netif, NETIF_CHECKSUM_DISABLE_ALL); /* packet.c and output.c do */
    return ERR_OK;
}

/* --- life ------------------------------------------------------------------------------------- */

static bool add_netif(struct stack *s)
{
    /* Any address will do: it is never compared, but it may not be 0.0.0.0. */
    ip4_addr_t address = {.addr = PP_HTONL(0x7f000001)}, mask = {.addr = 0xffffffff};
    if (!netif_add(&s->netif, &address, &mask, &address, s, init_netif, NULL))
        return false;
    netif_set_default(&s->netif);
    netif_set_up(&s->netif);
    return true;
}

struct stack *stack_new(struct device *device, const struct stack_config *config,
                        const struct stack_ops *ops, void *ctx)
{
    static bool lwip_is_initialised;
    struct stack *s = memory_zeroed(sizeof *s);
    if (s == NULL || the_stack != NULL) {
        free(s);
        return NULL;
    }
    the_stack = s;
    s->counters = config->counters ? config->counters : &s->own_counters;
    s->counters->conns = 0; /* those of a stack before us died with it */
    s->device = device;
    s->ops = ops;
    s->ctx = ctx;
    s->icmp_reply = config->icmp_reply;
    s->now_ms = config->now_ms;
    list_init(&s->ready);
    list_init(&s->busy);
    reassembly_init(s);
    culvert_lwip_no_memory = memory_refused;
    if (!lwip_is_initialised)
        lwip_init();
    lwip_is_initialised = true;
    if (aftermath_init(&s->after) != 0 || conn_table_init(s) != 0 || !add_netif(s)) {
        stack_free(s);
        return NULL;
    }
    return s;
}

static void log_drops(const struct stack_counters *counters)
{
    for (int why = PACKET_DROP_NONE + 1; why < PACKET_DROP_COUNT; why++)
        if (counters->drops[why] > 0)
            log_debug("packets dropped (%s): %llu", packet_drop_name((enum packet_drop)why),
                      (unsigned long long)counters->drops[why]);
}

void stack_free(struct stack *s)
{
    log_drops(s->counters);
    conn_table_free(s);
    reassembly_free(s);
    if (s->after.by_tuple.buckets)
        aftermath_free(&s->after);
    if (s->netif.output)
        netif_remove(&s->netif);
    rx_buffers_trim(s);
    the_stack = NULL;
    free(s);
}

const struct stack_counters *stack_counters(const struct stack *s)
{
    return s->counters;
}

/* --- a batch ---------------------------------------------------------------------------------- */

/* Give the batch's first `count` places buffers; returns how many have one. */
static unsigned prepare_batch(struct stack *s, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (s->batch_buffers[i] == NULL)
            s->batch_buffers[i] = rx_buffer_get(s);
        if (s->batch_buffers[i] == NULL)
            return i;
        s->batch[i].buffer = s->batch_buffers[i]->bytes;
    }
    return count;
}

int stack_receive(struct stack *s, unsigned max_packets, uint64_t now_ms)
{
    s->now_ms = now_ms;
    unsigned count =
        prepare_batch(s, max_packets < STACK_BATCH_MAX ? max_packets : STACK_BATCH_MAX);
    if (count == 0)
        return 0;
    int n = device_read(s->device, s->batch, count);
    for (int i = 0; i < n; i++) {
        s->counters->packets_in++;
        s->counters->bytes_in += s->batch[i].len;
        input_packet(s, &s->batch[i], &s->batch_buffers[i]);
    }
    conn_tell_ready(s);
    s->ops->batch_end(s->ctx);
    reassembly_batch_end(s);
    return n;
}

/* --- time ------------------------------------------------------------------------------------- */

uint64_t stack_next_tick(const struct stack *s)
{
    uint64_t next = aftermath_next(&s->after);
    if (!list_empty(&s->busy) && s->next_tick_ms < next)
        next = s->next_tick_ms;
    if (reassembly_next(s) < next)
        next = reassembly_next(s);
    return next;
}

void stack_tick(struct stack *s, uint64_t now_ms)
{
    s->now_ms = now_ms;
    conn_tick(s);
    reassembly_tick(s);
    aftermath_tick(s);
    conn_tell_ready(s);
    s->ops->batch_end(s->ctx);
}

void stack_set_time(struct stack *s, uint64_t now_ms)
{
    s->now_ms = now_ms;
}

void stack_trim(struct stack *s)
{
    rx_buffers_trim(s);
}

/* --- UDP -------------------------------------------------------------------------------------- */

int stack_send_datagram(struct stack *s, const struct endpoint *src, const struct endpoint *dst,
                        const void *payload, size_t len, uint16_t gso_size)
{
    s->counters->packets_out++;
    s->counters->bytes_out += len;
    return output_udp(s->device, src, dst, payload, len, gso_size);
}

void stack_send_unreachable(struct stack *s, const struct endpoint *src, const struct endpoint *dst,
                            const void *payload, size_t len, enum unreachable why)
{
    uint8_t original[PACKET_IP_UDP_HEADER_MAX + 512];
    uint8_t icmp[PACKET_ICMP_ERROR_MAX];
    struct iovec whole = {.iov_base = (void *)(uintptr_t)payload, .iov_len = len};
    size_t header_len = packet_build_udp(original, src, dst, &whole, false);
    size_t quoted = len < 512 ? len : 512;
    memcpy(original + header_len, payload, quoted);
    size_t icmp_len = packet_build_unreachable(icmp, original, header_len + quoted, why);
    if (icmp_len > 0)
        output_raw(s->device, icmp, icmp_len);
}
