#include "core/destination.h"

bool destination_find(struct dns *dns, const struct endpoint *dst, struct target *out,
                      char name[TARGET_NAME_MAX + 1])
{
    *out = (struct target){.addr = dst->addr, .port = dst->port};
    switch (dns_fake_lookup(dns, &dst->addr, name)) {
    case DNS_FAKE_NOT:
        return true;
    case DNS_FAKE_KNOWN:
        out->name = name;
        return true;
    case DNS_FAKE_UNKNOWN:
        break;
    }
    return false;
}

enum refusal destination_refusal(const struct dial_result *r)
{
    if (r->status != DIAL_REPLY)
        return REFUSE_RESET;
    switch (r->reply) {
    case SOCKS5_REPLY_NOT_ALLOWED:
        return REFUSE_PROHIBITED;
    case SOCKS5_REPLY_NETWORK_UNREACHABLE:
        return REFUSE_NETWORK;
    case SOCKS5_REPLY_HOST_UNREACHABLE:
    case SOCKS5_REPLY_TTL_EXPIRED:
        return REFUSE_HOST;
    default:
        return REFUSE_RESET;
    }
}
