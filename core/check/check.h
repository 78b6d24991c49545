/*
 * `culvert check`: what a proxy and this machine can do, as a list of steps.
 *
 * Steps are data (check_steps[] in check_run.c) and run one after the other; each looks at what the
 * ones before have found. A verdict is `fail` exactly where `up`, given the same options, would
 * not work, so that the exit status is whether any step failed.
 */
#ifndef CULVERT_CHECK_H
#define CULVERT_CHECK_H

#include <stdio.h>

#include "core/command/options.h"

enum check_verdict {
    CHECK_OK,
    CHECK_WARN,    /* something is limited, `up` works all the same */
    CHECK_FAIL,    /* `up` would not work */
    CHECK_SKIPPED, /* makes no sense here, or could not be told */
};
const char *check_verdict_name(enum check_verdict verdict);

enum { CHECK_TEXT_MAX = 1024 };

struct check_result {
    enum check_verdict verdict;
    double ms;                   /* what it took; below 0: the whole step */
    char detail[CHECK_TEXT_MAX]; /* what was found */
    char remedy[CHECK_TEXT_MAX]; /* what to do about it, empty where there is nothing */
};
/* Set verdict and detail; returns `r`. */
struct check_result *check_say(struct check_result *r, enum check_verdict verdict,
                               const char *format, ...) __attribute__((format(printf, 3, 4)));
void check_remedy(struct check_result *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

struct check;
struct check_step {
    const char *name;  /* one word, for programs */
    const char *title; /* what it is about, for people */
    void (*run)(struct check *c, struct check_result *r);
};
extern const struct check_step check_steps[];
extern const size_t check_step_count;

/* --- check_report.c --------------------------------------------------------------------------- */

/* One after the other to `out`, as people or as programs read it: begin, each step, end. */
struct check_report {
    FILE *out;
    bool json;
    unsigned counts[CHECK_SKIPPED + 1]; /* by verdict */
};
/* `proxy` is the URL without its password. */
void check_report_begin(struct check_report *report, const char *proxy);
void check_report_step(struct check_report *report, const struct check_step *step,
                       const struct check_result *result);
void check_report_end(struct check_report *report);
/* `text` as a JSON string with its quotes; bytes that are not ASCII as \u00XX. */
void check_write_json_string(FILE *out, const char *text);

#endif
