/*
 * What every fuzz target is made of: the entry that libFuzzer and replay.c call, a check that
 * also holds in builds without assertions, and cursors that spend the fuzzer's bytes.
 */
#ifndef CULVERT_TESTS_FUZZ_H
#define CULVERT_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
