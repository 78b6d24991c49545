/* The forwarder against a scripted server, with a clock of the test's own. */
#include "core/dns/dns_forward.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/log.h"
#include "fake_loop.h"

struct lab {
    struct loop *loop;
    struct dns_forward *forward;
    unsigned kept; /* calls of the answered function */
};

struct asker {
    struct dns_waiter waiter;
    unsigned calls;
    bool got_answer;
    size_t len;
    uint8_t message[512];
};

static void note_kept(void *arg, const struct dns_key *key, const uint8_t *message,
                      const struct dns_answer *answer)
{
    (void)key, (void)message, (void)answer;
    ((struct lab *)arg)->kept++;
}

static void note_answer(void *arg, const uint8_t *answer, size_t len)
{
    struct asker *a = arg;
    a->calls++;
    a->got_answer = answer != NULL;
    a->len = len;
    if (answer && len <= sizeof(a->message))
        memcpy(a->message, answer, len);
}

static int setup(void **state)
{
    static struct lab lab;
    struct endpoint server;
    lab = (struct lab){.loop = loop_new()};
    assert_true(endpoint_parse("192.0.2.53", 53, &server));
    fake_dials_reset(lab.loop);
    lab.forward = dns_forward_new(lab.loop, NULL, &server, note_kept, &lab);
    log_set_level(LOG_LEVEL_ERROR);
    *state = &lab;
    return lab.forward ? 0 : -1;
}

static int teardown(void **state)
{
    struct lab *lab = *state;
    dns_forward_free(lab->forward);
    assert_int_equal(fake_loop_timers(lab->loop), 0);
    assert_int_equal(fake_loop_watched(lab->loop), 0);
    assert_int_equal(fake_dials.pending, 0);
    fake_dials_reset(NULL);
    loop_free(lab->loop);
    return 0;
}

static void ask(struct lab *lab, struct asker *a, const char *name)
{
    struct dns_request request = {.flags = DNS_FLAG_RD};
    struct dns_key key;
    assert_true(dns_name_parse(name, &request.question.name));
    request.question.type = 16;
    request.question.class_ = DNS_CLASS_IN;
    dns_key_make(&key, &request);
    *a = (struct asker){.waiter = {.fn = note_answer, .arg = a}};
    assert_true(dns_forward_ask(lab->forward, &key, &a->waiter));
}

/* --- the server ------------------------------------------------------------------------------ */

struct query {
    uint8_t bytes[512];
    size_t len;
};

/* The next query that the server of the nth connection gets; false: none is there. */
static bool next_query(size_t n, struct query *q)
{
    uint8_t prefix[2];
    assert_true(n < fake_dials.server_count);
    if (recv(fake_dials.servers[n], prefix, 2, 0) != 2)
        return false;
    q->len = (size_t)prefix[0] << 8 | prefix[1];
    assert_true(q->len <= sizeof(q->bytes));
    assert_int_equal(recv(fake_dials.servers[n], q->bytes, q->len, 0), q->len);
    return true;
}

static void send_bytes(size_t n, const void *bytes, size_t len)
{
    assert_int_equal(send(fake_dials.servers[n], bytes, len, MSG_NOSIGNAL), len);
}

/* The query turned into an answer with `text` as its one record, framed. Returns its length. */
static size_t make_answer(const struct query *q, const char *text, uint8_t *frame)
{
    struct writer w = writer_over(frame, 1024);
    size_t data = strlen(text) + 1;
    writer_u16(&w, (uint16_t)(q->len + 12 + data));
    writer_bytes(&w, q->bytes, q->len);
    frame[2 + 2] |= 0x80;
    frame[2 + 7] = 1;
    writer_u16(&w, 0xc00c);
    writer_u16(&w, 16);
    writer_u16(&w, 1);
    writer_u32(&w, 60);
    writer_u16(&w, (uint16_t)data);
    writer_u8(&w, (uint8_t)(data - 1));
    writer_bytes(&w, text, data - 1);
    return writer_used(&w);
}

static void answer(size_t n, const struct query *q, const char *text)
{
    uint8_t frame[1024];
    send_bytes(n, frame, make_answer(q, text, frame));
}

static void hang_up(size_t n)
{
    close(fake_dials.servers[n]);
    fake_dials.servers[n] = -1;
}

static void assert_answer(const struct asker *a, const char *text)
{
    assert_int_equal(a->calls, 1);
    assert_true(a->got_answer);
    size_t n = strlen(text);
    assert_memory_equal(a->message + a->len - n, text, n);
}

static void assert_failed(const struct asker *a)
{
    assert_int_equal(a->calls, 1);
    assert_false(a->got_answer);
}

/* --- tests ----------------------------------------------------------------------------------- */

static void test_pipelined_queries_answered_in_any_order(void **state)
{
    struct lab *lab = *state;
    struct asker a, b, c;
    struct query qa, qb, qc, none;
    ask(lab, &a, "a.test");
    ask(lab, &b, "b.test");
    fake_loop_settle(lab->loop);
    assert_int_equal(fake_dials.started, 1);
    assert_int_equal(fake_dials.last_target.port, 53);
    assert_null(fake_dials.last_target.name);
    assert_true(next_query(0, &qa));
    assert_true(next_query(0, &qb));
    ask(lab, &c, "c.test");
    fake_loop_settle(lab->loop);
    assert_int_equal(fake_dials.started, 1);
    assert_true(next_query(0, &qc));
    assert_false(next_query(0, &none));

    answer(0, &qc, "see");
    fake_loop_settle(lab->loop);
    assert_int_equal(a.calls, 0);
    assert_answer(&c, "see");
    answer(0, &qa, "ay");
    answer(0, &qb, "bee");
    fake_loop_settle(lab->loop);
    assert_answer(&a, "ay");
    assert_answer(&b, "bee");
    assert_int_equal(lab->kept, 3);
}

static void test_answers_come_in_pieces(void **state)
{
    struct lab *lab = *state;
    struct asker a, b;
    struct query qa, qb;
    uint8_t bytes[2048];
    ask(lab, &a, "a.test");
    ask(lab, &b, "b.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &qa) && next_query(0, &qb));
    size_t len = make_answer(&qa, "ay", bytes);
    len += make_answer(&qb, "bee", bytes + len);
    for (size_t i = 0; i < len; i++) {
        send_bytes(0, bytes + i, 1);
        fake_loop_settle(lab->loop);
    }
    assert_answer(&a, "ay");
    assert_answer(&b, "bee");
}

static void test_the_same_question_is_asked_once(void **state)
{
    struct lab *lab = *state;
    struct asker a, b, c;
    struct query q, none;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    ask(lab, &b, "A.TEST");
    ask(lab, &c, "a.test");
    dns_forward_cancel(&c.waiter);
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
    assert_false(next_query(0, &none));
    answer(0, &q, "both");
    fake_loop_settle(lab->loop);
    assert_answer(&a, "both");
    assert_answer(&b, "both");
    assert_int_equal(c.calls, 0);
    assert_int_equal(lab->kept, 1);
    ask(lab, &a, "a.test"); /* later it is a new question */
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
}

static void test_ids_are_ours_and_vary(void **state)
{
    struct lab *lab = *state;
    enum { N = 200 };
    static struct asker askers[N];
    static bool seen[65536];
    memset(seen, 0, sizeof(seen));
    char name[32];
    int ascending = 0;
    uint16_t last = 0;
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "n%d.test", i);
        ask(lab, &askers[i], name);
    }
    fake_loop_settle(lab->loop);
    for (int i = 0; i < N; i++) {
        struct query q;
        assert_true(next_query(0, &q));
        uint16_t id = (uint16_t)(q.bytes[0] << 8 | q.bytes[1]);
        assert_false(seen[id]); /* unique among those that are open */
        seen[id] = true;
        ascending += id == (uint16_t)(last + 1);
        last = id;
    }
    assert_true(ascending < 10);
}

static void test_a_silent_server_costs_two_attempts(void **state)
{
    struct lab *lab = *state;
    struct asker a;
    struct query first, second;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &first));
    fake_loop_advance(lab->loop, 4999);
    assert_int_equal(fake_dials.started, 1);
    fake_loop_advance(lab->loop, 1);
    assert_int_equal(fake_dials.started, 2); /* a fresh connection */
    assert_true(next_query(1, &second));
    assert_memory_equal(first.bytes + 2, second.bytes + 2, first.len - 2);
    assert_int_equal(recv(fake_dials.servers[0], &(char){0}, 1, 0), 0); /* the old one is closed */
    fake_loop_advance(lab->loop, 4999);
    assert_int_equal(a.calls, 0);
    fake_loop_advance(lab->loop, 1);
    assert_failed(&a);
    assert_int_equal(fake_dials.started, 2);
}

static void test_a_slow_name_does_not_cost_the_others_their_connection(void **state)
{
    struct lab *lab = *state;
    struct asker slow, other;
    struct query q, qo;
    ask(lab, &slow, "slow.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
    fake_loop_advance(lab->loop, 3000);
    ask(lab, &other, "other.test");
    fake_loop_advance(lab->loop, 2000); /* slow is tried on a second connection */
    assert_true(next_query(0, &qo));
    assert_true(next_query(1, &q));
    answer(0, &qo, "fine"); /* on the first one, retired meanwhile */
    fake_loop_settle(lab->loop);
    assert_answer(&other, "fine");
    assert_int_equal(recv(fake_dials.servers[0], &(char){0}, 1, 0), 0);
    answer(1, &q, "at last");
    fake_loop_settle(lab->loop);
    assert_answer(&slow, "at last");
}

static void test_a_late_answer_is_ignored(void **state)
{
    struct lab *lab = *state;
    struct asker a, keep;
    struct query first, second, other;
    ask(lab, &a, "a.test");
    fake_loop_advance(lab->loop, 4000);
    ask(lab, &keep, "keep.test"); /* keeps the first connection open */
    fake_loop_advance(lab->loop, 1000);
    assert_true(next_query(0, &first));
    assert_true(next_query(0, &other));
    assert_true(next_query(1, &second));
    answer(0, &first, "late");
    fake_loop_settle(lab->loop);
    assert_int_equal(a.calls, 0);
    answer(1, &second, "timely");
    fake_loop_settle(lab->loop);
    assert_answer(&a, "timely");
}

static void test_a_broken_connection_is_replaced_once(void **state)
{
    struct lab *lab = *state;
    struct asker a;
    struct query q;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    hang_up(0);
    fake_loop_settle(lab->loop);
    assert_int_equal(fake_dials.started, 2);
    assert_true(next_query(1, &q));
    answer(1, &q, "yes");
    fake_loop_settle(lab->loop);
    assert_answer(&a, "yes");

    ask(lab, &a, "b.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(1, &q));
    hang_up(1); /* it has answered before: this does not count as an attempt */
    fake_loop_settle(lab->loop);
    hang_up(2);
    fake_loop_settle(lab->loop);
    assert_int_equal(a.calls, 0);
    hang_up(3);
    fake_loop_settle(lab->loop);
    assert_failed(&a);
}

static void test_a_server_that_closes_after_each_answer(void **state)
{
    struct lab *lab = *state;
    enum { N = 20 };
    static struct asker askers[N];
    char name[32];
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "n%d.test", i);
        ask(lab, &askers[i], name);
    }
    for (size_t i = 0; i < N; i++) {
        struct query q;
        fake_loop_settle(lab->loop);
        assert_true(next_query(i, &q));
        answer(i, &q, "one");
        hang_up(i);
    }
    fake_loop_settle(lab->loop);
    for (int i = 0; i < N; i++)
        assert_answer(&askers[i], "one");
    assert_int_equal(fake_dials.started, N);
}

static void test_garbage_closes_the_connection(void **state)
{
    struct lab *lab = *state;
    struct asker a;
    struct query q;
    uint8_t frame[1024];
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
    send_bytes(0, "\0\2HT", 4); /* shorter than a header */
    fake_loop_settle(lab->loop);
    assert_int_equal(recv(fake_dials.servers[0], frame, 1, 0), 0);
    assert_int_equal(fake_dials.started, 2);
    assert_true(next_query(1, &q));
    send_bytes(1, "\0\15HTTP/1.1 400\r", 15); /* of nobody's id, but not an answer either */
    fake_loop_settle(lab->loop);
    assert_failed(&a);
    assert_int_equal(recv(fake_dials.servers[1], frame, 1, 0), 0);

    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    hang_up(2);
    fake_loop_settle(lab->loop);
    assert_true(next_query(3, &q));
    size_t len = make_answer(&q, "no", frame);
    frame[2 + DNS_HEADER_SIZE + 1] = 'b'; /* the right id, another question */
    send_bytes(3, frame, len);
    fake_loop_settle(lab->loop);
    assert_failed(&a);
    assert_int_equal(lab->kept, 0);
    assert_int_equal(fake_loop_watched(lab->loop), 0);
}

static void test_answers_to_nobodys_question_are_ignored(void **state)
{
    struct lab *lab = *state;
    struct asker a;
    struct query q, other;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
    other = q;
    for (int i = 0; i < 100; i++) {
        other.bytes[0]++;
        if (other.bytes[0] != q.bytes[0])
            answer(0, &other, "forged");
        fake_loop_settle(lab->loop);
    }
    assert_int_equal(a.calls, 0);
    answer(0, &q, "real");
    fake_loop_settle(lab->loop);
    assert_answer(&a, "real");
}

static void test_a_refusal_without_question(void **state)
{
    struct lab *lab = *state;
    struct asker a;
    struct query q;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
    uint8_t refusal[14] = {0, 12, q.bytes[0], q.bytes[1], 0x80, DNS_FORMERR};
    send_bytes(0, refusal, sizeof(refusal));
    fake_loop_settle(lab->loop);
    assert_failed(&a);
    ask(lab, &a, "b.test"); /* the connection stays */
    fake_loop_settle(lab->loop);
    assert_int_equal(fake_dials.started, 1);
}

static void test_an_idle_connection_is_closed(void **state)
{
    struct lab *lab = *state;
    struct asker a;
    struct query q;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
    answer(0, &q, "yes");
    fake_loop_advance(lab->loop, 29999);
    assert_int_equal(fake_loop_watched(lab->loop), 1);
    fake_loop_advance(lab->loop, 1);
    assert_int_equal(fake_loop_watched(lab->loop), 0);
    assert_int_equal(fake_loop_timers(lab->loop), 0); /* nothing is left to wake us */
    assert_int_equal(recv(fake_dials.servers[0], &q, 1, 0), 0);
    ask(lab, &a, "b.test");
    fake_loop_settle(lab->loop);
    assert_int_equal(fake_dials.started, 2);
}

static void test_the_server_may_close_when_idle(void **state)
{
    struct lab *lab = *state;
    struct asker a;
    struct query q;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
    answer(0, &q, "yes");
    fake_loop_settle(lab->loop);
    hang_up(0);
    fake_loop_settle(lab->loop);
    assert_int_equal(fake_loop_watched(lab->loop), 0);
    assert_int_equal(fake_dials.started, 1); /* not before there is something to ask */
}

static void test_a_proxy_that_is_down(void **state)
{
    struct lab *lab = *state;
    struct asker a;
    fake_dials.behaviour = FAKE_DIAL_REFUSED;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    assert_failed(&a);
    assert_int_equal(fake_dials.started, 2);

    fake_dials.behaviour = FAKE_DIAL_NO_MEMORY;
    ask(lab, &a, "b.test");
    fake_loop_settle(lab->loop);
    assert_failed(&a);

    fake_dials.behaviour = FAKE_DIAL_HANGS;
    ask(lab, &a, "c.test");
    fake_loop_advance(lab->loop, 5000);
    assert_int_equal(fake_dials.started, 4);
    assert_int_equal(fake_dials.pending, 1); /* the first was given up */
    fake_dials.behaviour = FAKE_DIAL_OK;
    fake_loop_advance(lab->loop, 5000);
    assert_failed(&a);
    assert_int_equal(fake_dials.pending, 0);

    struct query q;
    ask(lab, &a, "d.test");
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
    answer(0, &q, "back");
    fake_loop_settle(lab->loop);
    assert_answer(&a, "back");
}

static void test_open_questions_are_bounded(void **state)
{
    struct lab *lab = *state;
    static struct asker askers[DNS_PENDING_MAX];
    char name[32];
    for (int i = 0; i < DNS_PENDING_MAX; i++) {
        snprintf(name, sizeof(name), "n%d.test", i);
        ask(lab, &askers[i], name);
    }
    struct dns_request request = {.flags = DNS_FLAG_RD};
    struct dns_key key;
    struct asker one_more = {.waiter = {.fn = note_answer, .arg = &one_more}};
    assert_true(dns_name_parse("one.more.test", &request.question.name));
    dns_key_make(&key, &request);
    assert_false(dns_forward_ask(lab->forward, &key, &one_more.waiter));
    assert_int_equal(one_more.calls, 0);

    /* A server that reads nothing: what is in flight stays bounded, and all end in time. */
    fake_loop_advance(lab->loop, 10000);
    for (int i = 0; i < DNS_PENDING_MAX; i++)
        assert_failed(&askers[i]);
    assert_true(dns_forward_ask(lab->forward, &key, &one_more.waiter));
}

static void test_many_queries_over_a_slow_reader(void **state)
{
    struct lab *lab = *state;
    enum { N = 2000 };
    static struct asker askers[N];
    char name[100];
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "a-rather-long-name-that-fills-buffers-%d.example.test", i);
        ask(lab, &askers[i], name);
    }
    int n = 0;
    for (int rounds = 0; rounds < N && n < N; rounds++) {
        struct query q;
        fake_loop_settle(lab->loop);
        for (int i = 0; i < 50 && next_query(0, &q); i++, n++)
            answer(0, &q, "ok");
    }
    fake_loop_settle(lab->loop);
    for (int i = 0; i < N; i++)
        assert_answer(&askers[i], "ok");
    assert_int_equal(fake_dials.started, 1);
}

struct nested {
    struct asker asker;
    struct lab *lab;
    struct asker then;
    struct asker *cancel;
};

static void ask_again(void *arg, const uint8_t *message, size_t len)
{
    struct nested *n = arg;
    note_answer(&n->asker, message, len);
    ask(n->lab, &n->then, "a.test");
    if (n->cancel)
        dns_forward_cancel(&n->cancel->waiter);
}

static void test_asking_and_cancelling_within_an_answer(void **state)
{
    struct lab *lab = *state;
    struct nested n = {.lab = lab};
    struct asker sibling;
    struct query q;
    ask(lab, &n.asker, "a.test");
    n.asker.waiter.fn = ask_again;
    n.asker.waiter.arg = &n;
    ask(lab, &sibling, "a.test");
    n.cancel = &sibling;
    fake_loop_settle(lab->loop);
    assert_true(next_query(0, &q));
    answer(0, &q, "one");
    fake_loop_settle(lab->loop);
    assert_int_equal(sibling.calls, 0);
    assert_answer(&n.asker, "one");
    assert_true(next_query(0, &q));
    answer(0, &q, "two");
    fake_loop_settle(lab->loop);
    assert_answer(&n.then, "two");
}

static void test_who_waits_no_more_costs_no_second_attempt(void **state)
{
    struct lab *lab = *state;
    struct asker a;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    dns_forward_cancel(&a.waiter);
    fake_loop_advance(lab->loop, 6000);
    assert_int_equal(fake_dials.started, 1);
    assert_int_equal(a.calls, 0);
}

static void test_freed_while_asking(void **state)
{
    struct lab *lab = *state;
    static struct asker a, b;
    ask(lab, &a, "a.test");
    fake_loop_settle(lab->loop);
    ask(lab, &b, "b.test"); /* in the queue still; teardown frees */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_pipelined_queries_answered_in_any_order),
        TEST(test_answers_come_in_pieces),
        TEST(test_the_same_question_is_asked_once),
        TEST(test_ids_are_ours_and_vary),
        TEST(test_a_silent_server_costs_two_attempts),
        TEST(test_a_slow_name_does_not_cost_the_others_their_connection),
        TEST(test_a_late_answer_is_ignored),
        TEST(test_a_broken_connection_is_replaced_once),
        TEST(test_a_server_that_closes_after_each_answer),
        TEST(test_garbage_closes_the_connection),
        TEST(test_answers_to_nobodys_question_are_ignored),
        TEST(test_a_refusal_without_question),
        TEST(test_an_idle_connection_is_closed),
        TEST(test_the_server_may_close_when_idle),
        TEST(test_a_proxy_that_is_down),
        TEST(test_open_questions_are_bounded),
        TEST(test_many_queries_over_a_slow_reader),
        TEST(test_asking_and_cancelling_within_an_answer),
        TEST(test_who_waits_no_more_costs_no_second_attempt),
        TEST(test_freed_while_asking),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
