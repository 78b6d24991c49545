/*
 * What third_party/lwip/patches mends: every test fails, mostly by a sanitizer's or an assertion's
 * abort, without the patch that names it. Packets go in through lwIP's ip_input(), each in memory
 * of exactly its size.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lwip/init.h"
#include "lwip/netif.h"
#include "lwip/priv/tcp_priv.h"
#include "lwip_hooks.h"

enum { ISN = 1000, OUR_PORT = 80, PEER_PORT = 4000, MTU = 1500 };

static struct netif netif;
static struct tcp_pcb *accepted;

u32_t culvert_tcp_isn(const ip_addr_t *local_ip, u16_t local_port, const ip_addr_t *remote_ip,
                      u16_t remote_port)
{
    (void)local_ip, (void)local_port, (void)remote_ip, (void)remote_port;
    return ISN;
}

/* --- packets -------------------------------------------------------------------------------- */

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value & 0xffff);
}

static void free_packet(struct pbuf *p)
{
    struct pbuf_custom *custom = (struct pbuf_custom *)p;

    free(*(void **)(custom + 1));
    free(custom);
}

/* A pbuf over `bytes`, which it owns. */
static struct pbuf *wrap(uint8_t *bytes, size_t len)
{
    struct pbuf_custom *custom = malloc(sizeof(*custom) + sizeof(void *));
    struct pbuf *p;

    assert_non_null(custom);
    *(void **)(custom + 1) = bytes;
    custom->custom_free_function = free_packet;
    p = pbuf_alloced_custom(PBUF_RAW, (u16_t)len, PBUF_REF, custom, bytes, (u16_t)len);
    assert_non_null(p);
    return p;
}

static uint8_t *new_bytes(size_t len)
{
    uint8_t *bytes = calloc(1, len);

    assert_non_null(bytes);
    return bytes;
}

static void input(struct pbuf *p)
{
    assert_int_equal(netif.input(p, &netif), ERR_OK);
}

/* An IPv4 packet from 10.0.0.2 to 10.0.0.1 with `payload` bytes still to be filled in after
 * byte 20. */
static uint8_t *new_ip4(unsigned protocol, size_t payload)
{
    uint8_t *ip = new_bytes(20 + payload);

    ip[0] = 0x45;
    put16(ip + 2, (unsigned)(20 + payload));
    ip[8] = 64;
    ip[9] = (uint8_t)protocol;
    put32(ip + 12, 0x0a000002);
    put32(ip + 16, 0x0a000001);
    return ip;
}

static unsigned window = 65535; /* that the peer's segments say */

static void input_segment(uint32_t seq, uint32_t ack, unsigned flags, const uint8_t *options,
                          size_t options_len)
{
    uint8_t *ip = new_ip4(IP_PROTO_TCP, 20 + options_len);
    uint8_t *tcp = ip + 20;

    put16(tcp, PEER_PORT);
    put16(tcp + 2, OUR_PORT);
    put32(tcp + 4, seq);
    put32(tcp + 8, ack);
    tcp[12] = (uint8_t)((20 + options_len) / 4 << 4);
    tcp[13] = (uint8_t)flags;
    put16(tcp + 14, window);
    if (options_len > 0)
        memcpy(tcp + 20, options, options_len);
    input(wrap(ip, 20 + 20 + options_len));
}

/* --- fixture -------------------------------------------------------------------------------- */

static err_t swallow(struct netif *n, struct pbuf *p, const ip4_addr_t *to)
{
    (void)n, (void)p, (void)to;
    return ERR_OK;
}

static err_t init_netif(struct netif *n)
{
    n->output = swallow;
    n->mtu = MTU;
    return ERR_OK;
}

static err_t on_accept(void *arg, struct tcp_pcb *pcb, err_t err)
{
    (void)arg, (void)err;
    accepted = pcb;
    return ERR_OK;
}

static int start(void **state)
{
    ip4_addr_t ip4, mask;

    (void)state;
    lwip_init();
    IP4_ADDR(&ip4, 10, 0, 0, 1);
    IP4_ADDR(&mask, 255, 255, 255, 0);
    netif_add(&netif, &ip4, &mask, &ip4, NULL, init_netif, ip_input);
    netif_set_default(&netif);
    netif_set_up(&netif);
    netif_set_link_up(&netif);
    NETIF_SET_CHECKSUM_CTRL(&netif, NETIF_CHECKSUM_DISABLE_ALL);
    return 0;
}

static int forget(void **state)
{
    (void)state;
    accepted = NULL;
    return 0;
}

static struct tcp_pcb *listen_here(void)
{
    struct tcp_pcb *pcb = tcp_new_ip_type(IPADDR_TYPE_ANY);

    assert_int_equal(tcp_bind(pcb, IP_ANY_TYPE, OUR_PORT), ERR_OK);
    pcb = tcp_listen(pcb);
    assert_non_null(pcb);
    tcp_accept(pcb, on_accept);
    return pcb;
}

static struct tcp_pcb *handshake(const uint8_t *options, size_t options_len)
{
    input_segment(1, 0, TCP_SYN, options, options_len);
    input_segment(2, ISN + 1, TCP_ACK, NULL, 0);
    assert_non_null(accepted);
    return accepted;
}

/* --- tests ---------------------------------------------------------------------------------- */

/* 01: the byte after the packet was read. */
static void option_kind_is_last_byte(void **state)
{
    static const uint8_t kinds[] = {2 /* MSS */, 3 /* scale */, 4 /* SACK */, 8 /* times */, 99};
    struct tcp_pcb *listener = listen_here();

    (void)state;
    for (size_t i = 0; i < sizeof(kinds); i++) {
        const uint8_t options[] = {1, 1, 1, kinds[i]};

        tcp_abort(handshake(options, sizeof(options)));
        accepted = NULL;
    }
    tcp_close(listener);
}

/* 02: a segment of an open connection changed the MSS. */
static void mss_changes_in_syn_only(void **state)
{
    static const uint8_t mss_1000[] = {2, 4, 1000 >> 8, 1000 & 0xff};
    static const uint8_t mss_1[] = {2, 4, 0, 1};
    struct tcp_pcb *listener = listen_here();
    struct tcp_pcb *pcb = handshake(mss_1000, sizeof(mss_1000));

    (void)state;
    assert_int_equal(pcb->mss, 1000);
    input_segment(2, ISN + 1, TCP_ACK, mss_1, sizeof(mss_1));
    assert_int_equal(pcb->mss, 1000);
    tcp_abort(pcb);
    tcp_close(listener);
}

/* Long enough for a retransmission, and for a persist timer's first tick. */
static void let_timers_run(void)
{
    for (int i = 0; i < 100; i++)
        tcp_slowtmr();
}

/* 03: the timer ticked on, and an assertion failed. */
static void persist_timer_needs_data(void **state)
{
    static const uint8_t data[100];
    struct tcp_pcb *listener = listen_here();
    struct tcp_pcb *pcb = handshake(NULL, 0);

    (void)state;
    assert_int_equal(tcp_write(pcb, data, sizeof(data), 0), ERR_OK);
    assert_int_equal(tcp_output(pcb), ERR_OK);
    window = 0;
    input_segment(2, ISN + 1 + sizeof(data) / 2, TCP_ACK, NULL, 0);
    let_timers_run();
    assert_true(pcb->unacked == NULL && pcb->unsent != NULL && pcb->persist_backoff > 0);
    input_segment(2, ISN + 1 + sizeof(data), TCP_ACK, NULL, 0);
    assert_null(pcb->unsent);
    assert_int_equal(pcb->persist_backoff, 0);
    let_timers_run();
    window = 65535;
    tcp_abort(pcb);
    tcp_close(listener);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(option_kind_is_last_byte, forget),
        cmocka_unit_test_setup(mss_changes_in_syn_only, forget),
        cmocka_unit_test_setup(persist_timer_needs_data, forget),
    };

    return cmocka_run_group_tests(tests, start, NULL);
}
