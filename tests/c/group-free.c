/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * group-free GROUP
 *
 * Is a VFIO group free? Takes it as any program could: opens /dev/vfio/GROUP and sets a new
 * container. Ends with 0 if that works, and with 1 and the reason if somebody still has it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/vfio.h>

static int busy(const char *what, const char *path)
{
	fprintf(stderr, "group-free: %s %s: %s\n", what, path, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	int group, container;
	char path[64];

	if (argc != 2) {
		fprintf(stderr, "usage: group-free GROUP\n");
		return 2;
	}
	snprintf(path, sizeof(path), "/dev/vfio/%s", argv[1]);
	group = open(path, O_RDWR | O_CLOEXEC);
	if (group < 0)
		return busy("cannot open", path);
	container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (container < 0)
		return busy("cannot open", "/dev/vfio/vfio");
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) < 0)
		return busy("cannot set a container for", path);
	if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
		return busy("cannot set the IOMMU of", path);
	return 0;
}
