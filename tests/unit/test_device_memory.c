#include "tests/support/device_memory.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static uint8_t buffers[3][PACKET_BUFFER_SIZE];

static void test_read_batches(void **state)
{
    (void)state;
    struct device *d = device_memory_new(1500, (struct device_caps){.csum = true});
    struct offload partial = {.csum = PACKET_CSUM_PARTIAL, .csum_start = 20};
    assert_true(device_memory_push(d, "one", 3, &partial));
    assert_true(device_memory_push(d, "three", 5, NULL));
    struct packet batch[3];
    for (size_t i = 0; i < 3; i++)
        batch[i] = (struct packet){.buffer = buffers[i]};
    assert_int_equal(device_read(d, batch, 1), 1);
    assert_int_equal(batch[0].len, 3);
    assert_memory_equal(batch[0].data, "one", 3);
    assert_int_equal(batch[0].offload.csum_start, 20);
    assert_true(batch[0].data - batch[0].buffer >= PACKET_HEADROOM - 32);
    assert_int_equal(device_read(d, batch, 3), 1);
    assert_int_equal(batch[0].len, 5);
    assert_int_equal(batch[0].offload.csum, PACKET_CSUM_NONE);
    assert_int_equal(device_read(d, batch, 3), 0);
    device_close(d);
}

static void test_write_gathers(void **state)
{
    (void)state;
    struct device *d = device_memory_new(1500, (struct device_caps){0});
    struct iovec iov[4] = {[1] = {"ab", 2}, [2] = {NULL, 0}, [3] = {"cde", 3}};
    assert_int_equal(device_write(d, iov, 4, NULL), 0);
    struct packet p = {.buffer = buffers[0]};
    assert_true(device_memory_pop(d, &p));
    assert_int_equal(p.len, 5);
    assert_memory_equal(p.data, "abcde", 5);
    assert_false(device_memory_pop(d, &p));
    device_close(d);
}

/* What the device was not said to do is refused. */
static void test_caps_are_enforced(void **state)
{
    (void)state;
    struct iovec iov[2] = {[1] = {"ab", 2}};
    struct offload partial = {.csum = PACKET_CSUM_PARTIAL};
    struct offload tso = {.gso = PACKET_GSO_TCP4}, uso = {.gso = PACKET_GSO_UDP};
    struct device *d = device_memory_new(1500, (struct device_caps){0});
    assert_int_equal(device_write(d, iov, 2, &partial), -EINVAL);
    assert_int_equal(device_write(d, iov, 2, &tso), -EINVAL);
    assert_int_equal(device_write(d, iov, 2, &uso), -EINVAL);
    assert_int_equal(device_write(d, iov, 1, NULL), -EINVAL);
    device_close(d);
    d = device_memory_new(1500, (struct device_caps){.csum = true, .tso = true, .uso = true});
    assert_int_equal(device_write(d, iov, 2, &partial), 0);
    assert_int_equal(device_write(d, iov, 2, &tso), 0);
    assert_int_equal(device_write(d, iov, 2, &uso), 0);
    device_close(d);
}

static void test_queues_are_bounded(void **state)
{
    (void)state;
    struct device *d = device_memory_new(1500, (struct device_caps){0});
    struct iovec iov[2] = {[1] = {"ab", 2}};
    for (int i = 0; i < 4096; i++) {
        assert_true(device_memory_push(d, "x", 1, NULL));
        assert_int_equal(device_write(d, iov, 2, NULL), 0);
    }
    assert_false(device_memory_push(d, "x", 1, NULL));
    assert_int_equal(device_write(d, iov, 2, NULL), -EAGAIN);
    assert_int_equal(d->write_drops, 1);
    device_close(d);
}

static void test_injected_loss(void **state)
{
    (void)state;
    struct device *d = device_memory_new(1500, (struct device_caps){0});
    device_memory_drop_every(d, 3);
    for (char c = 'a'; c <= 'g'; c++) {
        struct iovec iov[2] = {[1] = {&c, 1}};
        assert_int_equal(device_write(d, iov, 2, NULL), 0);
    }
    char got[8] = "";
    struct packet p = {.buffer = buffers[0]};
    while (device_memory_pop(d, &p))
        strncat(got, (const char *)p.data, 1);
    assert_string_equal(got, "abdeg");
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_batches),      cmocka_unit_test(test_write_gathers),
        cmocka_unit_test(test_caps_are_enforced), cmocka_unit_test(test_queues_are_bounded),
        cmocka_unit_test(test_injected_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
