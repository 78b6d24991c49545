/* link_linux.c on a real device, and the silence that it is there to bring about. */
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "tests/platform/platform.h"

static short interface_flags(const char *name)
{
    struct ifreq request = {0};
    strcpy(request.ifr_name, name);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    assert_int_equal(ioctl(fd, SIOCGIFFLAGS, &request), 0);
    close(fd);
    return request.ifr_flags;
}

static struct device *open_tun(const char *name)
{
    int error = 0;
    struct device *d = device_tun_open(&(struct device_tun_options){.name = name}, &error);
    assert_non_null(d);
    return d;
}

static void test_mtu_and_state(void **state)
{
    (void)state;
    struct device *d = open_tun("one");
    assert_int_equal(d->mtu, 1500);
    assert_int_equal(link_index("one"), (int)if_nametoindex("one"));
    assert_int_equal(link_set_mtu("one", 9000), 0);
    assert_int_equal(link_get_mtu("one"), 9000);
    assert_int_equal(link_set_txqueuelen("one", 5000), 0);
    assert_int_equal(link_set_up("one", true), 0);
    assert_true(interface_flags("one") & IFF_UP);
    assert_int_equal(link_set_up("one", false), 0);
    assert_false(interface_flags("one") & IFF_UP);
    assert_int_equal(link_set_mtu("one", 70000), -EINVAL);
    device_close(d);
}

static void test_no_such_link(void **state)
{
    (void)state;
    struct cidr a = platform_cidr("198.18.0.1/15");
    assert_int_equal(link_index("none"), -ENODEV);
    assert_int_equal(link_get_mtu("none"), -ENODEV);
    assert_int_equal(link_set_mtu("none", 1500), -ENODEV);
    assert_int_equal(link_set_up("none", true), -ENODEV);
    assert_int_equal(link_set_txqueuelen("none", 5), -ENODEV);
    assert_int_equal(link_add_address("none", &a), -ENODEV);
    assert_int_equal(link_delete_address("none", &a), -ENODEV);
}

/* Addresses are usable at once: NODAD. */
static void test_addresses(void **state)
{
    (void)state;
    static const char *const texts[] = {"198.18.0.1/15", "fd00::1/64"};
    struct device *d = open_tun("two");
    struct device *other_device = open_tun("three");
    assert_int_equal(link_set_up("two", true), 0);
    for (size_t i = 0; i < 2; i++) {
        struct cidr c = platform_cidr(texts[i]);
        char other[16] = "";
        assert_false(link_address_in_use(&c.addr, "two", other));
        assert_int_equal(link_add_address("two", &c), 0);
        assert_int_equal(link_add_address("two", &c), 0);
        assert_false(link_address_in_use(&c.addr, "two", other));
        assert_true(link_address_in_use(&c.addr, "three", other));
        assert_string_equal(other, "two");
        struct endpoint e = {.addr = c.addr};
        struct sockaddr_storage sa;
        socklen_t len = endpoint_to_sockaddr(&e, &sa);
        int fd = socket(sa.ss_family, SOCK_DGRAM, 0);
        assert_int_equal(bind(fd, (struct sockaddr *)&sa, len), 0);
        close(fd);
        assert_int_equal(link_delete_address("two", &c), 0);
        assert_int_equal(link_delete_address("two", &c), -EADDRNOTAVAIL);
        assert_false(link_address_in_use(&c.addr, "three", other));
    }
    device_close(other_device);
    device_close(d);
}

/* What is routed to the link comes out of the device. */
static void test_routes(void **state)
{
    (void)state;
    static const char *const destinations[] = {"203.0.113.0/24", "2001:db8::/32", "0.0.0.0/0"};
    static const char *const targets[] = {"203.0.113.9:9", "[2001:db8::9]:9", "192.0.2.9:9"};
    struct device *d = open_tun("five");
    platform_configure(d, 1500);
    for (size_t i = 0; i < 3; i++) {
        struct cidr destination = platform_cidr(destinations[i]);
        struct endpoint target = platform_endpoint(targets[i]);
        struct sockaddr_storage sa;
        socklen_t len = endpoint_to_sockaddr(&target, &sa);
        int fd = socket(sa.ss_family, SOCK_DGRAM, 0);
        assert_true(sendto(fd, "x", 1, 0, (struct sockaddr *)&sa, len) < 0);
        assert_int_equal(errno, ENETUNREACH);
        assert_int_equal(link_add_route("five", &destination, 5), 0);
        assert_int_equal(sendto(fd, "x", 1, 0, (struct sockaddr *)&sa, len), 1);
        static uint8_t buffer[PACKET_BUFFER_SIZE];
        struct packet p = {.buffer = buffer};
        assert_true(platform_read(d, &p, PLATFORM_WAIT_MS));
        assert_int_equal(link_add_route("five", &destination, 5), -EEXIST);
        assert_int_equal(link_delete_route("five", &destination, 5), 0);
        assert_int_equal(link_delete_route("five", &destination, 5), -ESRCH);
        assert_true(sendto(fd, "x", 1, 0, (struct sockaddr *)&sa, len) < 0);
        close(fd);
    }
    device_close(d);
}

/* Nothing is sent by the kernel itself: an idle device wakes nobody. */
static void test_silence(void **state)
{
    (void)state;
    struct device *d = open_tun("four");
    platform_configure(d, 1500);
    assert_false(platform_readable(d->fd, 2500));
    device_close(d);
}

int main(void)
{
    platform_enter_namespace();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mtu_and_state), cmocka_unit_test(test_no_such_link),
        cmocka_unit_test(test_addresses),     cmocka_unit_test(test_routes),
        cmocka_unit_test(test_silence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
