/* What a process does to its own surroundings before it relays. */
#ifndef CULVERT_PROCESS_H
#define CULVERT_PROCESS_H

/* As many descriptors as the hard limit allows; a broken pipe is an error, not a death. */
void process_prepare_relay(void);
/* SIGTERM and SIGINT wait for whoever takes them, as through a descriptor. */
void process_block_stop_signals(void);

#endif
