/* Port 53 as packets bring it: the stack and the policy replaced at link time. */
#include "core/flows.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "core/base/cursor.h"
#include "failing_memory.h"
#include "fake_loop.h"
#include "front_lab.h"

/* --- the lab --------------------------------------------------------------------------------- */

static struct worker worker;
static struct dns_front *front;

static int setup(void **state)
{
    (void)state;
    front_lab_reset();
    worker = (struct worker){.loop = loop_new()};
    front = dns_front_new(&worker);
    return front ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    dns_front_free(front);
    assert_int_equal(front_lab.open_count, 0);
    assert_int_equal(fake_loop_timers(worker.loop), 0);
    for (size_t i = 0; i < front_lab.peer_count; i++) {
        assert_null(front_lab.peers[i].conn);
        assert_int_equal(front_lab.peers[i].chunk_count, 0);
        free(front_lab.peers[i].tx);
    }
    loop_free(worker.loop);
    return 0;
}

static struct endpoint at(const char *text)
{
    struct endpoint e;
    assert_true(endpoint_parse(text, 53, &e));
    return e;
}

/* A connection up to its SYN. */
static struct peer *knock(void)
{
    struct endpoint src = at("10.0.0.1:4000"), dst = at("198.18.0.2:53");
    assert_true(front_lab.peer_count < PEERS_MAX);
    struct peer *p = &front_lab.peers[front_lab.peer_count];
    *p = (struct peer){.room = ROOM, .piece = 1000};
    p->conn = dns_front_open(front, &src, &dst);
    assert_non_null(p->conn);
    front_lab.peer_count++;
    assert_false(p->accepted); /* not before the stack knows the conn */
    return p;
}

static struct peer *connect_client(void)
{
    struct peer *p = knock();
    fake_loop_settle(worker.loop);
    assert_true(p->accepted);
    dns_front_ready(front, p->conn, CONN_OPENED);
    return p;
}

static void receive(struct peer *p, const void *bytes, size_t len)
{
    assert_true(p->rx_len + len <= sizeof(p->rx));
    memcpy(p->rx + p->rx_len, bytes, len);
    p->rx_len += len;
    dns_front_ready(front, p->conn, CONN_DATA);
}

static size_t frame(uint8_t *out, const char *text)
{
    struct writer w = writer_over(out, 100);
    writer_u16(&w, (uint16_t)strlen(text));
    writer_bytes(&w, text, strlen(text));
    return writer_used(&w);
}

static void ask(struct peer *p, const char *text)
{
    uint8_t bytes[100];
    receive(p, bytes, frame(bytes, text));
}

/* The client has read all and acknowledges. */
static void acknowledge(struct peer *p)
{
    front_lab_release_chunks(p);
    p->room = ROOM;
    if (p->conn)
        dns_front_ready(front, p->conn, CONN_ROOM);
    fake_loop_settle(worker.loop);
}

static void assert_got(struct peer *p, const char *text)
{
    fake_loop_settle(worker.loop);
    size_t len = strlen(text);
    assert_true(p->tx_len >= 2 + len);
    assert_int_equal((size_t)p->tx[0] << 8 | p->tx[1], len);
    assert_memory_equal(p->tx + 2, text, len);
    p->tx_len -= 2 + len;
    memmove(p->tx, p->tx + 2 + len, p->tx_len);
}

/* --- UDP ------------------------------------------------------------------------------------- */

static void send_query(const char *text)
{
    struct endpoint src = at("10.0.0.1:4000"), dst = at("203.0.113.9:53");
    dns_front_datagram(front, &src, &dst, (const uint8_t *)text, strlen(text));
}

static void test_datagrams_are_answered_from_where_they_went(void **state)
{
    (void)state;
    struct endpoint client = at("10.0.0.1:4000"), asked = at("203.0.113.9:53");
    send_query("now-a");
    assert_int_equal(front_lab.sent.count, 1);
    assert_string_equal(front_lab.sent.text, "re:now-a");
    assert_true(endpoint_equal(&front_lab.sent.src, &asked));
    assert_true(endpoint_equal(&front_lab.sent.dst, &client));

    send_query("b");
    send_query("c");
    assert_int_equal(front_lab.sent.count, 1);
    assert_true(front_lab.last_was_udp);
    front_lab_answer("c");
    assert_string_equal(front_lab.sent.text, "re:c");
    front_lab_answer("b");
    assert_string_equal(front_lab.sent.text, "re:b");
    assert_int_equal(front_lab.sent.count, 3);
    send_query("junk");
    assert_int_equal(front_lab.sent.count, 3);
    send_query("never answered"); /* freed in teardown */
}

static void test_what_is_taken(void **state)
{
    (void)state;
    struct endpoint dns = at("203.0.113.9:53"), dot = at("203.0.113.9:853");
    assert_true(dns_front_takes(front, &dns));
    assert_false(dns_front_takes(front, &dot));
    front_lab.mode = DNS_TCP;
    assert_true(dns_front_takes(front, &dns));
    front_lab.mode = DNS_RELAY;
    assert_false(dns_front_takes(front, &dns));
}

/* --- TCP ------------------------------------------------------------------------------------- */

static void test_pipelined_queries_answered_out_of_order(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    uint8_t bytes[300];
    size_t len = frame(bytes, "a");
    len += frame(bytes + len, "now-b");
    len += frame(bytes + len, "c");
    receive(p, bytes, len);
    assert_got(p, "re:now-b");
    assert_int_equal(front_lab.open_count, 2);
    front_lab_answer("c");
    assert_got(p, "re:c");
    front_lab_answer("a");
    assert_got(p, "re:a");
    assert_int_equal(p->tx_len, 0);
    assert_false(p->shut || p->aborted);
}

static void test_queries_that_come_byte_by_byte(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    uint8_t bytes[300];
    size_t len = frame(bytes, "now-a");
    len += frame(bytes + len, "now-b");
    for (size_t i = 0; i < len; i++)
        receive(p, bytes + i, 1);
    assert_got(p, "re:now-a");
    assert_got(p, "re:now-b");
    p->piece = 1; /* and in pieces of one byte at once */
    receive(p, bytes, len);
    assert_got(p, "re:now-a");
    assert_got(p, "re:now-b");
}

static void test_half_close_waits_for_the_answers(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    ask(p, "a");
    dns_front_ready(front, p->conn, CONN_FIN);
    fake_loop_settle(worker.loop);
    assert_false(p->shut);
    front_lab_answer("a");
    assert_got(p, "re:a");
    assert_true(p->shut);
    dns_front_ready(front, p->conn, CONN_CLOSED);
    assert_true(p->aborted);

    p = connect_client(); /* query, FIN and answer in one event */
    uint8_t bytes[100];
    size_t len = frame(bytes, "now-b");
    memcpy(p->rx, bytes, len);
    p->rx_len = len;
    dns_front_ready(front, p->conn, CONN_DATA | CONN_FIN);
    assert_got(p, "re:now-b");
    assert_true(p->shut);

    p = connect_client(); /* a FIN in the middle of a query */
    receive(p, "\0\12half", 6);
    dns_front_ready(front, p->conn, CONN_FIN);
    assert_true(p->shut);
}

static void test_a_reset_cancels_what_is_open(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    ask(p, "a");
    ask(p, "b");
    assert_int_equal(front_lab.open_count, 2);
    dns_front_ready(front, p->conn, CONN_RESET);
    assert_int_equal(front_lab.open_count, 0);
    assert_true(p->aborted);
    fake_loop_settle(worker.loop);

    p = knock(); /* given up before the turn's end */
    dns_front_ready(front, p->conn, CONN_RESET);
    fake_loop_settle(worker.loop);
    assert_false(p->accepted);
}

static void test_nonsense_ends_the_session(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    receive(p, "\0\0", 2); /* a message of no bytes */
    assert_true(p->aborted);
    p = connect_client();
    receive(p, "GET / HTTP/1.1\r\n", 16); /* one of 18,245 bytes */
    assert_true(p->aborted);
    p = connect_client();
    ask(p, "junk"); /* dropped without an answer: others are still served */
    ask(p, "now-a");
    assert_got(p, "re:now-a");
}

static void test_an_idle_session_is_closed(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    ask(p, "now-a");
    assert_got(p, "re:now-a");
    acknowledge(p);
    fake_loop_advance(worker.loop, 20000);
    ask(p, "now-b");
    acknowledge(p);
    fake_loop_advance(worker.loop, 29000);
    assert_false(p->shut);
    fake_loop_advance(worker.loop, 1500);
    assert_true(p->shut);
    assert_false(p->aborted);
    fake_loop_advance(worker.loop, 31000); /* the client does not care */
    assert_true(p->aborted);

    p = connect_client(); /* what comes after our FIN is refused, so that it is asked anew */
    fake_loop_advance(worker.loop, 31000);
    assert_true(p->shut);
    ask(p, "a");
    assert_true(p->aborted);
    assert_int_equal(front_lab.open_count, 0);
}

static void test_dripping_is_no_activity(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    receive(p, "\0\50", 2);
    for (int i = 0; i < 31 && !p->aborted && !p->shut; i++) {
        receive(p, "x", 1);
        fake_loop_advance(worker.loop, 1000);
    }
    assert_true(p->shut || p->aborted);
}

static void test_a_handshake_that_never_ends(void **state)
{
    (void)state;
    struct peer *p = knock();
    fake_loop_settle(worker.loop);
    fake_loop_advance(worker.loop, 30000);
    assert_true(p->aborted);
}

static void test_open_queries_of_a_session_are_bounded(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    uint8_t bytes[3000];
    size_t len = 0;
    char text[16];
    for (int i = 0; i < 100; i++) {
        snprintf(text, sizeof(text), "q%d", i);
        len += frame(bytes + len, text);
    }
    receive(p, bytes, len);
    assert_int_equal(front_lab.open_count, 64);
    assert_true(p->rx_len > 0); /* the rest waits in the window */
    for (int i = 0; i < 100; i++) {
        snprintf(text, sizeof(text), "q%d", i);
        front_lab_answer(text);
        char expected[24];
        snprintf(expected, sizeof(expected), "re:q%d", i);
        assert_got(p, expected);
    }
    assert_int_equal(p->rx_len, 0);
}

static void test_a_client_that_does_not_read(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    uint8_t bytes[100];
    front_lab.answer_size = 20000;
    p->room = 30000;
    size_t len = frame(bytes, "now-a");
    for (int i = 0; i < 40; i++) {
        memcpy(p->rx + p->rx_len, bytes, len);
        p->rx_len += len;
    }
    dns_front_ready(front, p->conn, CONN_DATA);
    assert_int_equal(p->tx_len, 30000);
    assert_int_equal(p->rx_len, (40 - 7) * len); /* 128 KiB of answers, no more */
    p->room = 0;
    fake_loop_advance(worker.loop, 29000);
    assert_false(p->aborted);
    size_t total = 0;
    for (int i = 0; i < 200 && total < 40 * 20002; i++) { /* it reads after all */
        total += p->tx_len;
        p->tx_len = 0;
        front_lab_release_chunks(p);
        p->room = 9000;
        dns_front_ready(front, p->conn, CONN_ROOM);
    }
    assert_int_equal(total, 40 * 20002);
    p->room = 0;
    ask(p, "now-b");
    fake_loop_advance(worker.loop, 31000); /* and then never again */
    assert_true(p->aborted);
}

static void test_answers_of_all_sessions_are_bounded(void **state)
{
    (void)state;
    front_lab.answer_size = 60000;
    for (int i = 0; i < 400; i++) {
        struct peer *p = connect_client();
        p->room = 0;
        ask(p, "now-a");
    }
    size_t alive = 0;
    for (size_t i = 0; i < front_lab.peer_count; i++)
        alive += !front_lab.peers[i].aborted;
    assert_true(alive <= (16u << 20) / 60000);
    assert_true(alive > 200);
}

static void test_the_largest_answer(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    front_lab.answer_size = 65535;
    ask(p, "now-a");
    fake_loop_settle(worker.loop);
    assert_int_equal(p->tx_len, 65537);
    assert_int_equal(p->tx[0], 255);
    assert_int_equal(p->tx[1], 255);
}

static void test_a_send_that_fails(void **state)
{
    (void)state;
    struct peer *p = connect_client();
    p->send_fails = true;
    ask(p, "now-a");
    assert_true(p->aborted);

    p = connect_client(); /* in the middle of an answer */
    front_lab.answer_size = 5000;
    p->room = 1000;
    ask(p, "now-a");
    assert_int_equal(p->tx_len, 1000);
    p->send_fails = true;
    p->room = 1000;
    dns_front_ready(front, p->conn, CONN_ROOM);
    assert_true(p->aborted);

    p = connect_client(); /* from within an answer that comes later */
    front_lab.answer_size = 0;
    p->send_fails = true;
    ask(p, "a");
    front_lab_answer("a");
    fake_loop_settle(worker.loop);
    assert_true(p->aborted);
}

static void test_sessions_are_bounded(void **state)
{
    (void)state;
    struct peer *first = connect_client(), *second = connect_client();
    for (int i = 2; i < 1024; i++)
        connect_client();
    fake_loop_advance(worker.loop, 1000);
    ask(first, "now-a"); /* is used: the second is now the one idle longest */
    connect_client();
    assert_false(first->aborted);
    assert_true(second->aborted);
}

/* A datagram and a session with two queries; what fails costs itself only. */
static void use_all(void)
{
    send_query("now-a");
    send_query("b");
    if (front_lab.open_count > 0)
        front_lab_answer("b");
    struct endpoint src = at("10.0.0.1:4000"), dst = at("198.18.0.2:53");
    struct peer *p = &front_lab.peers[front_lab.peer_count];
    *p = (struct peer){.room = ROOM, .piece = 1000};
    p->conn = dns_front_open(front, &src, &dst);
    if (!p->conn)
        return;
    front_lab.peer_count++;
    fake_loop_settle(worker.loop);
    dns_front_ready(front, p->conn, CONN_OPENED);
    ask(p, "now-c");
    if (!p->aborted)
        ask(p, "d");
    if (front_lab.open_count > 0)
        front_lab_answer("d");
    fake_loop_settle(worker.loop);
    if (!p->aborted)
        assert_got(p, "re:now-c");
    if (!p->aborted)
        assert_got(p, "re:d");
}

static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    unsigned long n = 0;
    do {
        failing_memory.calls_left = ++n;
        use_all();
        assert_int_equal(front_lab.open_count, 0);
    } while (failing_memory.calls_left == 0 && n < 100);
    failing_memory.calls_left = 0;
    assert_in_range(n, 8, 99);
    struct peer *p = connect_client();
    ask(p, "now-a");
    assert_got(p, "re:now-a");

    failing_memory.calls_left = 1;
    assert_null(dns_front_new(&worker));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_datagrams_are_answered_from_where_they_went),
        TEST(test_what_is_taken),
        TEST(test_pipelined_queries_answered_out_of_order),
        TEST(test_queries_that_come_byte_by_byte),
        TEST(test_half_close_waits_for_the_answers),
        TEST(test_a_reset_cancels_what_is_open),
        TEST(test_nonsense_ends_the_session),
        TEST(test_an_idle_session_is_closed),
        TEST(test_dripping_is_no_activity),
        TEST(test_a_handshake_that_never_ends),
        TEST(test_open_queries_of_a_session_are_bounded),
        TEST(test_a_client_that_does_not_read),
        TEST(test_answers_of_all_sessions_are_bounded),
        TEST(test_the_largest_answer),
        TEST(test_a_send_that_fails),
        TEST(test_sessions_are_bounded),
        TEST(test_every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
