/*
 * An intrusive, circular, doubly linked list. The head is a link too. Nothing is owned.
 */
#ifndef CULVERT_BASE_LIST_H
#define CULVERT_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct link {
    struct link *prev;
    struct link *next;
};

#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* NOLINTBEGIN(bugprone-macro-parentheses): a declared name takes no parentheses */
/* Walk `head`; `it` may be removed from the list (and freed) in the body. */
#define LIST_EACH(it, head)                                                                        \
    for (struct link *it = (head)->next, *it##_next = it->next; it != (head);                      \
         it = it##_next, it##_next = it->next)
/* NOLINTEND(bugprone-macro-parentheses) */

static inline void list_init(struct link *l)
{
    l->prev = l->next = l;
}

/* Is this head without members, or this member in no list? */
static inline bool list_empty(const struct link *l)
{
    return l->next == l;
}

static inline void list_insert_after(struct link *at, struct link *l)
{
    l->prev = at;
    l->next = at->next;
    at->next->prev = l;
    at->next = l;
}

static inline void list_push_back(struct link *head, struct link *l)
{
    list_insert_after(head->prev, l);
}

static inline void list_push_front(struct link *head, struct link *l)
{
    list_insert_after(head, l);
}

/* Take `l` out of its list; harmless when it is in none. */
static inline void list_remove(struct link *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    list_init(l);
}

static inline struct link *list_first(struct link *head)
{
    return list_empty(head) ? NULL : head->next;
}

#endif
