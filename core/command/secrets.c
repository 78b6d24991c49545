#include "core/command/secrets.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Map `fd` as memory that no core file takes along. NULL: errno says why not. */
static struct secrets *map(int fd, int protection)
{
    void *at = mmap(NULL, sizeof(struct secrets), protection, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return NULL;
    if (madvise(at, sizeof(struct secrets), MADV_DONTDUMP) == 0)
        return at;
    int error = errno;
    (void)munmap(at, sizeof(struct secrets));
    errno = error;
    return NULL;
}

/* Unmapped before it is sealed: a file that may be written somewhere cannot be. */
static int fill(int fd, const struct options *o)
{
    if (ftruncate(fd, (off_t)sizeof(struct secrets)) < 0)
        return -errno;
    struct secrets *s = map(fd, PROT_READ | PROT_WRITE);
    if (!s)
        return -errno;
    s->proxy = o->proxy;
    s->auth = o->auth;
    (void)munmap(s, sizeof(*s));
    const int seals = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
    return fcntl(fd, F_ADD_SEALS, seals) < 0 ? -errno : 0;
}

static void forget(struct options *o)
{
    explicit_bzero(o->proxy.password, sizeof(o->proxy.password));
    explicit_bzero(o->auth.password, sizeof(o->auth.password));
}

/*
 * Copying and searching leave bytes in vector registers, and a library that is bound lazily has all
 * of those saved on the stack when it calls something for the first time, in our children too. So
 * the same is done with dull bytes, in all the sizes that the C library treats differently.
 */
static void clear_registers(void)
{
    static char dull[2][1024];
    volatile size_t found = 0;
    for (volatile size_t size = 1; size < sizeof(dull[0]); size *= 2) {
        memset(dull[0], 'x', size);
        memcpy(dull[1], dull[0], size);
        found += strlen(dull[1]) + (strchr(dull[1], 'y') == NULL) +
                 (strrchr(dull[1], 'y') == NULL) + (strstr(dull[1], "://") == NULL) +
                 (memchr(dull[1], 'y', size) == NULL) + (strcmp(dull[0], dull[1]) == 0);
    }
    (void)found;
}

int secrets_seal(struct options *o)
{
    if (!o->proxy.has_credentials && !o->auth.present)
        return 0;
    int fd = memfd_create("culvert", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    int error = fill(fd, o);
    forget(o);
    clear_registers();
    if (error == 0)
        o->secrets_fd = fd;
    else
        close(fd);
    return error;
}

int secrets_open(struct options *o)
{
    if (o->secrets_fd < 0)
        return 0;
    o->secrets = map(o->secrets_fd, PROT_READ);
    int error = o->secrets ? 0 : -errno;
    secrets_drop(o);
    return error;
}

void secrets_drop(struct options *o)
{
    if (o->secrets_fd >= 0)
        close(o->secrets_fd);
    o->secrets_fd = -1;
}

const struct proxy_url *secrets_proxy(const struct options *o)
{
    return o->secrets ? &o->secrets->proxy : &o->proxy;
}

const struct auth_option *secrets_auth(const struct options *o)
{
    return o->secrets ? &o->secrets->auth : &o->auth;
}
