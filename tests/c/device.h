/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A device that does DMA when told, for programs which care about memory and not about the
 * device. On a command line it is written as one of
 *
 *   --simulated NAME         a simulated device of the daemon; NAME alone will do
 *   --vfio ADDRESS:GROUP     QEMU's edu device, as in --vfio 0000:00:10.0:4
 *
 * IOVAs must stay below WINDOW_IOVA, and one transfer within EDU_TRANSFER_MAX bytes.
 */
#ifndef TEST_DEVICE_H
#define TEST_DEVICE_H

#include "edu.h"

struct device {
	bool is_edu;
	char name[IOASID_NAME_LEN];
	char group_name[16];
	int group;			/* descriptor, or -1 while it is not open */

	int node;
	__u32 id;			/* in the context of `node` */

	/* What follows is for edu devices. */
	int fd;
	volatile void *registers;
	unsigned char *window;		/* through which their buffer is filled and read */
	bool loaded;			/* the buffer holds what the window holds */
};

/* Where an edu device sees its window, while it does: at the top of its addresses. */
#define WINDOW_IOVA	(EDU_IOVA_LAST + 1 - PAGE)

/* Takes a device off the front of the arguments; gives how many arguments it took. */
static inline int take_device(char **arguments, struct device *device)
{
	bool named = arguments[0] && !strncmp(arguments[0], "--", 2);
	const char *name = named ? arguments[1] : arguments[0];
	const char *colon;

	*device = (struct device){ .group = -1, .node = -1, .fd = -1 };
	if (!name || (named && strcmp(arguments[0], "--simulated") && strcmp(arguments[0], "--vfio")))
		die("name a device: --simulated NAME or --vfio ADDRESS:GROUP");
	if (strlen(name) >= sizeof(device->name))
		die("%s is too long for the name of a device", name);
	strcpy(device->name, name);
	if (named && !strcmp(arguments[0], "--vfio")) {
		device->is_edu = true;
		colon = strrchr(name, ':');
		if (!colon || !strchr(name, '.') || strlen(colon + 1) >= sizeof(device->group_name))
			die("%s is no ADDRESS:GROUP, as in 0000:00:10.0:4", name);
		device->name[colon - name] = '\0';
		strcpy(device->group_name, colon + 1);
	}
	return named ? 2 : 1;
}

/*
 * Opens what can be opened before the device is bound. Programs that give up their rights call
 * this while they still have them; others need not.
 */
static inline void prepare_device(struct device *device)
{
	if (device->is_edu && device->group < 0)
		device->group = open_group(device->group_name);
}

/* Binds the device to the context of `node`. */
static inline void bind_device(struct device *device, int node)
{
	prepare_device(device);
	device->node = node;
	if (device->is_edu) {
		device->id = bind_group(node, device->group, device->name, 0);
		device->registers = open_edu(device->group, device->name, &device->fd);
		device->window = shared_memory(PAGE);
	} else {
		device->id = bind_simulated(node, device->name, 0);
	}
}

/*
 * The device writes `data` to memory at `iova`. Gives false if it reports that it could not; an
 * edu device never knows.
 */
static inline bool device_writes(struct device *device, __u32 ioasid, __u64 iova, const void *data,
				 size_t size)
{
	if (!device->is_edu)
		return simulated_dma(device->node, device->id, IOASID_SIM_DMA_WRITE, iova,
				     (void *)data, size, NULL) == 0;
	if (!device->loaded || memcmp(device->window, data, size)) {
		memcpy(device->window, data, size);
		map(device->node, ioasid, WINDOW_IOVA, device->window, PAGE, IOASID_MAP_READ);
		edu_read(device->registers, WINDOW_IOVA, 0, size);
		unmap(device->node, ioasid, WINDOW_IOVA, PAGE);
		device->loaded = true;
	}
	edu_write(device->registers, iova, 0, size);
	return true;
}

/*
 * The device reads memory at `iova`, and what it got is put at `data`. Gives false if it reports
 * that it could not; an edu device never knows.
 */
static inline bool device_reads(struct device *device, __u32 ioasid, __u64 iova, void *data,
				size_t size)
{
	if (!device->is_edu)
		return simulated_dma(device->node, device->id, IOASID_SIM_DMA_READ, iova, data,
				     size, NULL) == 0;
	edu_read(device->registers, iova, 0, size);
	map(device->node, ioasid, WINDOW_IOVA, device->window, PAGE, IOASID_MAP_WRITE);
	edu_write(device->registers, WINDOW_IOVA, 0, size);
	unmap(device->node, ioasid, WINDOW_IOVA, PAGE);
	memcpy(data, device->window, size);
	device->loaded = false;
	return true;
}

#endif /* TEST_DEVICE_H */
