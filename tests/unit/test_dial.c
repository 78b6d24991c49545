/* Dials through a proxy that behaves, misbehaves, is elsewhere or is not there. */
#include "tests/unit/dial_lab.h"

static void test_connect_by_name_and_address(void **state)
{
    struct fixture *f = *state;
    f->server.payload = "SSH-2.0-";
    struct dial_result r = connect_through(f);
    char text[ENDPOINT_TEXT_MAX];
    assert_string_equal(endpoint_format(&r.bound, text), "192.0.2.99:4242");
    assert_true(addr_is_loopback(&r.peer.addr));
    assert_int_equal(r.peer.port, f->server.port);
    assert_connected(f, &r, "SSH-2.0-");
    assert_string_equal(f->server.target, "1 example.test 80");
    r = dial(f, SOCKS5_CONNECT, to_addr("[2001:db8::5]:443"));
    assert_connected(f, &r, "SSH-2.0-");
    assert_string_equal(f->server.target, "1 2001:db8::5 443");
    r = dial(f, SOCKS5_UDP_ASSOCIATE, to_addr("0.0.0.0:0"));
    assert_connected(f, &r, "SSH-2.0-");
    assert_string_equal(f->server.target, "3 0.0.0.0 0");
    assert_int_equal(f->server.accepted, 3);
    assert_int_equal(f->proxy->pipelining, PIPELINING_PROVEN);
}

static void test_every_refusal_is_told(void **state)
{
    struct fixture *f = *state;
    for (int reply = 1; reply <= 9; reply++) {
        f->server.reply = (uint8_t)reply;
        struct dial_result r = connect_through(f);
        assert_int_equal(r.status, DIAL_REPLY);
        assert_int_equal(r.reply, reply);
    }
    assert_int_equal(f->server.accepted, 9);
}

static void test_drip(void **state)
{
    struct fixture *f = *state;
    f->server.rudeness = PROXY_DRIPS;
    f->server.payload = "payload";
    for (int i = 0; i < 2; i++) { /* as the trial, then as proven */
        struct outcome o = {0};
        struct target target = to_name("example.test");
        assert_non_null(dial_start(f->proxy, SOCKS5_CONNECT, &target, on_dialled, &o));
        turn_for(f, &o.calls, 1, 5000);
        assert_int_equal(o.result.status, DIAL_OK);
        int never = 0;
        turn_for(f, &never, 1, 100);
        assert_connected(f, &o.result, "payload");
    }
}

static void test_slow_reply(void **state)
{
    struct fixture *f = *state;
    f->server.rudeness = PROXY_SLOW;
    struct dial_result r = connect_through(f);
    assert_connected(f, &r, NULL);
    assert_int_equal(f->server.accepted, 1);
}

static void test_credentials(void **state)
{
    struct fixture *f = *state;
    const struct socks5_credentials credentials = {.user = "joe", .password = "pw"};
    f->server.credentials = &credentials;
    struct dial_result r = connect_through(f);
    assert_int_equal(r.status, DIAL_AUTH); /* none given */
    use_url(f, "socks5://joe:pw@127.0.0.1:%u", f->server.port);
    r = connect_through(f);
    assert_connected(f, &r, NULL);
    use_url(f, "socks5://joe:no@127.0.0.1:%u", f->server.port);
    r = connect_through(f);
    assert_int_equal(r.status, DIAL_AUTH);
}

/* With credentials at hand a proxy may yet want to choose "no authentication" itself. */
static void test_credentials_that_are_not_wanted(void **state)
{
    struct fixture *f = *state;
    f->server.rudeness = PROXY_CHOOSES;
    use_url(f, "socks5://joe:pw@127.0.0.1:%u", f->server.port);
    struct dial_result r = connect_through(f);
    assert_connected(f, &r, NULL);
    assert_int_equal(f->proxy->pipelining, PIPELINING_CHOKED);
    assert_int_equal(f->server.accepted, 2);
    r = connect_through(f);
    assert_connected(f, &r, NULL);
    assert_int_equal(f->server.accepted, 3);
}

static void test_close_without_an_answer(void **state)
{
    struct fixture *f = *state;
    static const enum rudeness ways[] = {PROXY_CLOSES_AT_ONCE, PROXY_CLOSES_UNASKED};
    for (size_t i = 0; i < 2; i++) {
        use_url(f, "socks5://127.0.0.1:%u", f->server.port);
        f->server.rudeness = ways[i];
        f->server.accepted = 0;
        struct dial_result r = connect_through(f);
        assert_int_equal(r.status, DIAL_CLOSED);
        assert_int_equal(f->server.accepted, 2); /* the trial and its repetition */
        assert_int_equal(f->proxy->pipelining, PIPELINING_UNPROVEN);
        r = connect_through(f);
        assert_int_equal(r.status, DIAL_CLOSED);
        assert_int_equal(f->server.accepted, 3); /* no new trial for a while */
    }
}

/* ssh -D: refusals are closes, also when it is known that pipelining works. */
static void test_close_by_a_proven_proxy(void **state)
{
    struct fixture *f = *state;
    struct dial_result r = connect_through(f);
    assert_connected(f, &r, NULL);
    f->server.rudeness = PROXY_CLOSES_UNASKED;
    r = connect_through(f);
    assert_int_equal(r.status, DIAL_CLOSED);
    assert_int_equal(f->server.accepted, 2);
    f->server.rudeness = PROXY_POLITE;
    r = connect_through(f);
    assert_connected(f, &r, NULL);
    assert_int_equal(f->server.accepted, 3);
    assert_int_equal(f->proxy->pipelining, PIPELINING_PROVEN);
}

/* Stopped in the middle of a handshake for longer than the proxy waits, it begins again, once. */
static void test_a_pause_is_not_the_proxys_fault(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 3; i++) { /* as the trial, as proven, and with a proxy that always closes */
        struct outcome o = {0};
        struct target target = to_name("example.test");
        f->server.rudeness = PROXY_CLOSES_AT_ONCE;
        f->server.accepted = 0;
        enum pipelining before = f->proxy->pipelining;
        assert_non_null(dial_start(f->proxy, SOCKS5_CONNECT, &target, on_dialled, &o));
        stopped_s = 60;
        turn_for(f, (const int *)&f->server.accepted, 1, 5000);
        if (i < 2)
            f->server.rudeness = PROXY_POLITE;
        turn_for(f, &o.calls, 1, 5000);
        stopped_s = 0;
        assert_int_equal(f->server.accepted, 2);
        assert_int_equal(o.result.status, i < 2 ? DIAL_OK : DIAL_CLOSED);
        assert_int_equal(f->proxy->pipelining, before);
        if (i < 2)
            assert_connected(f, &o.result, NULL);
        use_url(f, "socks5://127.0.0.1:%u", f->server.port);
        if (i == 0) {
            f->server.rudeness = PROXY_POLITE;
            struct dial_result r = connect_through(f);
            assert_connected(f, &r, NULL);
            assert_int_equal(f->proxy->pipelining, PIPELINING_PROVEN);
        }
    }
}

/* The reset comes with the bytes before it, in one event. It ends the dial, not a time-out does. */
static void test_reset_behind_half_a_reply(void **state)
{
    struct fixture *f = *state;
    struct dial_result r = connect_through(f);
    assert_connected(f, &r, NULL);
    f->server.rudeness = PROXY_CUTS_REPLY;
    for (int i = 0; i < 3; i++) {
        r = connect_through(f);
        assert_int_equal(r.status, DIAL_CLOSED);
        assert_int_equal(r.error, ECONNRESET);
    }
}

static void test_nonsense(void **state)
{
    struct fixture *f = *state;
    static const enum rudeness ways[] = {PROXY_TALKS_HTTP, PROXY_NONSENSE_REPLY};
    for (size_t i = 0; i < 2; i++) {
        f->server.rudeness = ways[i];
        struct dial_result r = connect_through(f);
        assert_int_equal(r.status, DIAL_NONSENSE);
    }
    assert_int_not_equal(f->proxy->pipelining, PIPELINING_CHOKED);
}

static void test_silence_times_out(void **state)
{
    struct fixture *f = *state;
    f->server.rudeness = PROXY_SILENT;
    f->outbound.connect_timeout_ms = 200;
    uint64_t start = now_ms();
    struct dial_result r = connect_through(f);
    assert_int_equal(r.status, DIAL_TIMEOUT);
    assert_in_range(now_ms() - start, 195, 2000);
}

static void test_silence_is_hedged(void **state)
{
    struct fixture *f = *state;
    f->server.rudeness = PROXY_SILENT;
    f->outbound.connect_timeout_ms = 1800;
    struct dial_result r = connect_through(f);
    assert_int_equal(r.status, DIAL_TIMEOUT);
    assert_int_equal(f->server.accepted, 2);
    assert_int_equal(f->proxy->pipelining, PIPELINING_UNPROVEN);
}

static void test_a_proxy_that_hangs_on_pipelining(void **state)
{
    struct fixture *f = *state;
    f->server.rudeness = PROXY_ONE_MESSAGE;
    f->server.payload = "payload";
    uint64_t start = now_ms();
    struct outcome others = {0};
    struct outcome trial = {0};
    struct target target = to_name("example.test");
    assert_non_null(dial_start(f->proxy, SOCKS5_CONNECT, &target, on_dialled, &trial));
    for (int i = 1; i <= 3; i++) { /* beside the trial: plain, at once */
        assert_non_null(dial_start(f->proxy, SOCKS5_CONNECT, &target, on_dialled, &others));
        turn_for(f, &others.calls, i, 5000);
        assert_connected(f, &others.result, "payload");
    }
    assert_int_equal(trial.calls, 0);
    turn_for(f, &trial.calls, 1, 5000);
    assert_in_range(now_ms() - start, 500, 4500);
    assert_connected(f, &trial.result, "payload");
    assert_int_equal(f->proxy->pipelining, PIPELINING_CHOKED);
    struct dial_result r = connect_through(f);
    assert_connected(f, &r, "payload");
    assert_int_equal(f->server.accepted, 6); /* the last one hung no more */
}

static void test_a_proxy_that_breaks_pipelining_off(void **state)
{
    struct fixture *f = *state;
    static const enum rudeness ways[] = {PROXY_CLOSES_PIPELINE, PROXY_NOISE_PIPELINE};
    for (size_t i = 0; i < 2; i++) {
        use_url(f, "socks5://127.0.0.1:%u", f->server.port);
        f->server.rudeness = ways[i];
        struct dial_result r = connect_through(f);
        assert_connected(f, &r, NULL);
        assert_int_equal(f->proxy->pipelining, PIPELINING_CHOKED);
    }
    use_url(f, "socks5://127.0.0.1:%u", f->server.port);
    f->server.reply = SOCKS5_REPLY_REFUSED;
    struct dial_result r = connect_through(f);
    assert_int_equal(r.status, DIAL_REPLY); /* a refusal is an answer, too */
    assert_int_equal(f->proxy->pipelining, PIPELINING_CHOKED);
}

/* The proxy answers the hedge with a refusal, or dies, while the trial hangs. */
static void test_the_hedge_fails(void **state)
{
    struct fixture *f = *state;
    f->server.rudeness = PROXY_ONE_MESSAGE;
    f->outbound.connect_timeout_ms = 1000;
    struct outcome o = {0};
    struct target target = to_name("example.test");
    assert_non_null(dial_start(f->proxy, SOCKS5_CONNECT, &target, on_dialled, &o));
    turn_for(f, &o.calls, 1, 300);
    f->server.rudeness = PROXY_CLOSES_AT_ONCE;
    turn_for(f, &o.calls, 1, 5000);
    assert_int_equal(o.result.status, DIAL_TIMEOUT);
    assert_int_equal(f->proxy->pipelining, PIPELINING_UNPROVEN);
    assert_true(f->proxy->next_trial_ms > loop_now(f->loop));
    assert_false(f->proxy->on_trial);
}

static void test_the_trial_answers_beside_its_hedge(void **state)
{
    struct fixture *f = *state;
    f->server.rudeness = PROXY_ONE_MESSAGE;
    struct outcome o = {0};
    struct target target = to_name("example.test");
    assert_non_null(dial_start(f->proxy, SOCKS5_CONNECT, &target, on_dialled, &o));
    turn_for(f, &o.calls, 1, 300);
    f->server.rudeness = PROXY_SILENT;
    turn_for(f, &o.calls, 1, 400);
    assert_int_equal(f->server.accepted, 2);
    rude_proxy_stop(&f->server); /* both are cut off */
    turn_for(f, &o.calls, 1, 5000);
    assert_int_equal(o.result.status, DIAL_CLOSED);
    assert_int_equal(f->proxy->pipelining, PIPELINING_UNPROVEN);
}

static void test_without_pipelining(void **state)
{
    struct fixture *f = *state;
    proxy_free(f->proxy);
    f->proxy = proxy_new(f->loop, f->resolver, &f->url, &f->outbound, false);
    f->server.rudeness = PROXY_ONE_MESSAGE;
    f->server.payload = "payload";
    struct dial_result r = connect_through(f);
    assert_connected(f, &r, "payload");
    assert_int_equal(f->server.accepted, 1);
    f->server.rudeness = PROXY_TALKS_HTTP;
    r = connect_through(f);
    assert_int_equal(r.status, DIAL_NONSENSE);
    f->server.rudeness = PROXY_CLOSES_AT_ONCE;
    r = connect_through(f);
    assert_int_equal(r.status, DIAL_CLOSED);
}

static void test_no_proxy_there(void **state)
{
    struct fixture *f = *state;
    rude_proxy_stop(&f->server);
    struct dial_result r = connect_through(f);
    assert_int_equal(r.status, DIAL_NO_PROXY);
    assert_int_equal(r.error, ECONNREFUSED);
    use_url(f, "socks5://absent.test:1080");
    r = connect_through(f);
    assert_int_equal(r.status, DIAL_NO_PROXY);
}

static void test_it_comes_back(void **state)
{
    struct fixture *f = *state;
    uint16_t port = f->server.port;
    rude_proxy_stop(&f->server);
    struct dial_result r = connect_through(f);
    assert_int_equal(r.status, DIAL_NO_PROXY);
    rude_proxy_start(&f->server, f->loop, "127.0.0.1", port);
    r = connect_through(f);
    assert_connected(f, &r, NULL);
}

/* 127.0.0.2 refuses, 127.0.0.3 is the proxy. */
static void test_a_dead_address_is_passed_over(void **state)
{
    struct fixture *f = *state;
    struct rude_proxy third;
    rude_proxy_start(&third, f->loop, "127.0.0.3", 0);
    use_url(f, "socks5://proxy.test:%u", third.port);
    for (int i = 0; i < 3; i++) {
        struct dial_result r = connect_through(f);
        assert_int_equal(addr_v4_bytes(&r.peer.addr)[3], 3);
        assert_connected(f, &r, NULL);
    }
    assert_int_equal(third.accepted, 3);
    rude_proxy_stop(&third);
    struct dial_result r = connect_through(f);
    assert_int_equal(r.status, DIAL_NO_PROXY);
}

static void test_a_silent_address_does_not_eat_the_time(void **state)
{
    struct fixture *f = *state;
    struct rude_proxy third;
    struct black_hole second;
    rude_proxy_start(&third, f->loop, "127.0.0.3", 0);
    black_hole_open(&second, "127.0.0.2", third.port);
    use_url(f, "socks5://proxy.test:%u", third.port);
    uint64_t start = now_ms();
    struct dial_result r = connect_through(f);
    assert_connected(f, &r, NULL);
    assert_in_range(now_ms() - start, 0, 2000);
    start = now_ms(); /* from now on the one that answers is asked first */
    r = connect_through(f);
    assert_connected(f, &r, NULL);
    assert_in_range(now_ms() - start, 0, 299);
    rude_proxy_stop(&third);
    f->outbound.connect_timeout_ms = 500;
    r = connect_through(f); /* one refuses, one is silent */
    assert_int_equal(r.status, DIAL_TIMEOUT);
    black_hole_close(&second);
}

static void test_no_descriptor_left(void **state)
{
    struct fixture *f = *state;
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    int lowest = dup(STDERR_FILENO);
    close(lowest);
    struct rlimit none = {.rlim_cur = (rlim_t)lowest, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    struct dial_result r = connect_through(f);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(r.status, DIAL_NO_RESOURCES);
    assert_int_equal(r.error, EMFILE);
    r = connect_through(f);
    assert_connected(f, &r, NULL);
}

static void test_an_interface_that_is_not_there(void **state)
{
    struct fixture *f = *state;
    strcpy(f->outbound.bind_interface, "no-such-if");
    struct dial_result r = connect_through(f);
    assert_int_equal(r.status, DIAL_NO_PROXY);
}

/* Cancelled after any number of turns: no call, no descriptor, and the next dial works. */
static void test_cancel_at_each_stage(void **state)
{
    struct fixture *f = *state;
    struct rude_proxy third;
    static const enum rudeness ways[] = {PROXY_POLITE, PROXY_DRIPS, PROXY_ONE_MESSAGE,
                                         PROXY_CLOSES_PIPELINE};
    rude_proxy_start(&third, f->loop, "127.0.0.3", 0);
    for (size_t way = 0; way < 4; way++) {
        third.rudeness = ways[way];
        for (int turns = 0; turns < 12; turns++) {
            use_url(f, "socks5://proxy.test:%u", third.port);
            struct outcome o = {0};
            struct target target = to_name("example.test");
            struct dial *d = dial_start(f->proxy, SOCKS5_CONNECT, &target, on_dialled, &o);
            assert_non_null(d);
            for (int i = 0; i < turns && o.calls == 0; i++)
                loop_turn(f->loop, false);
            if (o.calls == 0)
                dial_cancel(d);
            else if (o.result.fd >= 0)
                close(o.result.fd);
            int calls = o.calls;
            int never = 0;
            turn_for(f, &never, 1, 3);
            assert_int_equal(o.calls, calls);
            assert_false(f->proxy->on_trial);
        }
    }
    rude_proxy_stop(&third);
}

static void test_cancel_a_hedged_dial(void **state)
{
    struct fixture *f = *state;
    f->server.rudeness = PROXY_SILENT;
    struct outcome o = {0};
    struct target target = to_name("example.test");
    struct dial *d = dial_start(f->proxy, SOCKS5_CONNECT, &target, on_dialled, &o);
    for (int i = 0; i < 100 && f->server.accepted < 2; i++)
        turn_for(f, &o.calls, 1, 50);
    assert_int_equal(f->server.accepted, 2);
    dial_cancel(d);
    assert_false(f->proxy->on_trial);
}

static void test_out_of_memory_costs_the_dial_alone(void **state)
{
    struct fixture *f = *state;
    int failures = 0;
    for (int nth = 1; nth < 100; nth++) {
        use_url(f, "socks5://127.0.0.1:%u", f->server.port);
        struct outcome o = {0};
        struct target target = to_name("example.test");
        fail_calloc_at = nth;
        struct dial *d = dial_start(f->proxy, SOCKS5_CONNECT, &target, on_dialled, &o);
        if (fail_calloc_at > 0) { /* it went through without so many allocations */
            fail_calloc_at = 0;
            turn_for(f, &o.calls, 1, 5000);
            assert_connected(f, &o.result, NULL);
            break;
        }
        fail_calloc_at = 0;
        failures++;
        if (!d)
            continue;
        turn_for(f, &o.calls, 1, 5000);
        assert_int_equal(o.calls, 1);
        assert_int_equal(o.result.status, DIAL_NO_RESOURCES);
        assert_int_equal(o.result.error, ENOMEM);
    }
    assert_true(failures >= 2);
}

static void test_udp_refusal_is_remembered(void **state)
{
    struct fixture *f = *state;
    assert_false(proxy_udp_refused(f->proxy));
    proxy_note_udp_refused(f->proxy, "reply 7");
    proxy_note_udp_refused(f->proxy, "reply 7");
    assert_true(proxy_udp_refused(f->proxy));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DIAL_TEST(test_connect_by_name_and_address),
        DIAL_TEST(test_every_refusal_is_told),
        DIAL_TEST(test_drip),
        DIAL_TEST(test_slow_reply),
        DIAL_TEST(test_credentials),
        DIAL_TEST(test_credentials_that_are_not_wanted),
        DIAL_TEST(test_close_without_an_answer),
        DIAL_TEST(test_close_by_a_proven_proxy),
        DIAL_TEST(test_a_pause_is_not_the_proxys_fault),
        DIAL_TEST(test_reset_behind_half_a_reply),
        DIAL_TEST(test_nonsense),
        DIAL_TEST(test_silence_times_out),
        DIAL_TEST(test_silence_is_hedged),
        DIAL_TEST(test_a_proxy_that_hangs_on_pipelining),
        DIAL_TEST(test_a_proxy_that_breaks_pipelining_off),
        DIAL_TEST(test_the_hedge_fails),
        DIAL_TEST(test_the_trial_answers_beside_its_hedge),
        DIAL_TEST(test_without_pipelining),
        DIAL_TEST(test_no_proxy_there),
        DIAL_TEST(test_it_comes_back),
        DIAL_TEST(test_a_dead_address_is_passed_over),
        DIAL_TEST(test_a_silent_address_does_not_eat_the_time),
        DIAL_TEST(test_no_descriptor_left),
        DIAL_TEST(test_an_interface_that_is_not_there),
        DIAL_TEST(test_cancel_at_each_stage),
        DIAL_TEST(test_cancel_a_hedged_dial),
        DIAL_TEST(test_out_of_memory_costs_the_dial_alone),
        DIAL_TEST(test_udp_refusal_is_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
