/*
 * --gateway: this machine forwards for others (hosts of a LAN, containers, virtual machines), and
 * what it forwards goes through the tunnel.
 */
#ifndef CULVERT_GATEWAY_H
#define CULVERT_GATEWAY_H

#include "core/up/journal.h"

/* Switch forwarding on, journalled. False: the user has been told why it cannot be done. */
bool gateway_open(struct journal *j);

#endif
