/* Any answer of a STUN server, to whatever transaction it says; every shortening of it is refused.
 */
#include "core/check/stun.h"

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { ID_AT = 8, HEADER = 20 };
    static const uint8_t none[STUN_ID_SIZE];
    struct stun_answer a;
    if (!stun_parse_answer(data, size, size >= HEADER ? data + ID_AT : none, &a))
        return 0;
    FUZZ_CHECK(size >= HEADER + 12 && size % 4 == 0);
    for (size_t n = 0; n < size; n++)
        FUZZ_CHECK(!stun_parse_answer(data, n, data + ID_AT, &a));
    return 0;
}
