/*
 * A hostile proxy against the client machine. The first byte sets the machine up, the second
 * seeds the chunking; the rest is what the proxy says. The same bytes are heard in chunks of the
 * fuzzer's choice and one by one: both must end alike, and never hear more than was wanted.
 */
#include "socks/client.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

enum { WITH_CREDENTIALS = 1, PIPELINED = 2, ASSOCIATE = 4, NAME = 8 };

static void start(struct socks5_client *c, uint8_t options)
{
    static const struct socks5_credentials credentials = {"user", "password"};
    struct target t = {.port = 443};

    if (options & NAME)
        t.name = "host.example";
    socks5_client_init(c, options & WITH_CREDENTIALS ? &credentials : NULL,
                       options & ASSOCIATE ? SOCKS5_UDP_ASSOCIATE : SOCKS5_CONNECT, &t,
                       options & PIPELINED);
}

static void send_all(struct socks5_client *c)
{
    const uint8_t *out;
    socks5_client_sent(c, socks5_client_output(c, &out));
}

/* Returns how many bytes were heard before the machine ended. `chunks` 0: one by one. */
static size_t hear(struct socks5_client *c, const uint8_t *data, size_t size, unsigned chunks)
{
    size_t used = 0;

    while (used < size) {
        send_all(c);
        size_t n = 1, wants = socks5_client_wants(c);
        if (chunks > 0) {
            chunks = chunks * 1103515245u + 12345u;
            n = 1 + (chunks >> 16) % 24;
        }
        n = n < wants ? n : wants;
        n = n < size - used ? n : size - used;
        if (n == 0)
            break;
        size_t took = socks5_client_input(c, data + used, n);
        used += took;
        FUZZ_CHECK(took == n || socks5_client_wants(c) == 0);
        FUZZ_CHECK(took > 0);
    }
    return used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct socks5_client in_chunks, byte_by_byte;

    if (size < 2)
        return 0;
    start(&in_chunks, data[0]);
    start(&byte_by_byte, data[0]);
    size_t a = hear(&in_chunks, data + 2, size - 2, 1u + data[1]);
    size_t b = hear(&byte_by_byte, data + 2, size - 2, 0);

    FUZZ_CHECK(in_chunks.state == byte_by_byte.state);
    FUZZ_CHECK(in_chunks.failure == byte_by_byte.failure);
    FUZZ_CHECK(in_chunks.reply == byte_by_byte.reply);
    FUZZ_CHECK((in_chunks.state == SOCKS5_CLIENT_FAILED) ==
               (in_chunks.failure != SOCKS5_FAILURE_NONE));
    if (in_chunks.state == SOCKS5_CLIENT_DONE) {
        FUZZ_CHECK(a == b);
        FUZZ_CHECK(endpoint_equal(&in_chunks.bound, &byte_by_byte.bound));
        FUZZ_CHECK(socks5_client_input(&in_chunks, data, size) == 0);
    }
    FUZZ_CHECK(socks5_reply_name(in_chunks.reply)[0] != '\0');
    return 0;
}
