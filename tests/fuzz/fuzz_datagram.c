/* Any datagram from a proxy: what is accepted, written again, reads the same. */
#include "socks/datagram.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t room[SOCKS5_DATAGRAM_HEADER_MAX];
    uint8_t *end = room + sizeof room;
    struct socks5_datagram first, again;

    if (!socks5_datagram_parse(data, size, &first))
        return 0;
    FUZZ_CHECK(first.payload >= data && first.payload + first.payload_len == data + size);
    struct target t = {.name = first.is_name ? first.name : NULL,
                       .addr = first.from.addr,
                       .port = first.from.port};
    size_t header = socks5_datagram_prepend(end, &t);
    FUZZ_CHECK(header == socks5_datagram_header_size(&t));
    FUZZ_CHECK(socks5_datagram_parse(end - header, header, &again));
    FUZZ_CHECK(again.payload_len == 0 && again.is_name == first.is_name);
    FUZZ_CHECK(endpoint_equal(&again.from, &first.from));
    FUZZ_CHECK(!first.is_name || strcmp(again.name, first.name) == 0);
    return 0;
}
