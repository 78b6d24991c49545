/* Who listens, by tables of the form of /proc/net/tcp and tcp6, and whether that is a loop. */
#include "core/proxy/local_proxy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char table[] =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout\n"
    "   0: 0100007F:0438 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1\n"
    "   1: 0100007F:0439 0200007F:1234 01 00000000:00000000 00:00000000 00000000  1001        0 2\n"
    "   2: 00000000:043A 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1002        0 3\n"
    "   3: 00000000000000000000000001000000:043B 00000000000000000000000000000000:0000 0A "
    "00000000:00000000 00:00000000 00000000  1003        0 4\n"
    "   4: nonsense\n   5: 01:02\n";

static void finds_listeners(void **state)
{
    (void)state;
    char path[] = "/tmp/test_local_proxy.XXXXXX";
    int fd = mkstemp(path);
    assert_int_equal(write(fd, table, sizeof(table) - 1), sizeof(table) - 1);
    close(fd);
    struct addr v4, v6, other;
    assert_true(addr_parse("127.0.0.1", &v4) && addr_parse("::1", &v6) &&
                addr_parse("127.0.0.2", &other));
    uint32_t uid = 0;
    assert_true(local_proxy_listener(path, &v4, 1080, &uid));
    assert_int_equal(uid, 1000);
    assert_false(local_proxy_listener(path, &other, 1080, &uid));
    assert_false(local_proxy_listener(path, &v4, 1081, &uid)); /* connected, not listening */
    assert_true(local_proxy_listener(path, &other, 1082, &uid));
    assert_int_equal(uid, 1002);
    assert_true(local_proxy_listener(path, &v6, 1083, &uid));
    assert_int_equal(uid, 1003);
    assert_false(local_proxy_listener(path, &v4, 1084, &uid));
    assert_false(local_proxy_listener("/no/such/file", &v4, 1080, &uid));
    (void)unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(finds_listeners)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
