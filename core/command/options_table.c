#include "core/command/options_table.h"

#include <assert.h>

#define TUN   (1u << COMMAND_TUN)
#define SERVE (1u << COMMAND_SERVE)
#define UP    (1u << COMMAND_UP)
#define DOWN  (1u << COMMAND_DOWN)
#define RUN   (1u << COMMAND_RUN)
#define CHECK (1u << COMMAND_CHECK)

#define FIELD(member) offsetof(struct options, member)

/* The order is the enums' own. */
static const char *const dns_choices[] = {"fake", "tcp", "relay", NULL};
static_assert(DNS_FAKE == 0 && DNS_TCP == 1 && DNS_RELAY == 2, "dns_choices");
static const char *const udp_choices[] = {"associate", "block", NULL};
static_assert(UDP_ASSOCIATE == 0 && UDP_BLOCK == 1, "udp_choices");
static const char *const icmp_choices[] = {"drop", "reply", NULL};
static_assert(ICMP_DROP == 0 && ICMP_REPLY == 1, "icmp_choices");
static const char *const log_choices[] = {"error", "warn", "info", "debug", "trace", NULL};
static_assert(LOG_LEVEL_ERROR == 0 && LOG_LEVEL_TRACE == 4, "log_choices");

/* 198.18.0.0/15 is for benchmarks (RFC 2544), so that nobody routes it; the ULA is our own. */
#define DEFAULT_ADDRESSES "198.18.0.1/15 fdc0:4c56::1/64"

const struct option_spec option_table[] = {
    {
        .name = "tun",
        .kind = OPTION_LINK,
        .argument = "NAME",
        .fallback = "culvert0",
        .commands = TUN | UP | RUN | CHECK,
        .offset = FIELD(tun_name),
        .help = "Name of the TUN device. It is created and vanishes with culvert; a persistent "
                "device of that name is taken over and left as it was found.",
    },
    {
        .name = "tun-fd",
        .kind = OPTION_NUMBER,
        .argument = "FD",
        .commands = TUN,
        .offset = FIELD(tun_fd),
        .max = INT32_MAX,
        .help = "Use the open TUN descriptor FD that the parent process passed instead of opening "
                "a device by name. Its offloads are detected, not assumed; its addresses, MTU and "
                "link state are the parent's matter.",
    },
    {
        .name = "mtu",
        .kind = OPTION_NUMBER,
        .argument = "N",
        .fallback = "1500",
        .commands = TUN | UP | RUN,
        .offset = FIELD(mtu),
        .min = 1280,
        .max = 65535,
        .help = "MTU of the device in bytes. A device that is taken over, or a passed descriptor, "
                "keeps its own unless this option is given.",
    },
    {
        .name = "address",
        .kind = OPTION_CIDR,
        .argument = "CIDR",
        .fallback = DEFAULT_ADDRESSES,
        .commands = TUN | UP | RUN | CHECK,
        .offset = FIELD(addresses),
        .help = "An address of the device with its range, IPv4 or IPv6. Repeatable; replaces the "
                "defaults.",
    },
    {
        .name = "offload",
        .kind = OPTION_SWITCH,
        .argument = "on|off",
        .fallback = "on",
        .commands = TUN | UP | RUN,
        .offset = FIELD(offload),
        .help = "Let the kernel pass super-packets and unfinished checksums (vnet header, TSO, "
                "USO), as far as it can.",
    },
    {
        .name = "dns",
        .kind = OPTION_CHOICE,
        .argument = "fake|tcp|relay",
        .fallback = "fake",
        .choices = dns_choices,
        .commands = TUN | UP | RUN | CHECK,
        .offset = FIELD(dns),
        .help = "What happens to DNS queries to any address. fake: A and AAAA are answered from "
                "the fake range and the name goes to the proxy, other types go over TCP through "
                "the proxy. tcp: every query goes over TCP through the proxy. relay: queries are "
                "UDP like any other.",
    },
    {
        .name = "dns-server",
        .kind = OPTION_ENDPOINT,
        .argument = "ADDR[:PORT]",
        .fallback = "1.1.1.1",
        .commands = TUN | UP | RUN | CHECK,
        .offset = FIELD(dns_server),
        .port = 53,
        .help = "The resolver that is asked over TCP, through the proxy.",
    },
    {
        .name = "fake-range",
        .kind = OPTION_CIDR,
        .argument = "CIDR",
        .commands = TUN | UP | RUN | CHECK,
        .offset = FIELD(fake_ranges),
        .help = "A range that fake addresses come from, IPv4 or IPv6. Repeatable. Default: the "
                "ranges of --address.",
    },
    {
        .name = "udp",
        .kind = OPTION_CHOICE,
        .argument = "associate|block",
        .fallback = "associate",
        .choices = udp_choices,
        .commands = TUN | UP | RUN | CHECK,
        .offset = FIELD(limits.udp_mode),
        .help = "associate: UDP goes through the proxy (UDP ASSOCIATE). block: it is answered "
                "with ICMP port unreachable at once, so that applications fall back to TCP.",
    },
    {
        .name = "icmp",
        .kind = OPTION_CHOICE,
        .argument = "drop|reply",
        .fallback = "drop",
        .choices = icmp_choices,
        .commands = TUN | UP | RUN,
        .offset = FIELD(icmp),
        .help = "Echo requests (ping) cannot go through SOCKS5. drop: no answer. reply: culvert "
                "answers itself, whether the host lives or not.",
    },
    {
        .name = "max-flows",
        .kind = OPTION_NUMBER,
        .argument = "N",
        .fallback = "65536",
        .commands = TUN | UP | RUN,
        .offset = FIELD(limits.max_flows),
        .min = 1,
        .max = 1000000,
        .help = "TCP connections and UDP sources served at the same time. Past it, half-open "
                "connections give way first, then the flow that has been idle longest.",
    },
    {
        .name = "pipeline",
        .kind = OPTION_SWITCH,
        .argument = "on|off",
        .fallback = "on",
        .commands = TUN | UP | RUN,
        .offset = FIELD(pipeline),
        .help = "Send greeting, credentials and request to the proxy without waiting in between, "
                "where its answers allow it.",
    },
    {
        .name = "netns",
        .kind = OPTION_PATH,
        .argument = "NAME",
        .commands = RUN,
        .offset = FIELD(run.netns),
        .help = "Give the network namespace of that name (ip netns), or path, its way out, instead "
                "of running a command.",
    },
    {
        .name = "pid",
        .kind = OPTION_NUMBER,
        .argument = "PID",
        .commands = RUN,
        .offset = FIELD(run.pid),
        .min = 1,
        .max = INT32_MAX,
        .help = "The same for the network namespace of a running process, a container's for "
                "example.",
    },
    {
        .name = "json",
        .kind = OPTION_FLAG,
        .commands = CHECK,
        .offset = FIELD(check.json),
        .help = "Write the result to stdout as one JSON object.",
    },
    {
        .name = "target-host",
        .kind = OPTION_HOST,
        .argument = "HOST[:PORT]",
        .fallback = "example.com:80",
        .commands = CHECK,
        .offset = FIELD(check.host),
        .port = 80,
        .help = "The host that is reached through the proxy by its name. It must answer an HTTP "
                "request, with whatever.",
    },
    {
        .name = "target-v4",
        .kind = OPTION_ENDPOINT,
        .argument = "ADDR[:PORT]",
        .fallback = "1.1.1.1:80",
        .commands = CHECK,
        .offset = FIELD(check.v4),
        .port = 80,
        .help = "The host that is reached through the proxy by its IPv4 address.",
    },
    {
        .name = "target-v6",
        .kind = OPTION_ENDPOINT,
        .argument = "ADDR[:PORT]",
        .fallback = "[2606:4700:4700::1111]:80",
        .commands = CHECK,
        .offset = FIELD(check.v6),
        .port = 80,
        .help = "The host that is reached through the proxy by its IPv6 address.",
    },
    {
        .name = "stun",
        .kind = OPTION_HOSTS,
        .argument = "HOST[:PORT]",
        .fallback = "stun.l.google.com:19302 stun.cloudflare.com:3478",
        .commands = CHECK,
        .offset = FIELD(check.stun),
        .port = 3478,
        .help = "A STUN server that tells what the proxy does to UDP ports. Repeatable: two tell "
                "whether all destinations see the same port; one with a second address (RFC 5780) "
                "tells also whether strangers' answers arrive.",
    },
    {
        .name = "listen",
        .kind = OPTION_ENDPOINTS,
        .argument = "ADDR[:PORT]",
        .fallback = "127.0.0.1:1080",
        .commands = SERVE,
        .offset = FIELD(listens),
        .port = 1080,
        .help = "Where the server listens. Repeatable; port 0 lets the kernel choose.",
    },
    {
        .name = "auth",
        .kind = OPTION_CREDENTIALS,
        .argument = "USER:PASSWORD",
        .commands = SERVE,
        .offset = FIELD(auth),
        .help = "Accept only clients that show this user and password (RFC 1929). Default: no "
                "authentication.",
    },
    {
        .name = "workers",
        .kind = OPTION_WORKERS,
        .argument = "N|auto",
        .fallback = "1",
        .commands = TUN | UP | RUN,
        .offset = FIELD(workers),
        .min = 1,
        .max = WORKERS_MAX,
        .help =
            "How many processes relay, each with a queue of the device; auto is one a core. TCP "
            "connections spread over them, and so do hosts; all UDP of one host stays with one "
            "of them.",
    },
    {
        .name = "low-latency",
        .kind = OPTION_FLAG,
        .commands = TUN | UP | RUN,
        .offset = FIELD(low_latency),
        .help =
            "While something is relayed, let no core of this machine sleep, so that each wakes "
            "at once: shorter round trips on virtual machines and on machines that sleep "
            "deeply. The price is power: all idle cores poll meanwhile, which culvert's own "
            "CPU time does not show. Ends 100 ms after the last byte relayed, and with culvert, "
            "however that ends. Wants to write /dev/cpu_dma_latency, which as a rule only root "
            "may.",
    },
    {
        .name = "user",
        .kind = OPTION_PATH,
        .argument = "NAME",
        .commands = TUN | UP | RUN | SERVE | CHECK,
        .offset = FIELD(user),
        .help = "The user that the processes run as that read what comes from the network. "
                "Default: nobody where culvert is started as root.",
    },
    {
        .name = "mark",
        .kind = OPTION_NUMBER,
        .argument = "N",
        .commands = TUN | UP | RUN | SERVE | CHECK,
        .offset = FIELD(outbound.mark),
        .max = UINT32_MAX,
        .help = "Firewall mark of every socket that culvert opens itself, decimal or 0x "
                "hexadecimal, for policy rules. Wants CAP_NET_ADMIN.",
    },
    {
        .name = "bind-interface",
        .kind = OPTION_LINK,
        .argument = "IF",
        .commands = TUN | UP | RUN | SERVE | CHECK,
        .offset = FIELD(outbound.bind_interface),
        .help = "Network interface that every socket that culvert opens itself is bound to.",
    },
    {
        .name = "allow-loopback",
        .kind = OPTION_FLAG,
        .commands = TUN | UP | RUN | SERVE,
        .offset = FIELD(outbound.allow_loopback),
        .help = "Let direct:// and serve lead to this host's own loopback addresses, which are "
                "refused otherwise.",
    },
    {
        .name = "bypass",
        .kind = OPTION_CIDR,
        .argument = "CIDR",
        .commands = UP | CHECK,
        .offset = FIELD(up.bypass),
        .help = "Packets to this range do not go through the proxy. Repeatable. DNS queries do "
                "all the same.",
    },
    {
        .name = "lan",
        .kind = OPTION_SWITCH,
        .argument = "on|off",
        .fallback = "on",
        .commands = UP,
        .offset = FIELD(up.lan),
        .help = "Leave directly connected networks, and whatever else has a more specific route "
                "than the default one, alone. With --no-lan they go through the proxy too.",
    },
    {
        .name = "include-uid",
        .kind = OPTION_UIDS,
        .argument = "UID|FIRST-LAST|USER",
        .commands = UP | CHECK,
        .offset = FIELD(up.include_uids),
        .help = "Only the traffic of this user, or this range of users, goes through the proxy. "
                "Repeatable.",
    },
    {
        .name = "exclude-uid",
        .kind = OPTION_UIDS,
        .argument = "UID|FIRST-LAST|USER",
        .commands = UP | CHECK,
        .offset = FIELD(up.exclude_uids),
        .help = "The traffic of this user, or this range of users, does not go through the proxy. "
                "Repeatable; wins over --include-uid. A proxy that runs on this machine needs it.",
    },
    {
        .name = "include-cgroup",
        .kind = OPTION_PATHS,
        .argument = "PATH",
        .commands = UP | CHECK,
        .offset = FIELD(up.include_cgroups),
        .help = "Only the traffic of programs in this cgroup (v2), and of those included "
                "otherwise, goes through the proxy. PATH is its folder, below the cgroup v2 mount "
                "point or with it. Repeatable. Wants nftables.",
    },
    {
        .name = "exclude-cgroup",
        .kind = OPTION_PATHS,
        .argument = "PATH",
        .commands = UP | CHECK,
        .offset = FIELD(up.exclude_cgroups),
        .help = "The traffic of programs in this cgroup (v2) does not go through the proxy. "
                "Repeatable; wins over what is included. Wants nftables.",
    },
    {
        .name = "gateway",
        .kind = OPTION_FLAG,
        .commands = UP | CHECK,
        .offset = FIELD(up.gateway),
        .help = "Forward for other hosts, containers and virtual machines that have this machine "
                "as their gateway, through the proxy. Without it what is forwarded goes where it "
                "went before.",
    },
    {
        .name = "kill-switch",
        .kind = OPTION_FLAG,
        .commands = UP,
        .offset = FIELD(up.kill_switch),
        .help = "If culvert dies in whatever way, what it has captured is blocked until culvert "
                "down, instead of going past the proxy.",
    },
    {
        .name = "dns-setup",
        .kind = OPTION_SWITCH,
        .argument = "on|off",
        .fallback = "on",
        .commands = UP,
        .offset = FIELD(up.dns_setup),
        .help = "Make culvert this machine's resolver. With --no-dns-setup /etc/resolv.conf is "
                "left alone; queries are captured on their way to whatever it names.",
    },
    {
        .name = "connect-timeout",
        .kind = OPTION_NUMBER,
        .argument = "SECONDS",
        .fallback = "10",
        .commands = TUN | UP | RUN | SERVE | CHECK,
        .offset = FIELD(outbound.connect_timeout_ms),
        .min = 1,
        .max = 3600,
        .scale = 1000,
        .help = "How long a connection may take until it is usable, the proxy's answer included.",
    },
    {
        .name = "tcp-idle-timeout",
        .kind = OPTION_NUMBER,
        .argument = "SECONDS",
        .fallback = "7440",
        .commands = TUN | UP | RUN,
        .offset = FIELD(limits.tcp_idle_timeout_s),
        .min = 1,
        .max = 31536000,
        .help = "A TCP connection on which nothing moved for so long is given up; keep-alives "
                "count as movement (RFC 5382).",
    },
    {
        .name = "udp-idle-timeout",
        .kind = OPTION_NUMBER,
        .argument = "SECONDS",
        .fallback = "60",
        .commands = TUN | UP | RUN | SERVE,
        .offset = FIELD(limits.udp_idle_timeout_s),
        .min = 1,
        .max = 31536000,
        .help = "A UDP source that neither sent nor received for so long loses its association "
                "(RFC 4787).",
    },
    {
        .name = "log-level",
        .kind = OPTION_CHOICE,
        .argument = "error|warn|info|debug|trace",
        .fallback = "info",
        .choices = log_choices,
        .commands = TUN | UP | RUN | DOWN | SERVE | CHECK,
        .offset = FIELD(log_level),
        .help = "How much is logged.",
    },
    {
        .name = "log-file",
        .kind = OPTION_PATH,
        .argument = "FILE",
        .commands = TUN | UP | RUN | DOWN | SERVE | CHECK,
        .offset = FIELD(log_file),
        .help = "Append the log to FILE instead of writing it to stderr.",
    },
};
const size_t option_count = sizeof(option_table) / sizeof(option_table[0]);
static_assert(sizeof(option_table) / sizeof(option_table[0]) <= 64, "options.given is 64 bits");

const struct command_spec command_table[] = {
    {
        .name = "tun",
        .command = COMMAND_TUN,
        .wants_proxy = true,
        .usage = "[options] PROXY_URL",
        .summary = "create (or take) a TUN device and relay it; routes are left to the caller",
        .help = "Every packet that is routed into the device goes through the proxy: TCP, UDP and "
                "DNS, IPv4 and IPv6. Routes are left to the caller; culvert's own sockets must not "
                "be routed into the device again (see --mark and --bind-interface).\n"
                "PROXY_URL is socks5://[USER[:PASSWORD]@]HOST[:PORT], or direct:// to relay "
                "without a proxy. HOST is an IPv4 address, an [IPv6] address or a name. Port 1080 "
                "is taken where it is left out; %XX stands for a special character in user and "
                "password. Without PROXY_URL the environment's ALL_PROXY or all_proxy counts.\n"
                "Wants CAP_NET_ADMIN and /dev/net/tun, unless --tun-fd passes a device.",
    },
    {
        .name = "up",
        .command = COMMAND_UP,
        .wants_proxy = true,
        .usage = "[options] PROXY_URL",
        .summary = "route this machine's traffic through the proxy until stopped, then undo",
        .help = "Creates a TUN device and policy rules that lead all traffic of this machine into "
                "it, IPv4 and IPv6; DNS queries too, whatever resolver they are sent to. Local "
                "networks stay direct. On SIGTERM or SIGINT everything is put back. What a killed "
                "culvert has left behind is put back by culvert down, or by the next culvert up.\n"
                "A proxy that runs on this machine must itself stay out of the tunnel: see "
                "--exclude-uid, --bypass and --mark.\n"
                "PROXY_URL is socks5://[USER[:PASSWORD]@]HOST[:PORT]; without it the "
                "environment's ALL_PROXY or all_proxy counts. culvert PROXY_URL is the same as "
                "culvert up PROXY_URL.\n"
                "Wants root, or CAP_NET_ADMIN and /dev/net/tun.",
    },
    {
        .name = "down",
        .command = COMMAND_DOWN,
        .usage = "",
        .summary = "undo what an up that was killed has left behind",
        .help = "Puts back routes, rules, settings and resolver as they were before a culvert up "
                "that could not do it itself. Where there is nothing to undo it does nothing.",
    },
    {
        .name = "run",
        .command = COMMAND_RUN,
        .wants_proxy = true,
        .usage = "[options] PROXY_URL -- CMD",
        .summary = "run one command, and all it starts, through the proxy; no root needed",
        .help =
            "CMD gets a network of its own that leads nowhere but into the proxy: TCP, UDP and "
            "DNS, IPv4 and IPv6, whatever kind of program it is. User, files, environment, "
            "terminal and standard streams stay the user's. culvert ends with CMD; what CMD "
            "leaves running in the background keeps its way out.\n"
            "With --netns or --pid instead of CMD an existing network namespace is given its "
            "way out, until culvert is stopped. Its own connected networks and specific routes "
            "stay; its programs must ask a resolver that is not on its loopback.\n"
            "PROXY_URL is socks5://[USER[:PASSWORD]@]HOST[:PORT]; without it the "
            "environment's ALL_PROXY or all_proxy counts. CMD does not see variables that "
            "name the same proxy: it needs none.\n"
            "Exit status: CMD's own, 128+N where signal N killed it, 127 where there is no such "
            "command, 126 where it cannot be executed, 1 where the environment refuses, 2 where "
            "the command line is wrong.\n"
            "Wants user namespaces and /dev/net/tun readable and writable for the user, or "
            "root.",
    },
    {
        .name = "check",
        .command = COMMAND_CHECK,
        .wants_proxy = true,
        .usage = "[options] PROXY_URL",
        .summary = "what can this proxy do, step by step, with remedies",
        .help = "Tries what culvert up and culvert run need of the proxy and of this machine, one "
                "step after the other, each within --connect-timeout, and changes nothing. Give it "
                "the options that up would get.\n"
                "A step is ok; warn, where something is limited but up works; fail, where up would "
                "not work; or skipped, where it makes no sense.\n"
                "PROXY_URL is socks5://[USER[:PASSWORD]@]HOST[:PORT], or direct://; without it the "
                "environment's ALL_PROXY or all_proxy counts.\n"
                "Exit status: 0 only if what up needs works, 1 where a step has failed, 2 where "
                "the command line is wrong. Run it as root, as up is.",
    },
    {
        .name = "serve",
        .command = COMMAND_SERVE,
        .usage = "[options]",
        .summary = "a SOCKS5 server: CONNECT and UDP ASSOCIATE",
        .help = "Serves SOCKS5 (RFC 1928, RFC 1929) to whoever can reach the address that it "
                "listens on. This host's own loopback services are refused as targets unless "
                "--allow-loopback is given.",
    },
};
const size_t command_count = sizeof(command_table) / sizeof(command_table[0]);
