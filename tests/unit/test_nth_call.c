/*
 * Every allocation and every call fails once, in a worker that relays: never a crash, never a
 * descriptor or a flow lost, a line that says what it was, and what comes next works.
 *
 * A script of TCP, UDP and DNS runs again and again, in a new worker each time; the nth call fails,
 * for n from 1 until the whole script passes without one that did. Applications behave as
 * kernels do: what is not acknowledged is sent again, what nobody knows is answered with RST. So a
 * step may fail only where the call that failed belongs to its own flow or query.
 */
#include "tests/unit/nth_lab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/cursor.h"

/* clang's; there with the sanitizers only. */
int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

enum {
    PASS_MS = 500,   /* so long is waited for what does not come at once */
    PASSES_MAX = 40, /* and so often: longer than --connect-timeout */
    REST_STEP_MS = 1000,
    FORGET_MS = 6000,   /* a name that did not resolve is asked for again after 5 s */
    REST_MS = 200000,   /* longer than an association, a DNS connection and TIME_WAIT last */
    STEPS_LOST_MAX = 2, /* by one call: a query's answer is needed by the next step */
    CALLS_MAX = 5000,
    NAP_US = 1000,   /* of real time, where loopback's delivery is late */
    NAPS_MAX = 3000, /* 3 s */
    LATE_MAX = 3,    /* deliveries: a FIN, its answer, and one more */
    OUT_MAX = 3000,
};

/* One connection as the application's kernel keeps it. */
struct app {
    struct peer p;
    uint32_t first_seq;
    const uint8_t *out;
    size_t out_len, acked;
    bool floods; /* what comes is FLOOD_PORT's, not an echo */
    bool established, fin_wanted, fin_acked, peer_fin;
    bool over; /* refused or reset */
    bool altered;
    size_t received;
};

/* A datagram that is waited for, to this port. */
struct ask {
    uint16_t port;
    bool answered, refused;
    size_t len;
    uint8_t bytes[4096];
};

static struct lab lab;
static struct app *apps[2]; /* the current one, and one that stays open */
static struct ask *asked;
static uint16_t next_port;
static struct segment got;
static uint8_t out_bytes[OUT_MAX];
static struct endpoint fake; /* what the name was answered with */

static struct endpoint at(const char *text)
{
    struct endpoint e;
    assert_true(endpoint_parse(text, 0, &e));
    return e;
}

/* --- TCP -------------------------------------------------------------------------------------- */

static void push_segment(struct app *a, uint32_t seq, uint8_t flags, const void *bytes, size_t len)
{
    static uint8_t packet[66000];
    struct peer p = a->p;
    p.seq = seq;
    bool syn = flags & SYN;
    size_t n = peer_write_segment(&p, packet, flags, bytes, len, peer_mss_1460, syn ? 4 : 0);
    lab_push(&lab, packet, n);
}

/* All that was not acknowledged, once more. */
static void push_unacknowledged(struct app *a)
{
    uint32_t data_seq = a->first_seq + 1;
    if (a->over)
        return;
    if (!a->established) {
        push_segment(a, a->first_seq, SYN, NULL, 0);
        return;
    }
    for (size_t i = a->acked; i < a->out_len; i += 1460) {
        size_t len = a->out_len - i < 1460 ? a->out_len - i : 1460;
        push_segment(a, data_seq + (uint32_t)i, ACK, a->out + i, len);
    }
    if (a->fin_wanted && !a->fin_acked)
        push_segment(a, data_seq + (uint32_t)a->out_len, FIN | ACK, NULL, 0);
}

static void acknowledge(struct app *a)
{
    uint32_t fin = a->fin_wanted ? 1 : 0;
    push_segment(a, a->first_seq + 1 + (uint32_t)a->out_len + fin, ACK, NULL, 0);
}

static void take_ack(struct app *a, uint32_t ack)
{
    uint32_t up_to = ack - (a->first_seq + 1);
    a->fin_acked = a->fin_acked || (a->fin_wanted && up_to == a->out_len + 1);
    size_t acked = up_to < a->out_len ? up_to : a->out_len;
    if (up_to <= a->out_len + 1 && acked > a->acked)
        a->acked = acked;
}

static void take_payload(struct app *a)
{
    for (size_t i = 0; i < got.payload_len; i++, a->received++) {
        uint8_t wanted = a->floods                  ? (uint8_t)a->received
                         : a->received < a->out_len ? a->out[a->received]
                                                    : (uint8_t)~got.payload[i];
        a->altered = a->altered || got.payload[i] != wanted;
    }
    a->p.ack += (uint32_t)got.payload_len;
}

static void take_segment(struct app *a)
{
    if (got.info.tcp_flags & RST) {
        a->over = true;
        return;
    }
    if ((got.info.tcp_flags & SYN) && !a->established) {
        a->established = true;
        a->p.ack = got.seq + 1;
        acknowledge(a);
        push_unacknowledged(a);
        return;
    }
    take_ack(a, got.ack);
    bool fin = got.info.tcp_flags & FIN;
    if (got.seq == a->p.ack) {
        take_payload(a);
        if (fin) {
            a->p.ack++;
            a->peer_fin = true;
        }
    }
    if (got.payload_len > 0 || fin || (got.info.tcp_flags & SYN))
        acknowledge(a);
}

static void open_app(struct app *a, const struct endpoint *dst, size_t out_len)
{
    bool v6 = !addr_is_v4(&dst->addr);
    *a = (struct app){.out = out_bytes, .out_len = out_len};
    a->p =
        (struct peer){.src = at(v6 ? "[fd00::2]:1" : "10.0.0.2:1"), .dst = *dst, .window = 64000};
    a->p.src.port = next_port++;
    a->first_seq = a->p.src.port * 1000u;
    apps[0] = a;
    push_unacknowledged(a);
}

/* --- what comes out of the device ------------------------------------------------------------- */

static void answer_stray(void)
{
    struct app nobody = {.p = {.src = got.info.dst, .dst = got.info.src}};
    if (!(got.info.tcp_flags & RST))
        push_segment(&nobody, got.ack, RST, NULL, 0);
}

static void take_datagram(void)
{
    size_t header = (size_t)got.info.ip_header_len + 8;
    if (!asked || got.info.dst.port != asked->port)
        return;
    asked->answered = true;
    asked->len = got.info.len - header;
    assert_true(asked->len <= sizeof(asked->bytes));
    memcpy(asked->bytes, got.bytes + PACKET_HEADROOM + header, asked->len);
}

static void take_packet(void)
{
    if (got.info.verdict == PACKET_UDP) {
        take_datagram();
        return;
    }
    if (got.info.verdict != PACKET_TCP) { /* an ICMP error */
        if (asked)
            asked->refused = true;
        else if (apps[0])
            apps[0]->over = true;
        return;
    }
    for (size_t i = 0; i < 2; i++) {
        if (!apps[i] || !endpoint_equal(&apps[i]->p.src, &got.info.dst) ||
            !endpoint_equal(&apps[i]->p.dst, &got.info.src))
            continue;
        take_segment(apps[i]);
        return;
    }
    answer_stray();
}

static bool turn(void)
{
    bool moved = lab_turn(&lab);
    while (lab_pop(&lab, &got)) {
        take_packet();
        moved = true;
    }
    return moved;
}

/* Turns until `done`, sending again what got lost. False: it never came. */
static bool wait_for(bool (*done)(const void *), const void *what)
{
    for (int passes = 0, quiet = 0; passes < PASSES_MAX && lab.running;) {
        if (done(what))
            return true;
        quiet = turn() ? 0 : quiet + 1;
        if (quiet < 3)
            continue;
        passes++;
        quiet = 0;
        lab_pass(PASS_MS);
        if (apps[0])
            push_unacknowledged(apps[0]);
    }
    return done(what);
}

static void rest(unsigned ms)
{
    for (unsigned passed = 0; passed < ms && lab.running; passed += REST_STEP_MS) {
        lab_pass(REST_STEP_MS);
        while (turn())
            continue;
    }
}

/*
 * Time passes at once, but the kernel delivers over loopback when it comes to it: ksoftirqd may
 * have to wait for a loaded processor. So where something is left, what is under way is waited for,
 * while the lab's clock stands still; what came late then has its time to rest. Did anything come?
 */
static bool await_deliveries(void)
{
    bool came = false;
    for (int naps = 0; naps < NAPS_MAX && lab.running && lab.conns > 0 && !came; naps++) {
        usleep(NAP_US);
        came = turn();
    }
    return came;
}

/* --- steps ------------------------------------------------------------------------------------ */

static bool is_open(const void *what)
{
    const struct app *a = what;
    return a->established || a->over;
}

static bool is_echoed(const void *what)
{
    const struct app *a = what;
    return a->over || a->received == a->out_len;
}

static bool is_ended(const void *what)
{
    const struct app *a = what;
    return a->over || (a->peer_fin && (a->fin_acked || !a->fin_wanted));
}

static bool is_answered(const void *what)
{
    const struct ask *a = what;
    return a->answered || a->refused;
}

/* The end of a step: whatever is left of the connection is reset. */
static bool close_app(struct app *a, bool fine)
{
    assert_false(a->altered);
    bool closed = a->peer_fin && a->fin_acked;
    if (!a->over && !closed)
        push_segment(a, a->first_seq + 1 + (uint32_t)a->acked, RST | ACK, NULL, 0);
    apps[0] = NULL;
    turn();
    return fine && !a->over;
}

/* There and back, and an orderly end. */
static bool echo(const struct endpoint *dst)
{
    struct app a;
    open_app(&a, dst, OUT_MAX);
    bool fine = wait_for(is_echoed, &a) && !a.over;
    a.fin_wanted = true;
    push_unacknowledged(&a);
    fine = wait_for(is_ended, &a) && fine;
    return close_app(&a, fine);
}

static bool step_echo(void)
{
    struct endpoint dst = at("192.0.2.1:7");
    return echo(&dst);
}

static bool step_echo_v6(void)
{
    struct endpoint dst = at("[2001:db8::1]:7");
    return echo(&dst);
}

static bool step_echo_by_name(void)
{
    return fake.port != 0 && echo(&fake);
}

static bool step_flood(void)
{
    struct app a;
    struct endpoint dst = at("192.0.2.1:9");
    open_app(&a, &dst, 0);
    a.floods = true;
    bool fine = wait_for(is_ended, &a) && a.received == ECHO_FLOOD;
    a.fin_wanted = true;
    push_unacknowledged(&a);
    fine = wait_for(is_ended, &a) && fine;
    return close_app(&a, fine);
}

/* Served by a reset; where that gets lost, what is sent next is answered with one. */
static bool expect_reset(const char *where)
{
    struct app a;
    struct endpoint dst = at(where);
    open_app(&a, &dst, 10);
    bool ended = wait_for(is_ended, &a);
    if (!ended) {
        a.fin_wanted = true;
        push_unacknowledged(&a);
        ended = wait_for(is_ended, &a);
    }
    (void)close_app(&a, true);
    return ended && a.over;
}

static bool step_refused(void)
{
    return expect_reset("192.0.2.1:1");
}

static bool step_broken_off(void)
{
    return expect_reset("192.0.2.1:13");
}

static bool step_application_resets(void)
{
    struct app a;
    struct endpoint dst = at("192.0.2.1:7");
    open_app(&a, &dst, 10);
    bool fine = wait_for(is_open, &a);
    return close_app(&a, fine);
}

/* Asks until there is an answer, as resolvers and games do: three times. */
static bool exchange(struct ask *a, const struct endpoint *dst, const void *bytes, size_t len,
                     bool in_fragments)
{
    static uint8_t packet[66000];
    struct endpoint src = at("10.0.0.2:1");
    src.port = next_port++;
    *a = (struct ask){.port = src.port};
    asked = a;
    for (int i = 0; i < 3 && !is_answered(a) && lab.running; i++) {
        size_t n = peer_write_datagram(packet, &src, dst, bytes, len);
        if (in_fragments) {
            uint8_t ip[20];
            size_t first = 20 + 1000;
            memcpy(ip, packet, sizeof(ip));
            for (int half = 0; half < 2; half++) {
                size_t from = half ? first - 20 : 0;
                size_t piece = half ? n - 20 - from : first - 20;
                static uint8_t fragment[3000];
                memcpy(fragment + 20, packet + 20 + from, piece);
                memcpy(fragment, ip, 20);
                fragment[2] = (uint8_t)((20 + piece) >> 8);
                fragment[3] = (uint8_t)(20 + piece);
                fragment[5] = (uint8_t)(i + 1);
                fragment[6] = (uint8_t)((half ? 0 : 0x20) | (from / 8) >> 8);
                fragment[7] = (uint8_t)(from / 8);
                fragment[10] = fragment[11] = 0;
                uint16_t sum = (uint16_t)~packet_sum_fold(packet_sum(fragment, 20, 0));
                fragment[10] = (uint8_t)(sum >> 8);
                fragment[11] = (uint8_t)sum;
                lab_push(&lab, fragment, 20 + piece);
            }
        } else {
            lab_push(&lab, packet, n);
        }
        (void)wait_for(is_answered, a);
    }
    asked = NULL;
    return a->answered;
}

static bool step_datagram(void)
{
    struct ask a;
    struct endpoint dst = at("192.0.2.1:7");
    return exchange(&a, &dst, "datagram", 8, false) && a.len == 8 &&
           memcmp(a.bytes, "datagram", 8) == 0;
}

static bool step_fragmented_datagram(void)
{
    struct ask a;
    struct endpoint dst = at("192.0.2.2:7");
    return exchange(&a, &dst, out_bytes, 1400, true) && a.len == 1400 &&
           memcmp(a.bytes, out_bytes, 1400) == 0;
}

/* RFC 1035, 4.1. */
static size_t write_query(uint8_t out[64], uint8_t id, uint16_t type)
{
    static const char name[] = "\3www\7example";
    struct writer w = writer_over(out, 64);
    writer_u16(&w, id);
    writer_u16(&w, 0x0100);
    writer_u16(&w, 1);
    writer_u32(&w, 0);
    writer_u16(&w, 0);
    writer_bytes(&w, name, sizeof(name));
    writer_u16(&w, type);
    writer_u16(&w, 1);
    return writer_used(&w);
}

static bool ask_name(struct ask *a, uint8_t id, uint16_t type)
{
    uint8_t query[64];
    struct endpoint dst = at("198.18.0.2:53");
    size_t len = write_query(query, id, type);
    return exchange(a, &dst, query, len, false) && a->len >= len && a->bytes[1] == id &&
           (a->bytes[2] & 0x80);
}

static bool step_fake_name(void)
{
    struct ask a;
    fake = (struct endpoint){.port = 0};
    if (!ask_name(&a, 1, 1) || (a.bytes[3] & 15) != 0)
        return false;
    char text[32];
    const uint8_t *v4 = a.bytes + a.len - 4;
    snprintf(text, sizeof(text), "%u.%u.%u.%u:7", v4[0], v4[1], v4[2], v4[3]);
    fake = at(text);
    return true;
}

/* Forwarded over TCP; the world knows no such name. */
static bool step_forwarded_query(void)
{
    struct ask a;
    return ask_name(&a, 2, 16) && (a.bytes[3] & 15) == 3;
}

static bool is_told_length(const void *what)
{
    const struct app *a = what;
    return a->over || a->received >= 2 + 12;
}

static bool step_query_over_tcp(void)
{
    struct app a;
    uint8_t query[66];
    struct endpoint dst = at("198.18.0.2:53");
    size_t len = write_query(query + 2, 3, 15);
    query[0] = 0;
    query[1] = (uint8_t)len;
    open_app(&a, &dst, 0);
    a.out = query;
    a.out_len = len + 2;
    bool fine = wait_for(is_told_length, &a) && !a.over;
    a.fin_wanted = true;
    push_unacknowledged(&a);
    fine = wait_for(is_ended, &a) && fine;
    a.altered = false; /* an answer is no echo */
    return close_app(&a, fine);
}

static const struct {
    const char *name;
    bool (*run)(void);
} steps[] = {
    {"an echo", step_echo},
    {"a name", step_fake_name},
    {"an echo by name", step_echo_by_name},
    {"a query that is forwarded", step_forwarded_query},
    {"a query over TCP", step_query_over_tcp},
    {"a datagram", step_datagram},
    {"a datagram in fragments", step_fragmented_datagram},
    {"a refusal", step_refused},
    {"a connection that the proxy breaks off", step_broken_off},
    {"a connection that the application resets", step_application_resets},
    {"an echo over IPv6", step_echo_v6},
    {"a download", step_flood},
};
enum { STEP_COUNT = sizeof(steps) / sizeof(steps[0]) };

/* --- the nth call ----------------------------------------------------------------------------- */

struct outcome {
    unsigned lost; /* steps */
    const char *first_lost;
    bool ended;      /* the worker, before it was asked to */
    bool healthy;    /* what came after the fault worked */
    int descriptors; /* at rest, past those before the worker's start */
    char *log;
};

/* A whole life of a worker whose nth call fails. */
static struct outcome live(enum faults_kind kind, unsigned nth)
{
    struct outcome o = {.lost = 0};
    static struct app open;
    next_port = 1000;
    lab_start(&lab, kind, nth);
    for (size_t i = 0; i < STEP_COUNT && lab.running; i++) {
        if (steps[i].run() || !lab.running)
            continue;
        rest(FORGET_MS);
        o.lost++;
        o.first_lost = o.first_lost ? o.first_lost : steps[i].name;
    }
    bool struck = faults->failed > 0;
    rest(REST_MS);
    for (int late = 0; late < LATE_MAX && await_deliveries(); late++)
        rest(REST_MS);
    o.descriptors = lab_descriptors(&lab) - lab.descriptors;
    if (lab.running && lab.conns != 0) {
        unsigned long long conns = lab.conns;
        char where[sizeof(faults->where)];
        memcpy(where, faults->where, sizeof(where));
        fail_msg("call %u (%s): %llu conns at rest\n%s", nth, where, conns, lab_stop(&lab));
    }
    o.healthy = step_echo() && step_datagram();
    o.healthy = o.healthy || !struck;
    struct endpoint dst = at("192.0.2.1:7");
    open_app(&open, &dst, 100); /* one is open at the end, and an association */
    (void)wait_for(is_echoed, &open);
    o.ended = !lab.running;
    apps[0] = NULL;
    o.log = lab_stop(&lab);
    assert_int_equal(lab.flows_left, 0);
    if (__lsan_do_recoverable_leak_check)
        assert_int_equal(__lsan_do_recoverable_leak_check(), 0);
    return o;
}

static bool says(const char *log, const char *what)
{
    return strcasestr(log, what) != NULL;
}

/* Did the worker do what it may when this call has failed? If not, it is said why. */
static bool judge(const struct outcome *o, unsigned nth, int error, int descriptors)
{
    const char *where = faults->where;
    char what[200];
    snprintf(what, sizeof(what), "%s, call %u: %u steps lost, first %s, worker %s %d", where, nth,
             o->lost, o->first_lost ? o->first_lost : "-", o->ended ? "ended" : "stopped",
             lab.result);
    bool told = says(o->log, strerror(error)) || says(o->log, "out of memory");
    if (o->ended) {
        bool may_end = strcmp(where, "device read") == 0 || says(o->log, "cannot start relaying");
        if (may_end && lab.result < 0 && told)
            return true;
        fprintf(stderr, "## %s\n%s\n", what, o->log);
        return false;
    }
    if (o->lost <= STEPS_LOST_MAX && o->healthy && lab.result == 0 &&
        o->descriptors == descriptors && (o->lost == 0 || told))
        return true;
    fprintf(stderr, "## %s, %d descriptors of %d, %s\n%s\n", what, o->descriptors, descriptors,
            o->healthy ? "healthy" : "not healthy", o->log);
    return false;
}

static void lead_through(enum faults_kind kind)
{
    struct outcome whole = live(FAULTS_NONE, 0);
    if (whole.lost > 0 || whole.ended || lab.result != 0)
        fail_msg("without a fault %s is lost\n%s", whole.first_lost, whole.log);
    free(whole.log);
    unsigned nth = 0, lost = 0, ends = 0, wrong = 0;
    while (++nth < CALLS_MAX) {
        struct outcome o = live(kind, nth);
        if (faults->failed > 0 && !judge(&o, nth, faults->given, whole.descriptors))
            wrong++;
        lost += o.lost;
        ends += o.ended;
        free(o.log);
        if (faults->failed == 0)
            break;
    }
    assert_true(nth > 50 && nth < CALLS_MAX);
    print_message("%u calls, each failed once: %u steps lost, %u ends\n", nth - 1, lost, ends);
    assert_int_equal(wrong, 0);
}

static void test_every_allocation(void **state)
{
    (void)state;
    lead_through(FAULTS_MEMORY);
}

static void test_every_call(void **state)
{
    (void)state;
    lead_through(FAULTS_CALL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation),
        cmocka_unit_test(test_every_call),
    };
    lab_prepare();
    for (size_t i = 0; i < OUT_MAX; i++)
        out_bytes[i] = (uint8_t)(i * 7 + i / 251);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
