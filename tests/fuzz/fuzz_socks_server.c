/*
 * A hostile client against the server machine. The first byte sets it up, the second seeds the
 * chunking; the rest is what the client says, heard in chunks of the fuzzer's choice and byte by
 * byte.
 */
#include "socks/server.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

static const struct socks5_credentials credentials = {"u", "p"};

static bool ended(const struct socks5_server *s)
{
    return s->state == SOCKS5_SERVER_READY || s->state == SOCKS5_SERVER_FAILED;
}

/* Returns how many bytes were heard before the machine ended. `chunks` 0: one by one. */
static size_t hear(struct socks5_server *s, const uint8_t *data, size_t size, unsigned chunks)
{
    size_t used = 0;

    while (used < size && !ended(s)) {
        size_t n = 1;
        if (chunks > 0) {
            chunks = chunks * 1103515245u + 12345u;
            n = 1 + (chunks >> 16) % 600;
        }
        n = n < size - used ? n : size - used;
        size_t took = socks5_server_input(s, data + used, n);
        FUZZ_CHECK(took > 0 && (took == n || ended(s)));
        used += took;
    }
    return used;
}

static void check_ready(struct socks5_server *s)
{
    const uint8_t *out;

    FUZZ_CHECK(s->command == SOCKS5_CONNECT || s->command == SOCKS5_UDP_ASSOCIATE);
    FUZZ_CHECK(s->target_is_name == (s->name[0] != '\0'));
    FUZZ_CHECK(strnlen(s->name, sizeof s->name) < sizeof s->name);
    size_t before = socks5_server_output(s, &out);
    socks5_server_reply(s, SOCKS5_REPLY_SUCCEEDED, &s->target);
    size_t reply = socks5_server_output(s, &out) - before;
    FUZZ_CHECK(reply == 10 || reply == 22);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct socks5_server in_chunks, byte_by_byte;
    const uint8_t *out_a, *out_b;

    if (size < 2)
        return 0;
    socks5_server_init(&in_chunks, data[0] & 1 ? &credentials : NULL);
    socks5_server_init(&byte_by_byte, data[0] & 1 ? &credentials : NULL);
    size_t a = hear(&in_chunks, data + 2, size - 2, 1u + data[1]);
    size_t b = hear(&byte_by_byte, data + 2, size - 2, 0);

    FUZZ_CHECK(in_chunks.state == byte_by_byte.state);
    size_t len = socks5_server_output(&in_chunks, &out_a);
    FUZZ_CHECK(len == socks5_server_output(&byte_by_byte, &out_b));
    FUZZ_CHECK(memcmp(out_a, out_b, len) == 0);
    if (in_chunks.state == SOCKS5_SERVER_READY) {
        FUZZ_CHECK(a == b);
        FUZZ_CHECK(strcmp(in_chunks.name, byte_by_byte.name) == 0);
        check_ready(&in_chunks);
    }
    return 0;
}
