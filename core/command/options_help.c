/* --help: the tables of options_table.c as text, wrapped to 80 columns. */
#include "core/command/options_table.h"

#include <stdio.h>
#include <string.h>

enum { HELP_WIDTH = 80, HELP_INDENT = 8 };

/* Print `text` word by word between `indent` and HELP_WIDTH. A newline begins a new paragraph. */
static void print_wrapped(const char *text, int indent)
{
    int column = 0;
    while (*text) {
        size_t len = strcspn(text, " \n");
        if (column > 0 && column + 1 + (int)len > HELP_WIDTH) {
            putchar('\n');
            column = 0;
        }
        column += column > 0 ? printf(" %.*s", (int)len, text)
                             : printf("%*s%.*s", indent, "", (int)len, text);
        text += len;
        if (*text == '\n') {
            fputs("\n\n", stdout);
            column = 0;
        }
        text += *text != '\0';
    }
    putchar('\n');
}

static void print_option(const struct option_spec *spec)
{
    char text[1024];
    bool is_switch = spec->kind == OPTION_SWITCH;
    if (is_switch)
        printf("    --%s [%s], --no-%s\n", spec->name, spec->argument, spec->name);
    else
        printf("    --%s%s%s\n", spec->name, spec->argument ? " " : "",
               spec->argument ? spec->argument : "");
    if (spec->fallback)
        (void)snprintf(text, sizeof(text), "%s Default: %s.", spec->help, spec->fallback);
    else
        (void)snprintf(text, sizeof(text), "%s", spec->help);
    print_wrapped(text, HELP_INDENT);
}

static void print_program(void)
{
    puts("culvert: send the traffic of programs that know nothing of proxies through a SOCKS5\n"
         "proxy, packet by packet.\n");
    puts("Usage:");
    for (size_t i = 0; i < command_count; i++) {
        const struct command_spec *c = &command_table[i];
        printf("    culvert %-6s %-26s %s\n", c->name, c->usage, c->summary);
    }
    puts("    culvert PROXY_URL                         the same as culvert up PROXY_URL\n"
         "    culvert --version\n\n"
         "See culvert COMMAND --help for a command's options.\n\n"
         "Exit status: 0 stopped on request; 1 the environment refused; 2 the command line is\n"
         "wrong. SIGTERM and SIGINT stop culvert and undo what it changed. SIGUSR1 makes tun and "
         "up\n"
         "log what they have relayed, all workers together.");
}

static void print_command(const struct command_spec *c)
{
    printf("culvert %s: %s\n\nUsage: culvert %s %s\n\n", c->name, c->summary, c->name, c->usage);
    print_wrapped(c->help, 0);
    puts("\nOptions (--name value or --name=value):");
    for (size_t i = 0; i < option_count; i++) {
        if (option_table[i].commands & (1u << c->command))
            print_option(&option_table[i]);
    }
    puts("    --help\n        This text.");
}

void options_print_help(enum command command)
{
    for (size_t i = 0; i < command_count; i++) {
        if (command_table[i].command == command) {
            print_command(&command_table[i]);
            return;
        }
    }
    print_program();
}

const char *options_version(void)
{
    return CULVERT_VERSION;
}
