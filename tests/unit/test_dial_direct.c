/* Dials of direct://, without a proxy. */
#include "tests/unit/dial_lab.h"

/* --- direct:// ------------------------------------------------------------------------------- */

static void test_direct(void **state)
{
    struct fixture *f = *state;
    char where[64];
    f->outbound.allow_loopback = true;
    use_url(f, "direct://");
    assert_true(proxy_is_direct(f->proxy));
    snprintf(where, sizeof(where), "127.0.0.1:%u", f->server.port);
    struct dial_result r = dial(f, SOCKS5_CONNECT, to_addr(where));
    assert_int_equal(r.status, DIAL_OK);
    assert_true(addr_is_loopback(&r.bound.addr));
    assert_int_not_equal(r.bound.port, 0);
    close(r.fd);

    struct rude_proxy third; /* 127.0.0.2 refuses: the next address of the name is tried */
    rude_proxy_start(&third, f->loop, "127.0.0.3", 0);
    struct target target = to_name("world.test");
    target.port = third.port;
    r = dial(f, SOCKS5_CONNECT, target);
    assert_int_equal(r.status, DIAL_OK);
    assert_int_equal(addr_v4_bytes(&r.peer.addr)[3], 3);
    close(r.fd);
    rude_proxy_stop(&third);
    r = dial(f, SOCKS5_CONNECT, target);
    assert_int_equal(r.status, DIAL_REPLY);
    assert_int_equal(r.reply, SOCKS5_REPLY_REFUSED);
}

static void test_direct_refusals(void **state)
{
    struct fixture *f = *state;
    use_url(f, "direct://");
    static const char *const forbidden[] = {"127.0.0.1:80", "127.1.2.3:80",
                                            "[::1]:80",     "0.0.0.0:80",
                                            "[::]:80",      "[::ffff:127.0.0.1]:80"};
    for (size_t i = 0; i < sizeof(forbidden) / sizeof(forbidden[0]); i++) {
        struct dial_result r = dial(f, SOCKS5_CONNECT, to_addr(forbidden[i]));
        assert_int_equal(r.status, DIAL_REPLY);
        assert_int_equal(r.reply, SOCKS5_REPLY_NOT_ALLOWED);
    }
    struct dial_result r = dial(f, SOCKS5_CONNECT, to_name("localhost"));
    assert_int_equal(r.reply, SOCKS5_REPLY_NOT_ALLOWED);
    r = dial(f, SOCKS5_CONNECT, to_name("world.test")); /* a name that leads to loopback */
    assert_int_equal(r.reply, SOCKS5_REPLY_NOT_ALLOWED);
    r = dial(f, SOCKS5_CONNECT, to_name("absent.test"));
    assert_int_equal(r.status, DIAL_REPLY);
    assert_int_equal(r.reply, SOCKS5_REPLY_HOST_UNREACHABLE);
    r = dial(f, SOCKS5_UDP_ASSOCIATE, to_addr("0.0.0.0:0"));
    assert_int_equal(r.status, DIAL_REPLY);
    assert_int_equal(r.reply, SOCKS5_REPLY_COMMAND_NOT_SUPPORTED);
    assert_int_equal(f->server.accepted, 0);
}

static void test_direct_to_a_silent_host(void **state)
{
    struct fixture *f = *state;
    struct black_hole hole;
    char where[64];
    f->outbound.allow_loopback = true;
    f->outbound.connect_timeout_ms = 200;
    use_url(f, "direct://");
    black_hole_open(&hole, "127.0.0.2", f->server.port);
    snprintf(where, sizeof(where), "127.0.0.2:%u", f->server.port);
    struct dial_result r = dial(f, SOCKS5_CONNECT, to_addr(where));
    assert_int_equal(r.status, DIAL_REPLY);
    assert_int_equal(r.reply, SOCKS5_REPLY_HOST_UNREACHABLE);
    black_hole_close(&hole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DIAL_TEST(test_direct),
        DIAL_TEST(test_direct_refusals),
        DIAL_TEST(test_direct_to_a_silent_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
