/*
 * What the scripts of fuzz_tunnel and fuzz_serve have in common: operations that are a byte of the
 * input each, with their arguments behind, for the world's ends of culvert's sockets and its clock
 * (tests/fuzz/world.h).
 */
#ifndef CULVERT_TESTS_SCRIPT_H
#define CULVERT_TESTS_SCRIPT_H

#include "core/base/cursor.h"
#include "tests/fuzz/world.h"

struct script {
    struct reader input;
    int operations;
    int settling;      /* turns of the loop before the next operation */
    int ending;        /* turns since the last one */
    uint64_t until_ms; /* time passes up to here */
    int time_steps;
    bool stalled; /* nobody reads what culvert sends */
};

extern struct script script;

typedef void operation(void);

void script_begin(struct reader input);
/*
 * One turn's part of the script, which chooses among `count` operations, or toggles `stalled`.
 * False: it is over, and culvert has come to rest, which it must.
 */
bool script_turn(operation *const *operations, size_t count);

/* As many of the next `*len` bytes as there are. */
const uint8_t *script_bytes(size_t *len);
/* The socket that the next byte names, the newest first; NULL: it is closed. */
struct world_socket *script_socket(void);
void script_say(const struct world_socket *s, const void *bytes, size_t len);

/* Operations. */
void script_let_time_pass(void);
void script_say_raw(void);
void script_pour(void);
void script_end_socket(void);
void script_choose_errors(void);
void script_choose_run_size(void);

#endif
