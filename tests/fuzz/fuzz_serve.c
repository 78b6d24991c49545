/*
 * `culvert serve` between hostile clients and hostile targets: sessions, relays and associations as
 * they are, over sockets and a clock of the fuzzer's (tests/fuzz/world.h).
 *
 *   | modes | operations, a byte each with their arguments behind ...
 *
 * In the end the loop must have nothing left to do, and no descriptor may be open.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/map.h"
#include "core/serve/serve_parts.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/script.h"

enum { WITH_CREDENTIALS = 1, ALLOW_LOOPBACK = 2 };

static struct server server;
static bool over;

/* --- names, which the script resolves --------------------------------------------------------- */

struct resolver_request {
    struct link link;
    resolver_fn *fn;
    void *arg;
};

static struct link requests; /* oldest first */

struct resolver_request *__wrap_resolver_lookup(struct resolver *r, const char *name,
                                                resolver_fn *fn, void *arg);
struct resolver_request *__wrap_resolver_lookup(struct resolver *r, const char *name,
                                                resolver_fn *fn, void *arg)
{
    (void)r;
    FUZZ_CHECK(name[0] != '\0' && strlen(name) < 256);
    struct resolver_request *request = calloc(1, sizeof *request);
    FUZZ_CHECK(request);
    request->fn = fn;
    request->arg = arg;
    list_push_back(&requests, &request->link);
    return request;
}

void __wrap_resolver_cancel(struct resolver_request *request);
void __wrap_resolver_cancel(struct resolver_request *request)
{
    list_remove(&request->link);
    free(request);
}

static void answer_name(void)
{
    static const char *const addresses[] = {"192.0.2.7", "127.0.0.1", "2001:db8::7", "224.0.0.1"};
    uint8_t order = reader_u8(&script.input);
    struct resolver_answer answer = {.count = order >> 4 & 3, .error = "no such name"};
    for (size_t i = 0; i < answer.count; i++)
        addr_parse(addresses[(order + i) % 4], &answer.addrs[i]);
    struct link *first = list_first(&requests);
    if (!first)
        return;
    struct resolver_request *request = CONTAINER_OF(first, struct resolver_request, link);
    resolver_fn *fn = request->fn;
    void *arg = request->arg;
    __wrap_resolver_cancel(request);
    fn(arg, &answer);
}

/* --- clients ---------------------------------------------------------------------------------- */

static void connect_client(void)
{
    struct endpoint client;
    endpoint_parse("192.0.2.99:80", 0, &client); /* where all datagrams come from, too */
    int fd = world_connect();
    if (fd >= 0)
        FUZZ_CHECK(session_open(&server, fd, &client) == 0);
}

/* What clients say, in pieces that may be put together rightly or not. */
static void say_usual(void)
{
    static const struct {
        uint8_t len, bytes[31];
    } usual[] = {
        {3, {5, 1, 0}},
        {4, {5, 2, 0, 2}},
        {5, {1, 1, 'u', 1, 'p'}},
        {10, {5, 1, 0, 1, 192, 0, 2, 1, 0, 80}},
        {13, {5, 1, 0, 3, 6, 'a', '.', 't', 'e', 's', 't', 0, 80}},
        {22, {5, 1, 0, 4, 0x20, 1, 13, 184, [20] = 0, 80}},
        {13, {5, 1, 0, 5, 1, 0, 1, 192, 0, 2, 1, 0, 80}},
        {13, {5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0}},
        {10, {5, 3, 0, 1, 0, 0, 0, 0, 0, 80}},
        {14, {0, 0, 0, 1, 192, 0, 2, 1, 0, 80, 'd', 'a', 't', 'a'}}, /* a datagram */
        {15, {0, 0, 0, 3, 6, 'a', '.', 't', 'e', 's', 't', 0, 80, 'x', 'y'}},
        {12, {0, 0, 0, 1, 127, 0, 0, 1, 0, 80, 'x', 'y'}},
    };
    const struct world_socket *s = script_socket();
    uint8_t which = reader_u8(&script.input) % (sizeof usual / sizeof usual[0]);
    script_say(s, usual[which].bytes, usual[which].len);
}

/* --- the script ------------------------------------------------------------------------------- */

void world_turn(void)
{
    static operation *const operations[] = {
        connect_client,
        say_usual,
        script_say_raw,
        script_let_time_pass,
        answer_name,
        script_pour,
        script_end_socket,
        script_choose_errors,
        script_choose_run_size,
    };
    if (!over && !script_turn(operations, sizeof operations / sizeof operations[0]))
        over = true;
}

static void start(const struct serve_options *options)
{
    static struct udp_batch *batch; /* large, and without a memory of its own */
    if (!batch)
        batch = udp_batch_new();
    server = (struct server){
        .options = options,
        .direct = {.scheme = PROXY_SCHEME_DIRECT},
        .batch = batch,
    };
    list_init(&requests);
    list_init(&server.sessions);
    list_init(&server.handshakes);
    list_init(&server.associations);
    server.loop = loop_new();
    server.proxy = proxy_new(server.loop, NULL, &server.direct, options->outbound, false);
    server.pool = relay_pool_new(server.loop);
    (void)signal(SIGPIPE, SIG_IGN); /* as serve_run() has it, for splice(2) */
    FUZZ_CHECK(batch && server.loop && server.proxy && server.pool);
}

static void finish(void)
{
    session_close_all(&server);
    loop_turn(server.loop, false);
    proxy_free(server.proxy);
    relay_pool_free(server.pool);
    loop_free(server.loop);
    FUZZ_CHECK(list_empty(&requests));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct socks5_credentials credentials = {"u", "p"};
    script_begin(reader_over(data, size));
    uint8_t modes = reader_u8(&script.input);
    const struct outbound_options outbound = {
        .connect_timeout_ms = 3000,
        .allow_loopback = modes & ALLOW_LOOPBACK,
    };
    const struct serve_options options = {
        .credentials = modes & WITH_CREDENTIALS ? &credentials : NULL,
        .outbound = &outbound,
        .udp_idle_timeout_s = 60,
    };
    hash_seed(1, 2);
    if (log_threshold != LOG_LEVEL_TRACE) {
        log_set_level(LOG_LEVEL_TRACE);
        FUZZ_CHECK(log_open_file("/dev/null") == 0);
    }
    over = false;
    world_begin();
    start(&options);
    while (!over)
        loop_turn(server.loop, false);
    finish();
    FUZZ_CHECK(world_end());
    return 0;
}
