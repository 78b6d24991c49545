/* Between confine.c, which says in which order, and confine_view.c, which says what is seen. */
#ifndef CULVERT_CONFINE_PARTS_H
#define CULVERT_CONFINE_PARTS_H

/*
 * Leave for mount and IPC namespaces of our own whose root holds the directories that the
 * resolver reads, and no other. Asks for CAP_SYS_ADMIN; where that is missing nothing changes.
 */
void confine_view(const char *resolver_conf);
/* The same by Landlock, which asks for no_new_privs only. */
void confine_files(const char *resolver_conf);

#endif
