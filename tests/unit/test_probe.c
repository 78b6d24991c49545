/* The look at the proxy as culvert starts: what it does to the proxy, and what it logs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/proxy/probe.h"

struct lab {
    struct loop *loop;
    struct resolver *resolver;
    struct outbound_options outbound;
    struct proxy_url url;
    int listener;
    char log_path[32];
};

static int set_up(void **state)
{
    struct lab *l = calloc(1, sizeof(*l));
    assert_non_null(l);
    strcpy(l->log_path, "/tmp/test_probe.XXXXXX");
    int fd = mkstemp(l->log_path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(log_open_file(l->log_path), 0);
    l->outbound.connect_timeout_ms = 2000;
    l->loop = loop_new();
    l->resolver = resolver_new(l->loop, &l->outbound);
    assert_non_null(l->resolver);

    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof(sin);
    l->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(l->listener, (struct sockaddr *)&sin, len), 0);
    assert_int_equal(getsockname(l->listener, (struct sockaddr *)&sin, &len), 0);
    char text[64];
    (void)snprintf(text, sizeof(text), "socks5://127.0.0.1:%u", ntohs(sin.sin_port));
    assert_null(proxy_url_parse(text, &l->url));
    *state = l;
    return 0;
}

static int tear_down(void **state)
{
    struct lab *l = *state;
    resolver_free(l->resolver);
    loop_free(l->loop);
    if (l->listener >= 0)
        close(l->listener);
    (void)unlink(l->log_path);
    free(l);
    return 0;
}

static void turns(struct lab *l)
{
    for (int i = 0; i < 200; i++) {
        loop_turn(l->loop, false);
        (void)usleep(500);
    }
}

/* What was logged, all of it. */
static const char *logged(const struct lab *l)
{
    static char text[4096];
    FILE *file = fopen(l->log_path, "r");
    assert_non_null(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    (void)fclose(file);
    return text;
}

static void test_a_proxy_that_listens(void **state)
{
    struct lab *l = *state;
    char byte;
    assert_int_equal(listen(l->listener, 1), 0);
    struct probe *p = probe_start(l->loop, l->resolver, &l->url, &l->outbound);
    turns(l);
    int fd = accept(l->listener, NULL, NULL);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, &byte, 1), 0); /* nothing was said, and it was closed */
    close(fd);
    probe_free(p);
    assert_string_equal(logged(l), "");
}

static void test_a_proxy_that_is_down(void **state)
{
    struct lab *l = *state;
    char port[16];
    (void)snprintf(port, sizeof(port), "port %u", l->url.port);
    struct probe *p = probe_start(l->loop, l->resolver, &l->url, &l->outbound);
    turns(l);
    probe_free(p);
    assert_non_null(strstr(logged(l), "127.0.0.1"));
    assert_non_null(strstr(logged(l), port));
    assert_non_null(strstr(logged(l), "Connection refused"));
}

static void test_a_name_that_does_not_resolve(void **state)
{
    struct lab *l = *state;
    strcpy(l->url.host, "not..a.name"); /* refused without a query */
    l->url.host_is_addr = false;
    struct probe *p = probe_start(l->loop, l->resolver, &l->url, &l->outbound);
    turns(l);
    probe_free(p);
    assert_non_null(strstr(logged(l), "not..a.name does not resolve"));
    assert_non_null(probe_resolve(&l->url, &l->outbound, NULL));
}

static void test_what_needs_no_resolving(void **state)
{
    struct lab *l = *state;
    assert_null(probe_resolve(&l->url, &l->outbound, NULL));
    l->url.host_is_addr = false;
    strcpy(l->url.host, "127.0.0.1"); /* goes through the resolver, which knows numbers */
    assert_null(probe_resolve(&l->url, &l->outbound, NULL));
    l->url.scheme = PROXY_SCHEME_DIRECT;
    assert_null(probe_resolve(&l->url, &l->outbound, NULL));
    assert_null(probe_start(l->loop, l->resolver, &l->url, &l->outbound));
}

static void test_given_up_amid_its_work(void **state)
{
    struct lab *l = *state;
    l->url.host_is_addr = false;
    strcpy(l->url.host, "127.0.0.1");
    probe_free(probe_start(l->loop, l->resolver, &l->url, &l->outbound));
    l->url.host_is_addr = true;
    l->url.port = 9;
    probe_free(probe_start(l->loop, l->resolver, &l->url, &l->outbound));
    turns(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_proxy_that_listens, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_proxy_that_is_down, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_name_that_does_not_resolve, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_needs_no_resolving, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_given_up_amid_its_work, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
