/* What is to fail, and what has: see faults.c. */
#ifndef CULVERT_TESTS_FAULTS_H
#define CULVERT_TESTS_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

enum faults_kind { FAULTS_NONE, FAULTS_MEMORY, FAULTS_CALL };

/* As tests/e2e/faults.py writes it. */
struct faults {
    volatile uint32_t kind;   /* enum faults_kind: which calls count */
    volatile uint32_t left;   /* calls until one fails; 0: none does any more */
    volatile uint32_t failed; /* how many have */
    volatile uint32_t error;  /* errno instead of the call's usual one, unless 0 */
    char where[48];           /* the call that failed */
    volatile int32_t shift;   /* seconds by which the wall clock is off */
    volatile int32_t given;   /* errno that the call failed with */
};

extern struct faults *faults;

/* Count a call, for what is no function of the C library's. True: it is to fail; errno is set. */
bool faults_strike(enum faults_kind kind, int error, const char *name);

#endif
