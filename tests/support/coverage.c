/*
 * What a coverage build (-DCULVERT_COVERAGE=ON) is linked with: where the counts of lines go as a
 * process ends.
 *
 * Usually gcc's run-time opens a file for each object as the process exits. A confined worker may
 * open nothing, has no file system and is nobody; and a worker that may is not the one that we
 * test. So a process maps one file as it starts, which its children inherit, and at its end adds
 * its counts to what is there: that takes neither a system call nor a privilege, and the
 * confinement is the real one. tests/coverage makes the file, and from it the .gcda files that gcov
 * reads.
 *
 * A child starts with its parent's counts, so that lines before a fork count twice: what counts is
 * whether a line ran at all. What a process that is killed has counted is lost.
 *
 * The file is a uint32_t lock, the uint32_t size of what follows, and then for each object
 *
 *   | name's size | name, NUL, padded to 4 | size | a .gcda without omissions
 *
 * with sizes in bytes, as uint32_t in the machine's order.
 */
#include <fcntl.h>
#include <gcov.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { AREA_SIZE = 32 << 20, OBJECT_WORDS_MAX = 1 << 16, LOCK_TRIES = 1 << 20 };
enum { HEADER_WORDS = 4, RECORD_WORDS = 2 };      /* magic, version, stamp, checksum; tag, size */
static const uint32_t function_tag = 0x01000000u; /* gcov-io.h; counters' tags are larger */

struct area {
    uint32_t lock;
    uint32_t used;
    uint32_t words[];
};

/* One object's counts, as gcc's run-time tells them. */
struct object {
    const char *name;
    size_t count;
    uint32_t words[OBJECT_WORDS_MAX];
};

static struct area *area;

/* From the linker: the section that -fprofile-info-section=gcov_info puts a pointer into, each
 * object's. */
extern const struct gcov_info *const __start_gcov_info[] __attribute__((weak));
extern const struct gcov_info *const __stop_gcov_info[] __attribute__((weak));

void coverage_begin(void);
void __wrap__exit(int status) __attribute__((noreturn));
void __real__exit(int status) __attribute__((noreturn));
int __wrap_execvp(const char *file, char *const argv[]);
int __real_execvp(const char *file, char *const argv[]);

__attribute__((constructor)) void coverage_begin(void)
{
    const char *path = getenv("CULVERT_COVERAGE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *at = mmap(NULL, AREA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        area = at;
}

static void note_name(const char *name, void *arg)
{
    struct object *o = arg;
    o->name = name;
    o->count = 0;
}

static void note_words(const void *bytes, unsigned size, void *arg)
{
    struct object *o = arg;
    if (o->count + size / 4 > OBJECT_WORDS_MAX)
        abort();
    memcpy(o->words + o->count, bytes, size);
    o->count += size / 4;
}

/* Only counters of kinds that we do not count with would want memory. */
static void *refuse_memory(unsigned size, void *arg)
{
    (void)size, (void)arg;
    abort();
}

/* The words of a record. Negative: so many zeros that are left out. */
static size_t record_words(int32_t size)
{
    return (size_t)(size < 0 ? -size : size) / 4;
}

/* Add the record at `from` to the one at `to`, or put it there. Returns its words in `from`. */
static size_t add_record(uint32_t *to, const uint32_t *from, bool is_new)
{
    int32_t size = (int32_t)from[1];
    size_t count = record_words(size);
    if (is_new) {
        to[0] = from[0];
        to[1] = (uint32_t)count * 4;
        if (size < 0)
            memset(to + RECORD_WORDS, 0, count * 4);
        else
            memcpy(to + RECORD_WORDS, from + RECORD_WORDS, count * 4);
    } else if (from[0] > function_tag && size > 0) {
        for (size_t i = 0; i < count; i += 2) {
            uint64_t sum, more;
            memcpy(&sum, to + RECORD_WORDS + i, 8);
            memcpy(&more, from + RECORD_WORDS + i, 8);
            sum += more;
            memcpy(to + RECORD_WORDS + i, &sum, 8);
        }
    }
    return RECORD_WORDS + (size < 0 ? 0 : count);
}

/* Returns the words of all in `to`. */
static size_t add_object(uint32_t *to, const struct object *o, bool is_new)
{
    size_t at = HEADER_WORDS, into = HEADER_WORDS;
    if (is_new)
        memcpy(to, o->words, HEADER_WORDS * 4);
    while (at + RECORD_WORDS <= o->count && o->words[at] != 0) {
        size_t expanded = RECORD_WORDS + record_words((int32_t)o->words[at + 1]);
        at += add_record(to + into, o->words + at, is_new);
        into += expanded;
    }
    return into;
}

static void add(const struct object *o)
{
    size_t used = area->used / 4;
    for (size_t at = 0; at < used;) {
        uint32_t *name = area->words + at;
        uint32_t *data = name + 1 + name[0] / 4;
        if (strcmp((const char *)(name + 1), o->name) == 0) {
            (void)add_object(data + 1, o, false);
            return;
        }
        at = (size_t)(data - area->words) + 1 + data[0] / 4;
    }
    size_t name_size = (strlen(o->name) + 4) & ~(size_t)3;
    if ((used + o->count) * 4 > AREA_SIZE / 2)
        abort();
    uint32_t *name = area->words + used;
    name[0] = (uint32_t)name_size;
    memset(name + 1, 0, name_size);
    memcpy(name + 1, o->name, strlen(o->name));
    uint32_t *data = name + 1 + name_size / 4;
    data[0] = (uint32_t)add_object(data + 1, o, true) * 4;
    area->used = (uint32_t)(data + 1 + data[0] / 4 - area->words) * 4;
}

/* One who is killed while it holds the lock must not keep all others from ending. */
static void lock(void)
{
    for (int i = 0; i < LOCK_TRIES && __sync_lock_test_and_set(&area->lock, 1) != 0; i++)
        (void)sched_yield();
}

static void end(void)
{
    static struct object o;
    if (!area)
        return;
    lock();
    for (const struct gcov_info *const *info = __start_gcov_info; info != __stop_gcov_info;
         info++) {
        __gcov_info_to_gcda(*info, note_name, note_words, refuse_memory, &o);
        add(&o);
    }
    __sync_lock_release(&area->lock);
}

__attribute__((destructor)) static void coverage_end(void)
{
    end();
}

void __wrap__exit(int status)
{
    end();
    __real__exit(status);
}

/* Where it succeeds, nothing of ours comes after it. */
int __wrap_execvp(const char *file, char *const argv[])
{
    end();
    return __real_execvp(file, argv);
}
