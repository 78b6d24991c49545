/*
 * Theory: left alone, the kernel sends a flow to the queue that answered it last, and new ones by
 * a hash of both ends. But what one UDP socket sends to many is one association with one mapping
 * (RFC 4787, 4.1), which one process must keep; so the destination must not count. Nor may the
 * ports, of which only a datagram's first fragment tells. So:
 *
 *   TCP         source address and both ports; connections spread
 *   all others  source address alone; the hosts behind a gateway spread, one host's UDP does not
 *
 * A TCP segment that comes in fragments goes the way of the others and is lost for its connection;
 * TCP has discovered its path's MTU for decades, so there are none.
 *
 * The few eBPF instructions (linux/bpf.h) are written by hand. LD_ABS and LD_IND read the packet
 * in host byte order, want the context in R6, clobber R1 to R5, and end the program with 0 where
 * the packet is too short: such go to the first queue. The kernel takes the result modulo the
 * number of queues.
 */
#include "stack/steering.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/bpf.h>
#include <linux/if_tun.h>

enum { TCP = 6 };                                      /* IANA protocol number */
enum { SPREAD_1 = 0x2c1b3c6d, SPREAD_2 = 0x297a2d39 }; /* odd, with bits all over */

#define LOAD(size, at)                                                                             \
    {                                                                                              \
        .code = BPF_LD | BPF_ABS | (size), .imm = (at)                                             \
    }
#define LOAD_BEHIND(size, reg)                                                                     \
    {                                                                                              \
        .code = BPF_LD | BPF_IND | (size), .src_reg = (reg)                                        \
    }
#define MOVE64(to, from)                                                                           \
    {                                                                                              \
        .code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = (to), .src_reg = (from)                    \
    }
#define MOVE(to, from)                                                                             \
    {                                                                                              \
        .code = BPF_ALU | BPF_MOV | BPF_X, .dst_reg = (to), .src_reg = (from)                      \
    }
#define OP(op, reg, value)                                                                         \
    {                                                                                              \
        .code = BPF_ALU | (op) | BPF_K, .dst_reg = (reg), .imm = (value)                           \
    }
#define OP_REG(op, reg, by)                                                                        \
    {                                                                                              \
        .code = BPF_ALU | (op) | BPF_X, .dst_reg = (reg), .src_reg = (by)                          \
    }
#define SKIP_UNLESS(reg, value, count)                                                             \
    {                                                                                              \
        .code = BPF_JMP | BPF_JNE | BPF_K, .dst_reg = (reg), .imm = (value), .off = (count)        \
    }
#define SKIP(count)                                                                                \
    {                                                                                              \
        .code = BPF_JMP | BPF_JA, .off = (count)                                                   \
    }
#define EXIT                                                                                       \
    {                                                                                              \
        .code = BPF_JMP | BPF_EXIT                                                                 \
    }

enum { R0, R1, R6 = 6, R7, R8 };

/* R7: the header's length; R8: the hash. */
static const struct bpf_insn program[] = {
    MOVE64(R6, R1),
    LOAD(BPF_B, 0), /* version and header length */
    MOVE(R7, R0),
    OP(BPF_RSH, R0, 4),
    SKIP_UNLESS(R0, 4, 10),
    /* IPv4 (RFC 791) */
    OP(BPF_AND, R7, 15),
    OP(BPF_LSH, R7, 2),
    LOAD(BPF_W, 12), /* source */
    MOVE(R8, R0),
    LOAD(BPF_H, 6), /* more fragments, fragment offset */
    OP(BPF_AND, R0, 0x3fff),
    SKIP_UNLESS(R0, 0, 13),
    LOAD(BPF_B, 9), /* protocol */
    SKIP_UNLESS(R0, TCP, 11),
    SKIP(7),
    /* IPv6 (RFC 8200); TCP behind an extension header is as good as none */
    LOAD(BPF_W, 20), /* source, its last eight bytes */
    MOVE(R8, R0),
    LOAD(BPF_W, 16),
    OP_REG(BPF_XOR, R8, R0),
    OP(BPF_MOV, R7, 40),
    LOAD(BPF_B, 6), /* next header */
    SKIP_UNLESS(R0, TCP, 3),
    /* the ports */
    LOAD_BEHIND(BPF_W, R7),
    OP(BPF_MUL, R8, SPREAD_2),
    OP_REG(BPF_XOR, R8, R0),
    /* the end: high bits are the well-mixed ones */
    OP(BPF_MUL, R8, SPREAD_1),
    MOVE(R0, R8),
    OP(BPF_RSH, R0, 16),
    OP_REG(BPF_XOR, R0, R8),
    OP(BPF_MUL, R0, SPREAD_2),
    OP(BPF_RSH, R0, 16),
    EXIT,
};

static int load_program(void)
{
    static const char license[] = "MIT"; /* no helper that asks for another is used */
    union bpf_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
    attr.insns = (uintptr_t)program;
    attr.insn_cnt = sizeof(program) / sizeof(program[0]);
    attr.license = (uintptr_t)license;
    long fd = syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
    return fd < 0 ? -errno : (int)fd;
}

int steering_attach(const struct device *d)
{
    int program_fd = load_program();
    if (program_fd < 0)
        return program_fd;
    int error = ioctl(d->fd, TUNSETSTEERINGEBPF, &program_fd) < 0 ? -errno : 0;
    close(program_fd); /* the device has it */
    return error;
}
