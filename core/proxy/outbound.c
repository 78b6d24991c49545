/* Sockets towards the world, made here or by the broker. */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/worker/broker.h"
#include "core/proxy/resolver.h"

/* What only the broker can do: mark a stream, bind it to an interface; a datagram's large buffers.
 */
static bool wants_broker(const struct outbound_options *o, int type)
{
    return o->broker && (type == SOCK_DGRAM || o->mark != 0 || o->bind_interface[0] != '\0');
}

int outbound_open(const struct outbound_options *options, int family, int type)
{
    if (wants_broker(options, type))
        return broker_ask(options->broker, family, type, BROKER_OUTER);
    int fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int error = outbound_prepare_socket(fd, options);
    if (error == 0)
        return fd;
    close(fd);
    return error;
}

int outbound_open_inner(const struct outbound_options *options, int family)
{
    if (options->broker)
        return broker_ask(options->broker, family, SOCK_DGRAM, BROKER_INNER);
    int fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return fd < 0 ? -errno : fd;
}
