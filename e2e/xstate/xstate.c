/*
 * Loaded before linux.uml (LD_PRELOAD) on a processor whose registers take more than the 2,696 bytes that user-mode-linux
 * 6.1 knows of (AMX). The host takes back a process's whole state only, and refuses the part (EFAULT: the kernel dies in
 * put_fp_registers as it boots). Here the part is laid over the whole as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <errno.h>

static long raw(long request, long pid, void *addr, void *data)
{
	return syscall(SYS_ptrace, request, pid, addr, data);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list args;
	va_start(args, request);
	long pid = va_arg(args, pid_t);
	void *addr = va_arg(args, void *);
	void *data = va_arg(args, void *);
	va_end(args);

	if (request == PTRACE_SETREGSET && (long)addr == NT_X86_XSTATE) {
		static __thread unsigned char whole[64 << 10] __attribute__((aligned(64)));
		struct iovec *part = data, all = { whole, sizeof whole };
		if (raw(PTRACE_GETREGSET, pid, addr, &all) == 0 && part->iov_len < all.iov_len) {
			memcpy(whole, part->iov_base, part->iov_len);
			return raw(PTRACE_SETREGSET, pid, addr, &all);
		}
	}
	if (request >= 1 && request <= 3) { /* PEEK*: glibc returns the word */
		long word;
		long r = raw(request, pid, addr, &word);
		return r < 0 ? r : (errno = 0, word);
	}
	return raw(request, pid, addr, data);
}
