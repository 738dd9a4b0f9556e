/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * compat32 NODE
 *
 * Calls the node as a 32-bit program does, through int 0x80, and shows that every command is
 * refused with EOPNOTSUPP instead of being misread. The program itself has 64 bits.
 */
#include "common.h"

#if !defined(__x86_64__)
int main(void)
{
	skip("there is no int 0x80 on this machine");
}
#else

#include <signal.h>

#define NR_IOCTL_32	54	/* arch/x86/entry/syscalls/syscall_32.tbl */

/* Gives the result or -errno, as the kernel does. */
static int ioctl32(int fd, __u32 command, __u32 argument)
{
	int result;

	asm volatile("int $0x80"
		     : "=a"(result)
		     : "a"(NR_IOCTL_32), "b"(fd), "c"(command), "d"(argument)
		     : "memory", "r8", "r9", "r10", "r11");
	return result;
}

static void no_int80(int signal)
{
	static const char text[] = "compat32: this kernel does not run 32-bit programs\n";

	(void)signal;
	_exit(write(STDERR_FILENO, text, sizeof(text) - 1) > 0 ? EXIT_SKIPPED : EXIT_FAILURE);
}

static void must_be_unsupported(int node, __u32 command, __u32 argument, const char *name)
{
	int result = ioctl32(node, command, argument);

	if (result != -EOPNOTSUPP)
		die("%s from a 32-bit program gave %d (%s) instead of EOPNOTSUPP", name, result,
		    result < 0 ? strerror(-result) : "success");
	ok("%s is refused: %s", name, explanation(node));
}

int main(int argc, char **argv)
{
	struct ioasid_info *info;
	__u32 ioasid;
	int node, result;

	if (argc != 2)
		die("usage: compat32 NODE");
	node = open_node(argv[1]);
	ioasid = alloc_ioasid(node);

	signal(SIGSEGV, no_int80);
	result = ioctl32(-1, 0, 0);
	if (result == -ENOSYS)
		skip("this kernel does not run 32-bit programs");
	if (result != -EBADF)
		die("ioctl through int 0x80 gave %d", result);

	/* Where a 32-bit register can point to */
	info = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1,
		    0);
	if (info == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	info->argsz = sizeof(*info);
	info->ioasid = ioasid;

	must_be_unsupported(node, IOASID_CHECK_EXTENSION, IOASID_EXT_MAP_TYPE1V2,
			    "CHECK_EXTENSION");
	must_be_unsupported(node, IOASID_ALLOC, 0, "ALLOC");
	must_be_unsupported(node, IOASID_FREE, ioasid, "FREE");
	must_be_unsupported(node, IOASID_GET_INFO, (uintptr_t)info, "GET_INFO");
	must_be_unsupported(node, IOASID_MAP_DMA, (uintptr_t)info, "MAP_DMA");
	must_be_unsupported(node, IOASID_BIND_DEVICE, (uintptr_t)info, "BIND_DEVICE");

	/* FREE has freed nothing. */
	free_ioasid(node, ioasid);
	ok("calls with 64 bits go on working");
	return 0;
}
#endif
