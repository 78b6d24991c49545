#include "core/base/proc_net.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool hex_byte(const char *text, uint8_t *out)
{
    char digits[3] = {text[0], text[0] ? text[1] : '\0', '\0'};
    char *end = NULL;
    *out = (uint8_t)strtoul(digits, &end, 16);
    return end == digits + 2;
}

/* The kernel prints an address as words of 32 bits, each in the machine's own byte order. */
static bool parse_address(const char *hex, struct addr *out)
{
    uint8_t bytes[16];
    size_t size = strlen(hex) / 2;
    if (size != 4 && size != 16)
        return false;
    for (size_t word = 0; word < size; word += 4) {
        uint8_t read[4];
        for (size_t i = 0; i < 4; i++) {
            if (!hex_byte(hex + 2 * (word + i), &read[i]))
                return false;
        }
        uint32_t value =
            (uint32_t)read[0] << 24 | (uint32_t)read[1] << 16 | (uint32_t)read[2] << 8 | read[3];
        memcpy(bytes + word, &value, sizeof(value));
    }
    *out = size == 4 ? addr_from_v4(bytes) : addr_from_v6(bytes);
    return true;
}

static bool parse_line(const char *line, struct proc_socket *s)
{
    char local[33];
    char remote[33];
    unsigned local_port = 0;
    unsigned remote_port = 0;
    /* The kernel's own table: no number in it is out of range. NOLINTNEXTLINE(cert-err34-c) */
    int fields = sscanf(line, " %*d: %32[0-9A-Fa-f]:%x %32[0-9A-Fa-f]:%x %x %*s %*s %*s %" SCNu32,
                        local, &local_port, remote, &remote_port, &s->state, &s->uid);
    s->local.port = (uint16_t)local_port;
    s->remote.port = (uint16_t)remote_port;
    return fields == 6 && parse_address(local, &s->local.addr) &&
           parse_address(remote, &s->remote.addr);
}

void proc_net_each(const char *path, bool (*fn)(void *arg, const struct proc_socket *s), void *arg)
{
    char line[512];
    struct proc_socket s;
    FILE *table = fopen(path, "re");
    if (!table)
        return;
    while (fgets(line, sizeof(line), table)) {
        if (parse_line(line, &s) && !fn(arg, &s))
            break;
    }
    fclose(table);
}
