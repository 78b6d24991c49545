#include "core/base/cursor.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_reader_reads_in_network_order(void **state)
{
    (void)state;
    static const uint8_t wire[] = {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09};
    struct reader r = reader_over(wire, sizeof(wire));
    assert_int_equal(reader_u8(&r), 0x01);
    assert_int_equal(reader_u16(&r), 0x0203);
    assert_int_equal(reader_u32(&r), 0x04050607);
    assert_int_equal(reader_used(&r), 7);
    reader_skip(&r, 1);
    assert_int_equal(reader_left(&r), 1);
    assert_ptr_equal(reader_bytes(&r, 1), wire + 8);
    assert_false(r.bad);
}

static void test_reader_turns_bad_and_stays(void **state)
{
    (void)state;
    static const uint8_t wire[] = {0xff, 0xff, 0xff};
    struct reader r = reader_over(wire, sizeof(wire));
    assert_int_equal(reader_u32(&r), 0);
    assert_true(r.bad);
    assert_int_equal(reader_u8(&r), 0); /* there would be a byte, but the structure is broken */
    assert_int_equal(reader_used(&r), 0);
    assert_null(reader_bytes(&r, SIZE_MAX));
}

static void test_reader_of_nothing(void **state)
{
    (void)state;
    struct reader r = reader_over("", 0);
    assert_non_null(reader_bytes(&r, 0));
    assert_false(r.bad);
    assert_int_equal(reader_u16(&r), 0);
    assert_true(r.bad);
}

static void test_writer_round_trip(void **state)
{
    (void)state;
    uint8_t buf[9];
    struct writer w = writer_over(buf, sizeof(buf));
    writer_u8(&w, 0x01);
    writer_u16(&w, 0x0203);
    writer_u32(&w, 0x04050607);
    writer_bytes(&w, "\x08", 1);
    assert_int_equal(writer_used(&w), 8);
    assert_int_equal(writer_left(&w), 1);
    *writer_reserve(&w, 1) = 0x09;
    assert_false(w.bad);
    assert_memory_equal(buf, "\x01\x02\x03\x04\x05\x06\x07\x08\x09", 9);
}

static void test_writer_never_passes_its_end(void **state)
{
    (void)state;
    uint8_t buf[4] = {0, 0, 0, 0xaa};
    struct writer w = writer_over(buf, 3);
    writer_u16(&w, 0x0102);
    writer_u16(&w, 0x0304);
    assert_true(w.bad);
    writer_u8(&w, 0x05); /* would fit, but must not follow what did not */
    assert_int_equal(writer_used(&w), 2);
    assert_memory_equal(buf, "\x01\x02\x00\xaa", 4);
    assert_null(writer_reserve(&w, SIZE_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reader_reads_in_network_order),
        cmocka_unit_test(test_reader_turns_bad_and_stays),
        cmocka_unit_test(test_reader_of_nothing),
        cmocka_unit_test(test_writer_round_trip),
        cmocka_unit_test(test_writer_never_passes_its_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
