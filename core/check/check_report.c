#include "core/check/check.h"

#include <assert.h>
#include <stdarg.h>
#include <string.h>

const char *check_verdict_name(enum check_verdict verdict)
{
    static const char *const names[] = {
        [CHECK_OK] = "ok",
        [CHECK_WARN] = "warn",
        [CHECK_FAIL] = "fail",
        [CHECK_SKIPPED] = "skipped",
    };
    static_assert(sizeof(names) / sizeof(names[0]) == CHECK_SKIPPED + 1, "each has a name");
    return names[verdict];
}

struct check_result *check_say(struct check_result *r, enum check_verdict verdict,
                               const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(r->detail, sizeof(r->detail), format, args);
    va_end(args);
    r->verdict = verdict;
    return r;
}

void check_remedy(struct check_result *r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(r->remedy, sizeof(r->remedy), format, args);
    va_end(args);
}

/* --- for people ------------------------------------------------------------------------------- */

enum { WIDTH = 100, INDENT = 40 };

/* Word by word from column INDENT on, after `lead`. Only printable ASCII reaches a terminal. */
static void print_wrapped(FILE *out, const char *lead, const char *text)
{
    size_t column = INDENT + strlen(lead);
    bool first = true;
    fputs(lead, out);
    while (*text) {
        size_t len = strcspn(text, " ");
        if (!first && column + 1 + len > WIDTH) {
            fprintf(out, "\n%*s", INDENT, "");
            column = INDENT;
        } else if (!first) {
            fputc(' ', out);
            column++;
        }
        for (size_t i = 0; i < len; i++) {
            unsigned char c = (unsigned char)text[i];
            fputc(c < ' ' || c >= 0x7f ? '?' : c, out);
        }
        column += len;
        text += len;
        text += strspn(text, " ");
        first = false;
    }
    fputc('\n', out);
}

static void print_step(FILE *out, const struct check_step *step, const struct check_result *r)
{
    char time[16] = "";
    if (r->verdict != CHECK_SKIPPED)
        (void)snprintf(time, sizeof(time), r->ms < 100 ? "%.1f ms" : "%.0f ms", r->ms);
    fprintf(out, "%-8s%-21s%9s  ", check_verdict_name(r->verdict), step->title, time);
    print_wrapped(out, "", r->detail);
    if (r->remedy[0] == '\0')
        return;
    fprintf(out, "%*s", INDENT, "");
    print_wrapped(out, "-> ", r->remedy);
}

static void print_end(const struct check_report *report)
{
    const unsigned *n = report->counts;
    fprintf(report->out, "\nculvert up %s: %u ok, %u warn, %u fail, %u skipped\n",
            n[CHECK_FAIL] > 0   ? "would not work"
            : n[CHECK_WARN] > 0 ? "works, within limits"
                                : "works",
            n[CHECK_OK], n[CHECK_WARN], n[CHECK_FAIL], n[CHECK_SKIPPED]);
}

/* --- for programs ----------------------------------------------------------------------------- */

void check_write_json_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < ' ' || c >= 0x7f)
            fprintf(out, "\\u%04x", (unsigned)c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

static void write_member(FILE *out, const char *name, const char *text)
{
    fprintf(out, ", \"%s\": ", name);
    if (text[0] == '\0')
        fputs("null", out);
    else
        check_write_json_string(out, text);
}

static void write_step(const struct check_report *report, const struct check_step *step,
                       const struct check_result *r)
{
    bool first = true;
    for (size_t i = 0; i <= CHECK_SKIPPED; i++)
        first = first && report->counts[i] == 0;
    fprintf(report->out, "%s\n  {\"name\": \"%s\"", first ? "" : ",", step->name);
    write_member(report->out, "title", step->title);
    write_member(report->out, "verdict", check_verdict_name(r->verdict));
    if (r->verdict == CHECK_SKIPPED)
        fputs(", \"ms\": null", report->out);
    else
        fprintf(report->out, ", \"ms\": %.3f", r->ms);
    write_member(report->out, "detail", r->detail);
    write_member(report->out, "remedy", r->remedy);
    fputc('}', report->out);
}

static void write_end(const struct check_report *report)
{
    fprintf(report->out, "\n ],\n \"up_works\": %s",
            report->counts[CHECK_FAIL] > 0 ? "false" : "true");
    for (size_t i = 0; i <= CHECK_SKIPPED; i++)
        fprintf(report->out, ", \"%s\": %u", check_verdict_name((enum check_verdict)i),
                report->counts[i]);
    fputs("}\n", report->out);
}

/* --- either ----------------------------------------------------------------------------------- */

void check_report_begin(struct check_report *report, const char *proxy)
{
    if (report->json) {
        fputs("{\"proxy\": ", report->out);
        check_write_json_string(report->out, proxy);
        fputs(",\n \"steps\": [", report->out);
    } else {
        fprintf(report->out, "culvert check ");
        print_wrapped(report->out, "", proxy);
        fputc('\n', report->out);
    }
}

void check_report_step(struct check_report *report, const struct check_step *step,
                       const struct check_result *result)
{
    if (report->json)
        write_step(report, step, result);
    else
        print_step(report->out, step, result);
    report->counts[result->verdict]++;
    (void)fflush(report->out); /* a step may take seconds: show what is known */
}

void check_report_end(struct check_report *report)
{
    if (report->json)
        write_end(report);
    else
        print_end(report);
}
