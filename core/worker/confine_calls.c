/*
 * Which system calls a confined process may make, each beside the code that makes it; libseccomp's
 * only home.
 *
 * What is not listed fails with EPERM rather than ends the process: libraries of another version
 * may try a call that they can do without, and a flow that is lost is better than all of them. What
 * no library of ours ever tries, and an intruder tries first (another program, another process,
 * the kernel's own machinery), ends the process; it is then replaced, and the log tells of SIGSYS.
 *
 * The calls of the packet path are allowed whatever their arguments: for those the kernel keeps a
 * bitmap and does not run the filter at all (Linux 5.11). Arguments are looked at where a call is
 * rare and may do much: socket, openat, mmap, mprotect.
 */
#include "core/worker/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <seccomp.h>

#include "core/base/log.h"
#include "core/base/sanitized.h"

enum { LIST_END = __NR_SCMP_ERROR };

static const int worker_calls[] = {
    /* stack/device_linux.c; base/log.c; the report to core/worker/workers.c */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(writev),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigpending),
    SCMP_SYS(rt_sigtimedwait),
    /* loop.c and libevent */
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_pwait2),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(restart_syscall),
    /* attempt.c, dial.c, tcp_flow.c, dns_forward.c, probe.c */
    SCMP_SYS(connect),
    SCMP_SYS(getsockopt),
    SCMP_SYS(setsockopt),
    SCMP_SYS(sendto),
    SCMP_SYS(sendmsg),
    SCMP_SYS(recvfrom),
    SCMP_SYS(readv),
    SCMP_SYS(shutdown),
    SCMP_SYS(close),
    /* udp_socket.c, udp_association.c */
    SCMP_SYS(sendmmsg),
    SCMP_SYS(recvmmsg),
    SCMP_SYS(bind),
    SCMP_SYS(getsockname),
    SCMP_SYS(getpeername),
    /* broker.c */
    SCMP_SYS(recvmsg),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    /* resolver.c and c-ares: resolv.conf, hosts, sockets */
    SCMP_SYS(stat),
    SCMP_SYS(fstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(statx),
    SCMP_SYS(lseek),
    SCMP_SYS(fcntl),
    SCMP_SYS(dup3),
    /* libc: malloc, the clock where the vDSO does not have it, random numbers, abort, exit */
    SCMP_SYS(brk),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(sched_yield),
    SCMP_SYS(getrandom),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(tgkill),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    LIST_END,
};

/* Beside the worker's. */
static const int server_calls[] = {
    /* serve.c */
    SCMP_SYS(accept4),
    /* splice.c */
    SCMP_SYS(splice),
    SCMP_SYS(pipe2),
    LIST_END,
};

static const int broker_calls[] = {
    /* broker.c */
    SCMP_SYS(recvfrom),
    SCMP_SYS(sendmsg),
    SCMP_SYS(setsockopt),
    SCMP_SYS(close),
    /* libc */
    SCMP_SYS(brk),
    SCMP_SYS(madvise),
    SCMP_SYS(munmap),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(tgkill),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    LIST_END,
};

/* The sanitizers' run-time; LeakSanitizer traces the process from a thread of its own. */
static const int sanitizer_calls[] = {
    SCMP_SYS(clone),
    SCMP_SYS(clone3),
    SCMP_SYS(ptrace),
    SCMP_SYS(wait4),
    SCMP_SYS(openat),
    SCMP_SYS(open),
    SCMP_SYS(readlink),
    SCMP_SYS(readlinkat),
    SCMP_SYS(getdents64),
    SCMP_SYS(getdents),
    SCMP_SYS(lstat),
    SCMP_SYS(access),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(prctl),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(prlimit64),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(mmap),
    SCMP_SYS(mprotect),
    SCMP_SYS(munmap),
    SCMP_SYS(madvise),
    SCMP_SYS(brk),
    SCMP_SYS(futex),
    SCMP_SYS(getrusage),
    SCMP_SYS(sysinfo),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(arch_prctl),
    SCMP_SYS(dup2),
    SCMP_SYS(pipe2),
    SCMP_SYS(getppid),
    SCMP_SYS(kill),
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(lseek),
    SCMP_SYS(fstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(stat),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(sched_yield),
    SCMP_SYS(rt_sigaction),
    LIST_END,
};

static const int intruder_calls[] = {
    SCMP_SYS(execve),
    SCMP_SYS(execveat),
    SCMP_SYS(fork),
    SCMP_SYS(vfork),
    SCMP_SYS(clone),
    SCMP_SYS(clone3),
    SCMP_SYS(ptrace),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(process_vm_writev),
    SCMP_SYS(pidfd_getfd),
    SCMP_SYS(bpf),
    SCMP_SYS(userfaultfd),
    SCMP_SYS(io_uring_setup),
    SCMP_SYS(perf_event_open),
    SCMP_SYS(keyctl),
    SCMP_SYS(mount),
    SCMP_SYS(umount2),
    SCMP_SYS(pivot_root),
    SCMP_SYS(chroot),
    SCMP_SYS(unshare),
    SCMP_SYS(setns),
    SCMP_SYS(init_module),
    SCMP_SYS(finit_module),
    SCMP_SYS(kexec_load),
    LIST_END,
};

/* --- building the filter ---------------------------------------------------------------------- */

/* A call that this machine does not have is no loss (-EDOM, -EINVAL would be ours). */
static int add_list(scmp_filter_ctx filter, uint32_t action, const int *calls)
{
    int error = 0;
    for (; error == 0 && *calls != LIST_END; calls++)
        error = seccomp_rule_add(filter, action, *calls, 0);
    return error;
}

/* TCP and UDP; no raw, packet, netlink or Unix sockets. */
static int add_sockets(scmp_filter_ctx filter)
{
    static const uint64_t families[] = {AF_INET, AF_INET6};
    static const uint64_t types[] = {SOCK_STREAM, SOCK_DGRAM};
    const uint64_t type_mask = ~(uint64_t)(SOCK_NONBLOCK | SOCK_CLOEXEC);
    int error = 0;
    for (size_t i = 0; error == 0 && i < 4; i++)
        error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2,
                                 SCMP_A0(SCMP_CMP_EQ, families[i / 2], 0),
                                 SCMP_A1(SCMP_CMP_MASKED_EQ, type_mask, types[i % 2]));
    return error;
}

/* Reading files (resolver.c); memory that is not to be executed (libc). */
static int add_guarded(scmp_filter_ctx filter)
{
    const uint64_t writing = O_ACCMODE | O_CREAT | O_TRUNC;
    int error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(openat), 1,
                                 SCMP_A2(SCMP_CMP_MASKED_EQ, writing, O_RDONLY));
    if (error == 0)
        error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                                 SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (error == 0)
        error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                                 SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    return error;
}

static int add_role(scmp_filter_ctx filter, enum confine_role role)
{
    int error = add_sockets(filter);
    if (error < 0)
        return error;
    switch (role) {
    case CONFINE_SERVER:
        error = add_list(filter, SCMP_ACT_ALLOW, server_calls);
        if (error < 0)
            return error;
        /* fall through */
    case CONFINE_WORKER:
        error = add_list(filter, SCMP_ACT_ALLOW, worker_calls);
        if (error == 0 && !CULVERT_SANITIZED)
            error = add_guarded(filter);
        return error;
    case CONFINE_BROKER:
        return add_list(filter, SCMP_ACT_ALLOW, broker_calls);
    }
    return -EINVAL;
}

int confine_calls(enum confine_role role)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!filter)
        return -ENOMEM;
    (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree rather than a list */
    int error = add_role(filter, role);
    if (error == 0)
        error = CULVERT_SANITIZED ? add_list(filter, SCMP_ACT_ALLOW, sanitizer_calls)
                                  : add_list(filter, SCMP_ACT_KILL_PROCESS, intruder_calls);
    if (error == 0)
        error = seccomp_load(filter);
    seccomp_release(filter);
    (void)malloc_trim(0); /* it takes more memory than an idle worker */
    if (error == -EINVAL || error == -ENOSYS || error == -ECANCELED) {
        log_debug("no seccomp: %s", strerror(-error)); /* a kernel without it */
        return 0;
    }
    return error;
}
