/*
 * Theory: each family is a pool of slots, one for each address that may be handed out; the
 * address follows from the slot's number and back, so nothing need be stored for it. A slot in
 * use is in the chain of its name's hash, and in a list from oldest to newest use unless a flow
 * holds it: what is in that list may be recycled, its head first. Slots that were never used are
 * taken before any is recycled, from a random place on: after a restart an address that an
 * application has kept is then most likely nobody's, which is refused, and not somebody else's.
 *
 * A pool lies in one piece of zeroed shared memory, of which only the pages that were used are
 * ever backed. It holds indices, never pointers, so that processes forked after it was made can
 * share it (the hash seed must have been drawn before the fork). The size is bounded by
 * FAKEDNS_NAMES_MAX slots of 272 bytes, and 4 bytes a slot and user.
 *
 * A pool's lock is a word that names its owner. Users that die with it are found by whoever
 * started them, who marks it abandoned; the next user to take it builds chains and list anew from
 * the slots, whose names are written before their lengths. A robust mutex of the C library would
 * do the same, if its owners' thread numbers were unique: in PID namespaces they are not. What is
 * done under the lock takes microseconds, so those who wait yield or sleep, and nobody wakes them.
 */
#include "core/dns/fakedns.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "core/base/map.h"

enum {
    NONE = 0
}; /* references to slots are their number plus one, so that zeroed memory is empty */

struct slot {
    uint32_t older, newer; /* references: the list by use, when not held */
    uint32_t chain;        /* reference: next with this hash */
    uint32_t holds;        /* of all users */
    uint8_t name_len;      /* 0: free */
    char name[DNS_TEXT_MAX];
};

/* A lock's owner is its user's number plus one. */
enum { LOCK_FREE = 0, LOCK_ABANDONED = FAKEDNS_USERS_MAX + 1 };
enum { LOCK_YIELDS = 100, LOCK_SLEEP_NS = 50000 };

struct pool {
    _Atomic uint32_t lock;
    uint32_t slot_count;
    uint32_t bucket_count;   /* a power of two */
    uint32_t start;          /* where the first fresh slot was taken */
    uint32_t taken;          /* slots from there on (wrapping round) that are fresh no more */
    uint32_t oldest, newest; /* references */
    uint32_t words[];        /* the buckets (references), then the slots, then each user's holds */
};

/* The part of a range that slots stand for: its first addresses. */
struct range {
    struct cidr cidr; /* without host bits */
    enum fakedns_family family;
    uint32_t first_slot;
    uint32_t slot_count;
};

struct fakedns {
    struct pool *pools[FAKEDNS_FAMILIES]; /* NULL: no range of this family */
    size_t pool_bytes[FAKEDNS_FAMILIES];
    struct range *ranges;
    size_t range_count;
    struct addr *own;
    size_t own_count;
    unsigned users, user;
};

static struct slot *slot_at(struct pool *p, uint32_t index)
{
    struct slot *slots = (void *)(p->words + p->bucket_count);
    return slots + index;
}

/* How often this slot is held by one user. */
static uint32_t *holds_of(struct pool *p, unsigned user, uint32_t index)
{
    uint32_t *holds = (void *)slot_at(p, p->slot_count);
    return holds + (size_t)user * p->slot_count + index;
}

/* --- slots and addresses -------------------------------------------------------------------- */

static unsigned host_bits(const struct cidr *range)
{
    return (addr_is_v4(&range->addr) ? 32u : 128u) - range->prefix;
}

/* The last 32 bits: what tells the addresses of a range apart as far as slots reach. */
static uint32_t low_word(const struct addr *a)
{
    struct reader r = reader_over(a->bytes + 12, 4);
    return reader_u32(&r);
}

static struct addr address_in(const struct range *range, uint32_t offset)
{
    struct addr a = range->cidr.addr;
    struct writer w = writer_over(a.bytes + 12, 4);
    writer_u32(&w, low_word(&a) + offset);
    return a;
}

static const struct range *range_of(const struct fakedns *f, const struct addr *a)
{
    for (size_t i = 0; i < f->range_count; i++)
        if (cidr_contains(&f->ranges[i].cidr, a))
            return &f->ranges[i];
    return NULL;
}

/* The slot that stands for `a`; false where none does. */
static bool slot_of(const struct fakedns *f, const struct addr *a, enum fakedns_family *family,
                    uint32_t *index)
{
    const struct range *range = range_of(f, a);
    if (!range || memcmp(a->bytes, range->cidr.addr.bytes, 12) != 0)
        return false;
    uint32_t offset = low_word(a) - low_word(&range->cidr.addr);
    if (offset >= range->slot_count)
        return false;
    *family = range->family;
    *index = range->first_slot + offset;
    return true;
}

static struct addr address_of(const struct fakedns *f, enum fakedns_family family, uint32_t index)
{
    const struct range *range = f->ranges;
    while (range->family != family || index - range->first_slot >= range->slot_count)
        range++;
    return address_in(range, index - range->first_slot);
}

/* May this slot's address be handed out? */
static bool usable(const struct fakedns *f, enum fakedns_family family, uint32_t index)
{
    struct addr a = address_of(f, family, index);
    if (fakedns_is_own(f, &a))
        return false;
    /* In a range that overlaps another one, an address belongs to one slot only. */
    enum fakedns_family slot_family;
    uint32_t slot;
    if (!slot_of(f, &a, &slot_family, &slot) || slot != index)
        return false;
    const struct cidr *cidr = &range_of(f, &a)->cidr;
    unsigned bits = host_bits(cidr);
    if (bits < 2)
        return true; /* RFC 3021, RFC 6164: two addresses, both usable */
    uint32_t mask = bits >= 32 ? UINT32_MAX : (1u << bits) - 1;
    uint32_t host = low_word(&a) & mask;
    return host != 0 && !(family == FAKEDNS_V4 && host == mask);
}

/* --- one pool's lists ----------------------------------------------------------------------- */

static void unlist(struct pool *p, uint32_t index)
{
    struct slot *s = slot_at(p, index);
    if (s->older != NONE)
        slot_at(p, s->older - 1)->newer = s->newer;
    else
        p->oldest = s->newer;
    if (s->newer != NONE)
        slot_at(p, s->newer - 1)->older = s->older;
    else
        p->newest = s->older;
    s->older = s->newer = NONE;
}

static void list_as_newest(struct pool *p, uint32_t index)
{
    struct slot *s = slot_at(p, index);
    s->older = p->newest;
    s->newer = NONE;
    if (p->newest != NONE)
        slot_at(p, p->newest - 1)->newer = index + 1;
    else
        p->oldest = index + 1;
    p->newest = index + 1;
}

static void touch(struct pool *p, uint32_t index)
{
    if (slot_at(p, index)->holds > 0)
        return;
    unlist(p, index);
    list_as_newest(p, index);
}

static uint32_t *bucket_of(struct pool *p, const char *name, size_t len)
{
    return &p->words[hash_bytes(name, len) & (p->bucket_count - 1)];
}

/* A reference, or NONE. */
static uint32_t find(struct pool *p, const char *name, size_t len)
{
    uint32_t at = *bucket_of(p, name, len);
    while (at != NONE) {
        const struct slot *s = slot_at(p, at - 1);
        if (s->name_len == len && memcmp(s->name, name, len) == 0)
            return at;
        at = s->chain;
    }
    return NONE;
}

static void forget(struct pool *p, uint32_t index)
{
    struct slot *s = slot_at(p, index);
    uint32_t *at = bucket_of(p, s->name, s->name_len);
    while (*at != index + 1)
        at = &slot_at(p, *at - 1)->chain;
    *at = s->chain;
    s->name_len = 0;
    unlist(p, index);
}

static void remember(struct pool *p, uint32_t index, const char *name, size_t len)
{
    struct slot *s = slot_at(p, index);
    uint32_t *bucket = bucket_of(p, name, len);
    memcpy(s->name, name, len);
    atomic_signal_fence(memory_order_seq_cst); /* dying here must not leave half a name */
    s->name_len = (uint8_t)len;
    s->chain = *bucket;
    *bucket = index + 1;
    list_as_newest(p, index);
}

/* A slot without name: fresh, or recycled. A reference, or NONE when all are held. */
static uint32_t take_slot(struct fakedns *f, enum fakedns_family family)
{
    struct pool *p = f->pools[family];
    while (p->taken < p->slot_count) {
        uint32_t index = (p->start + p->taken++) % p->slot_count;
        if (usable(f, family, index))
            return index + 1;
    }
    uint32_t oldest = p->oldest;
    if (oldest != NONE)
        forget(p, oldest - 1);
    return oldest;
}

/* --- sharing -------------------------------------------------------------------------------- */

/* Slot number `n` of those that are fresh no more. */
static uint32_t taken_slot(const struct pool *p, uint32_t n)
{
    return (p->start + n) % p->slot_count;
}

/* All but the slots themselves may be in any state. */
static void rebuild(const struct fakedns *f, struct pool *p)
{
    memset(p->words, 0, p->bucket_count * sizeof(p->words[0]));
    p->oldest = p->newest = NONE;
    for (uint32_t n = 0; n < p->taken; n++) {
        uint32_t index = taken_slot(p, n);
        struct slot *s = slot_at(p, index);
        s->older = s->newer = s->chain = NONE;
        s->holds = 0;
        if (s->name_len == 0)
            continue;
        for (unsigned user = 0; user < f->users; user++)
            s->holds += *holds_of(p, user, index);
        uint32_t *bucket = bucket_of(p, s->name, s->name_len);
        s->chain = *bucket;
        *bucket = index + 1;
        if (s->holds == 0)
            list_as_newest(p, index);
    }
}

static void wait_a_moment(unsigned tries)
{
    const struct timespec moment = {.tv_nsec = LOCK_SLEEP_NS};
    if (tries < LOCK_YIELDS)
        (void)sched_yield();
    else
        (void)nanosleep(&moment, NULL);
}

static void lock(const struct fakedns *f, struct pool *p)
{
    for (unsigned tries = 0;; tries++) {
        uint32_t seen = LOCK_FREE;
        if (atomic_compare_exchange_strong(&p->lock, &seen, f->user + 1))
            return;
        if (seen == LOCK_ABANDONED &&
            atomic_compare_exchange_strong(&p->lock, &seen, f->user + 1)) {
            rebuild(f, p);
            return;
        }
        wait_a_moment(tries);
    }
}

static void unlock(struct pool *p)
{
    atomic_store(&p->lock, LOCK_FREE);
}

static void release_all(struct fakedns *f, struct pool *p)
{
    for (uint32_t n = 0; n < p->taken; n++) {
        uint32_t index = taken_slot(p, n);
        uint32_t *mine = holds_of(p, f->user, index);
        struct slot *s = slot_at(p, index);
        if (*mine == 0)
            continue;
        s->holds -= *mine < s->holds ? *mine : s->holds;
        *mine = 0;
        if (s->holds == 0)
            list_as_newest(p, index);
    }
}

void fakedns_join(struct fakedns *f, unsigned user)
{
    f->user = user;
    for (int i = 0; i < FAKEDNS_FAMILIES; i++) {
        struct pool *p = f->pools[i];
        if (!p)
            continue;
        lock(f, p);
        release_all(f, p);
        unlock(p);
    }
}

void fakedns_user_died(struct fakedns *f, unsigned user)
{
    for (int i = 0; i < FAKEDNS_FAMILIES; i++) {
        uint32_t owner = user + 1;
        if (f->pools[i])
            (void)atomic_compare_exchange_strong(&f->pools[i]->lock, &owner, LOCK_ABANDONED);
    }
}

/* --- in and out ----------------------------------------------------------------------------- */

static struct cidr without_host_bits(const struct cidr *cidr)
{
    struct cidr out = *cidr;
    for (unsigned bits = host_bits(cidr), i = 15; bits > 0; i--) {
        unsigned here = bits < 8 ? bits : 8;
        out.addr.bytes[i] = (uint8_t)(out.addr.bytes[i] & (0xffu << here));
        bits -= here;
    }
    return out;
}

/* Give each range its slots, in order, until FAKEDNS_NAMES_MAX of its family are given. */
static void divide_slots(struct fakedns *f, const struct cidr *ranges,
                         uint32_t totals[FAKEDNS_FAMILIES])
{
    for (size_t i = 0; i < f->range_count; i++) {
        struct range *range = &f->ranges[i];
        range->cidr = without_host_bits(&ranges[i]);
        range->family = addr_is_v4(&ranges[i].addr) ? FAKEDNS_V4 : FAKEDNS_V6;
        unsigned bits = host_bits(&ranges[i]);
        uint32_t room = FAKEDNS_NAMES_MAX - totals[range->family];
        uint32_t size = bits > 16 ? FAKEDNS_NAMES_MAX : 1u << bits;
        range->first_slot = totals[range->family];
        range->slot_count = size < room ? size : room;
        totals[range->family] += range->slot_count;
    }
}

static int make_pool(struct fakedns *f, enum fakedns_family family, uint32_t slots)
{
    uint32_t buckets = 8;
    while (buckets < slots)
        buckets *= 2;
    size_t bytes = sizeof(struct pool) + buckets * sizeof(uint32_t) + slots * sizeof(struct slot) +
                   (size_t)f->users * slots * sizeof(uint32_t);
    struct pool *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -1;
    p->slot_count = slots;
    p->bucket_count = buckets;
    p->start = (uint32_t)(hash_bytes(&family, sizeof(family)) % slots); /* the seed is random */
    f->pools[family] = p;
    f->pool_bytes[family] = bytes;
    return 0;
}

struct fakedns *fakedns_new(const struct cidr *ranges, size_t range_count, const struct addr *own,
                            size_t own_count)
{
    return fakedns_new_shared(ranges, range_count, own, own_count, 1);
}

struct fakedns *fakedns_new_shared(const struct cidr *ranges, size_t range_count,
                                   const struct addr *own, size_t own_count, unsigned users)
{
    struct fakedns *f = calloc(1, sizeof(*f));
    if (!f)
        return NULL;
    f->ranges = calloc(range_count + 1, sizeof(*f->ranges));
    f->own = calloc(own_count + 1, sizeof(*f->own));
    if (!f->ranges || !f->own)
        goto fail;
    f->users = users;
    f->range_count = range_count;
    f->own_count = own_count;
    if (own_count > 0)
        memcpy(f->own, own, own_count * sizeof(*own));

    uint32_t totals[FAKEDNS_FAMILIES] = {0};
    divide_slots(f, ranges, totals);
    for (enum fakedns_family family = FAKEDNS_V4; family < FAKEDNS_FAMILIES; family++)
        if (totals[family] > 0 && make_pool(f, family, totals[family]) < 0)
            goto fail;
    return f;
fail:
    fakedns_free(f);
    return NULL;
}

void fakedns_free(struct fakedns *f)
{
    if (!f)
        return;
    for (int i = 0; i < FAKEDNS_FAMILIES; i++)
        if (f->pools[i])
            munmap(f->pools[i], f->pool_bytes[i]);
    free(f->ranges);
    free(f->own);
    free(f);
}

bool fakedns_has(const struct fakedns *f, enum fakedns_family family)
{
    return f->pools[family] != NULL;
}

bool fakedns_in_range(const struct fakedns *f, const struct addr *a)
{
    return range_of(f, a) != NULL;
}

bool fakedns_is_own(const struct fakedns *f, const struct addr *a)
{
    for (size_t i = 0; i < f->own_count; i++)
        if (addr_equal(&f->own[i], a))
            return true;
    return false;
}

bool fakedns_assign(struct fakedns *f, const char *name, enum fakedns_family family,
                    struct addr *out)
{
    struct pool *p = f->pools[family];
    size_t len = strlen(name);
    if (!p || len < 1 || len > DNS_TEXT_MAX)
        return false;
    lock(f, p);
    uint32_t at = find(p, name, len);
    if (at != NONE) {
        touch(p, at - 1);
    } else {
        at = take_slot(f, family);
        if (at != NONE)
            remember(p, at - 1, name, len);
    }
    unlock(p);
    if (at == NONE)
        return false;
    *out = address_of(f, family, at - 1);
    return true;
}

/*
 * The slot of an address that is somebody's, with its pool locked, or NULL with nothing locked.
 */
static struct slot *lock_slot(struct fakedns *f, const struct addr *a, struct pool **pool,
                              uint32_t *index)
{
    enum fakedns_family family;
    if (!slot_of(f, a, &family, index))
        return NULL;
    *pool = f->pools[family];
    struct slot *s = slot_at(*pool, *index);
    lock(f, *pool);
    if (s->name_len > 0)
        return s;
    unlock(*pool);
    return NULL;
}

bool fakedns_name(struct fakedns *f, const struct addr *a, char name[DNS_TEXT_SIZE])
{
    struct pool *p;
    uint32_t index;
    const struct slot *s = lock_slot(f, a, &p, &index);
    if (!s)
        return false;
    memcpy(name, s->name, s->name_len);
    name[s->name_len] = '\0';
    touch(p, index);
    unlock(p);
    return true;
}

void fakedns_hold(struct fakedns *f, const struct addr *a)
{
    struct pool *p;
    uint32_t index;
    struct slot *s = lock_slot(f, a, &p, &index);
    if (!s)
        return;
    ++*holds_of(p, f->user, index);
    if (s->holds++ == 0)
        unlist(p, index);
    unlock(p);
}

void fakedns_release(struct fakedns *f, const struct addr *a)
{
    struct pool *p;
    uint32_t index;
    struct slot *s = lock_slot(f, a, &p, &index);
    if (!s)
        return;
    uint32_t *mine = holds_of(p, f->user, index);
    if (*mine > 0 && s->holds > 0) {
        --*mine;
        if (--s->holds == 0)
            list_as_newest(p, index);
    }
    unlock(p);
}
