#include "tests/fuzz/script.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

enum {
    OPERATIONS_MAX = 200,
    TIME_STEPS_MAX = 100,
    SETTLE_TURNS = 2,
    QUIET_TURNS_MAX = 300, /* after the last operation, until there is nothing left to do */
};

struct script script;

void script_begin(struct reader input)
{
    script = (struct script){.input = input};
}

/* --- turns ------------------------------------------------------------------------------------ */

static void read_all(void)
{
    static uint8_t ignored[1 << 16];
    for (size_t i = 0; i < world.socket_count && !script.stalled; i++) {
        int fd = world.sockets[i].far;
        while (fd >= 0 && recv(fd, ignored, sizeof ignored, 0) > 0)
            continue;
    }
}

/* Whatever has happened, culvert comes to rest. */
static bool is_at_rest(void)
{
    script.settling = 0;
    FUZZ_CHECK(script.ending++ < QUIET_TURNS_MAX);
    return script.ending > 1 && world_is_quiet();
}

bool script_turn(operation *const *operations, size_t count)
{
    if (script.settling > 0) {
        script.settling--;
        return true;
    }
    script.settling = SETTLE_TURNS;
    if (world.now_ms < script.until_ms && script.time_steps++ < TIME_STEPS_MAX) {
        read_all();
        world_advance(script.until_ms);
        return true;
    }
    bool more = reader_left(&script.input) > 0 && !script.input.bad;
    if (!more || script.operations == OPERATIONS_MAX)
        return !is_at_rest();
    script.operations++;
    uint8_t chosen = reader_u8(&script.input);
    if (chosen == 255)
        script.stalled = !script.stalled;
    else
        operations[chosen % count]();
    return true;
}

/* --- arguments -------------------------------------------------------------------------------- */

const uint8_t *script_bytes(size_t *len)
{
    size_t left = reader_left(&script.input);
    if (script.input.bad)
        left = 0;
    *len = *len < left ? *len : left;
    return *len > 0 ? reader_bytes(&script.input, *len) : (const uint8_t *)"";
}

struct world_socket *script_socket(void)
{
    size_t index = reader_u8(&script.input);
    if (world.socket_count == 0)
        return NULL;
    struct world_socket *s = &world.sockets[world.socket_count - 1 - index % world.socket_count];
    return s->far >= 0 ? s : NULL;
}

void script_say(const struct world_socket *s, const void *bytes, size_t len)
{
    if (s)
        (void)!send(s->far, bytes, len, MSG_NOSIGNAL);
}

/* --- operations ------------------------------------------------------------------------------- */

void script_let_time_pass(void)
{
    script.until_ms = world.now_ms + (uint64_t)reader_u16(&script.input) * 8;
    script.time_steps = 0;
}

void script_say_raw(void)
{
    const struct world_socket *s = script_socket();
    size_t len = reader_u8(&script.input);
    const uint8_t *bytes = script_bytes(&len);
    script_say(s, bytes, len);
}

void script_pour(void)
{
    static uint8_t much[1 << 16];
    const struct world_socket *s = script_socket();
    size_t len = reader_u16(&script.input);
    if (s && s->stream)
        script_say(s, much, len);
}

/* Closing what was not read resets a connection; datagrams have no end but an error. */
void script_end_socket(void)
{
    struct world_socket *s = script_socket();
    uint8_t how = reader_u8(&script.input) % 4;
    if (!s)
        return;
    if (how == 0 && s->stream) {
        (void)shutdown(s->far, SHUT_WR);
    } else if (how == 1 && s->stream) {
        (void)shutdown(s->far, SHUT_RD);
    } else {
        close(s->far);
        s->far = -1;
    }
}

void script_choose_errors(void)
{
    static const int errors[] = {
        0, 0, ECONNREFUSED, EINPROGRESS, ENETUNREACH, EADDRNOTAVAIL, EMFILE, ENOMEM};
    uint8_t which = reader_u8(&script.input);
    world.connect_error = errors[which % 8];
    world.socket_error = which & 8 ? errors[which >> 4 & 7] : 0;
}

void script_choose_run_size(void)
{
    world.gro_size = reader_u8(&script.input);
}
