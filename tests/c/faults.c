/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * faults NODE DEVICE
 *
 * The flow of section 5.6 of the proposal, an I/O page fault, with a simulated device that waits:
 * the program reads of the fault, maps what the device missed and answers, and the DMA goes on.
 * And everything else that can become of a fault, and of those who wait for one.
 */
#include "common.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <sys/wait.h>

#define GPA	0x100000UL	/* where the device expects memory */
#define SIZE	(8 * PAGE)
#define COOKIE	0xfa017UL
#define WRITES	IOASID_SIM_DMA_WRITE
#define READS	IOASID_SIM_DMA_READ
#define WAITS	IOASID_SIM_DMA_RECOVERABLE

static const char *device_name;
static int node;
static __u32 device, space;
static unsigned char *memory, data[SIZE];

/* ------------------------------------------------------------------ */
/* The device                                                           */
/* ------------------------------------------------------------------ */

static struct ioasid_sim_dma order(__u32 flags, __u64 iova, size_t size)
{
	struct ioasid_sim_dma dma = {
		.argsz = sizeof(dma),
		.flags = flags,
		.device = device,
		.iova = iova,
		.data = (uintptr_t)data,
		.size = size,
	};

	return dma;
}

static int carry_out(struct ioasid_sim_dma *dma)
{
	return ioctl(node, IOASID_SIM_DMA, dma) < 0 ? errno : 0;
}

/* Has the device go on with the rest of what it was ordered. */
static int go_on(struct ioasid_sim_dma *dma)
{
	dma->iova += dma->done;
	dma->data += dma->done;
	dma->size -= dma->done;
	dma->flags |= IOASID_SIM_DMA_CONTINUE;
	return carry_out(dma);
}

/* The device does something at which it has to wait. */
static struct ioasid_sim_dma must_wait(__u32 way, __u64 iova, size_t size, size_t after)
{
	struct ioasid_sim_dma dma = order(way | WAITS, iova, size);
	int error = carry_out(&dma);

	if (error || dma.done != after || !dma.fault)
		die("the device does not wait: \"%s\" after %llu bytes, fault %u. %s",
		    strerror(error), dma.done, dma.fault, explanation(node));
	return dma;
}

static void must_be_done(struct ioasid_sim_dma *dma, int error)
{
	if (error || dma->done != dma->size || dma->fault)
		die("DMA: \"%s\" after %llu of %llu bytes, fault %u. %s", strerror(error),
		    dma->done, dma->size, dma->fault, explanation(node));
}

static void must_fail(struct ioasid_sim_dma *dma, int error, int expected, const char *what)
{
	if (error != expected)
		die("%s: \"%s\" instead of \"%s\". %s", what, strerror(error),
		    strerror(expected), explanation(node));
	if (error == EIO && (dma->done || dma->fault))
		die("%s: %llu bytes were transferred, fault %u", what, dma->done, dma->fault);
	ok("%s (%s): %s", what, strerror(error), explanation(node));
}

/* The device does something that fails at once, `count` times. */
static void fault_for_good(__u64 iova, int count)
{
	while (count--)
		if (simulated_dma(node, device, WRITES, iova, data, 1, NULL) != EIO)
			die("DMA at %#llx does not fail", iova);
}

/* ------------------------------------------------------------------ */
/* The records                                                          */
/* ------------------------------------------------------------------ */

static void complete(__u32 id, __u32 response)
{
	struct ioasid_complete_fault answer = {
		.argsz = sizeof(answer), .id = id, .response = response,
	};

	must(node, IOASID_COMPLETE_FAULT, &answer, "COMPLETE_FAULT");
}

static void must_not_complete(__u32 id, __u32 response, int error, const char *what)
{
	struct ioasid_complete_fault answer = {
		.argsz = sizeof(answer), .id = id, .response = response,
	};

	must_refuse(node, IOASID_COMPLETE_FAULT, &answer, error, what);
}

static bool is_readable(int timeout)
{
	struct pollfd polled = { .fd = node, .events = POLLIN | POLLOUT };

	if (poll(&polled, 1, timeout) < 0)
		die("poll: %s", strerror(errno));
	if (polled.revents & ~POLLIN)
		die("poll says %#x", polled.revents);
	return polled.revents;
}

static struct ioasid_fault read_record(void)
{
	struct ioasid_fault records[2] = {};
	ssize_t count;

	if (!is_readable(10000))
		die("poll does not tell of a record");
	count = read(node, records, sizeof(records));
	if (count != sizeof(*records))
		die("read gave %zd bytes instead of one record: %s", count, strerror(errno));
	return *records;
}

static void must_be(struct ioasid_fault fault, __u32 flags, __u64 address, __u32 reason, __u32 id)
{
	if (fault.flags != flags || fault.ioasid != space || fault.address != address ||
	    fault.cookie != COOKIE || fault.device != device || fault.reason != reason ||
	    fault.id != id || fault.pasid || fault.lost || fault.__reserved)
		die("the record is: flags %#x, ioasid %u, address %#llx, cookie %#llx, device %u, "
		    "reason %u, id %u, pasid %u, lost %u", fault.flags, fault.ioasid, fault.address,
		    fault.cookie, fault.device, fault.reason, fault.id, fault.pasid, fault.lost);
}

/* Reads away what is there; gives how many records that were. */
static int drain(void)
{
	struct ioasid_fault records[64];
	int count = 0;

	while (is_readable(0)) {
		ssize_t bytes = read(node, records, sizeof(records));

		if (bytes <= 0 || bytes % sizeof(*records))
			die("read gave %zd: %s", bytes, strerror(errno));
		count += bytes / sizeof(*records);
	}
	return count;
}

static void set_blocking(bool blocking)
{
	if (fcntl(node, F_SETFL, blocking ? 0 : O_NONBLOCK) < 0)
		die("F_SETFL: %s", strerror(errno));
}

/* ------------------------------------------------------------------ */
/* A device that waits                                                  */
/* ------------------------------------------------------------------ */

/* The device, as it runs beside the program: DMA that goes on whenever it can. */
static void *device_runs(void *argument)
{
	struct ioasid_sim_dma *dma = argument;
	int error = carry_out(dma);

	while (!error && dma->done < dma->size) {
		while ((error = go_on(dma)) == EAGAIN) {
			dma->done = 0;
			sleep_ms(1);
		}
	}
	must_be_done(dma, error);
	return NULL;
}

/* Section 5.6: the program serves faults until the device has got through all of its memory. */
static void page_faults(void)
{
	struct ioasid_sim_dma dma = order(WRITES | WAITS, GPA, SIZE);
	pthread_t thread;

	fill(data, SIZE, 1);
	memset(memory, 0, SIZE);
	pthread_create(&thread, NULL, device_runs, &dma);
	for (size_t offset = 0; offset < SIZE; offset += PAGE) {
		struct ioasid_fault fault = read_record();

		must_be(fault, IOASID_FAULT_WRITE | IOASID_FAULT_RECOVERABLE, GPA + offset,
			IOASID_FAULT_REASON_NOT_MAPPED, fault.id);
		map(node, space, fault.address, memory + offset, PAGE, MAP_BOTH);
		complete(fault.id, IOASID_RESPONSE_SUCCESS);
	}
	pthread_join(thread, NULL);
	must_equal(memory, data, SIZE, "what the device wrote, page by page as it was mapped");
	if (is_readable(0))
		die("there is another record");
	unmap(node, space, GPA, SIZE);
	ok("5.6: a device gets through memory that is mapped as it faults");
}

static void responses(void)
{
	struct ioasid_sim_dma dma;
	struct ioasid_fault fault;
	__u32 first;

	/* In the middle of a transfer, at a byte that begins no page */
	map(node, space, GPA, memory, PAGE, MAP_BOTH);
	fill(memory, SIZE, 2);
	dma = must_wait(READS, GPA + 100, SIZE - 200, PAGE - 100);
	fault = read_record();
	must_be(fault, IOASID_FAULT_READ | IOASID_FAULT_RECOVERABLE, GPA + PAGE,
		IOASID_FAULT_REASON_NOT_MAPPED, dma.fault);
	must_fail(&dma, go_on(&dma), EAGAIN, "a fault that is not completed stops the DMA");
	dma.done = 0;
	map(node, space, GPA + PAGE, memory + PAGE, SIZE - PAGE, MAP_BOTH);
	complete(fault.id, IOASID_RESPONSE_SUCCESS);
	must_not_complete(fault.id, IOASID_RESPONSE_SUCCESS, ENOENT, "completing a fault twice");
	must_be_done(&dma, go_on(&dma));
	must_equal(data, memory + 100, SIZE - 200, "what the device read in two parts");
	ok("DMA goes on where it stopped");
	unmap(node, space, GPA, SIZE);

	dma = must_wait(WRITES, GPA, PAGE, 0);
	first = dma.fault;
	read_record();
	complete(dma.fault, IOASID_RESPONSE_RETRY);
	if (go_on(&dma) || dma.done || !dma.fault || dma.fault == first)
		die("RETRY with nothing there: fault %u after fault %u. %s", dma.fault, first,
		    explanation(node));
	must_be(read_record(), IOASID_FAULT_WRITE | IOASID_FAULT_RECOVERABLE, GPA,
		IOASID_FAULT_REASON_NOT_MAPPED, dma.fault);
	map(node, space, GPA, memory, PAGE, MAP_BOTH);
	complete(dma.fault, IOASID_RESPONSE_RETRY);
	must_be_done(&dma, go_on(&dma));
	unmap(node, space, GPA, PAGE);
	ok("RETRY reports anew while there is nothing, and then goes on");

	dma = must_wait(WRITES, GPA, PAGE, 0);
	read_record();
	complete(dma.fault, IOASID_RESPONSE_SUCCESS);
	must_fail(&dma, go_on(&dma), EIO, "SUCCESS with nothing there fails for good");
	must_be(read_record(), IOASID_FAULT_WRITE, GPA, IOASID_FAULT_REASON_NOT_MAPPED, 0);

	dma = must_wait(WRITES, GPA, PAGE, 0);
	first = dma.fault;
	read_record();
	map(node, space, GPA, memory, PAGE, MAP_BOTH);
	complete(dma.fault, IOASID_RESPONSE_FAIL);
	must_fail(&dma, go_on(&dma), EIO, "FAIL fails, whatever is mapped by then");
	dma.fault = first;
	must_fail(&dma, carry_out(&dma), ENOENT, "a device goes on once only");
	unmap(node, space, GPA, PAGE);
	if (is_readable(0))
		die("a fault that the program has failed is reported");

	/* The device may be answered before anybody reads */
	dma = must_wait(WRITES, GPA, PAGE, 0);
	complete(dma.fault, IOASID_RESPONSE_FAIL);
	if (is_readable(0))
		die("there is a record of a fault that was completed already");
	must_fail(&dma, go_on(&dma), EIO, "a fault can be completed before it was read");
}

static void wrong_ways_to_go_on(void)
{
	struct ioasid_sim_dma good = must_wait(WRITES, GPA, PAGE, 0), dma;

	read_record();
	complete(good.fault, IOASID_RESPONSE_FAIL);
	good.flags |= IOASID_SIM_DMA_CONTINUE;
	dma = good;
	dma.iova += PAGE;
	must_refuse(node, IOASID_SIM_DMA, &dma, EINVAL, "going on at another IOVA");
	dma = good;
	dma.flags ^= WRITES | READS;
	must_refuse(node, IOASID_SIM_DMA, &dma, EINVAL, "going on in the other direction");
	dma = good;
	dma.flags &= ~WAITS;
	must_refuse(node, IOASID_SIM_DMA, &dma, EINVAL, "going on without RECOVERABLE");
	dma = good;
	dma.fault += 1;
	must_refuse(node, IOASID_SIM_DMA, &dma, ENOENT, "going on with another fault");
	must_fail(&good, carry_out(&good), EIO, "the device was still waiting");
	must_not_complete(good.fault, IOASID_RESPONSE_FAIL, ENOENT, "completing no fault");
	good = must_wait(WRITES, GPA, PAGE, 0);
	must_not_complete(good.fault, 3, EINVAL, "an unknown response");
	complete(good.fault, IOASID_RESPONSE_FAIL);
}

static void reasons(void)
{
	int fd = memfd_create("faults", MFD_CLOEXEC);
	void *file;

	fault_for_good(GPA + 5, 1);
	must_be(read_record(), IOASID_FAULT_WRITE, GPA + 5, IOASID_FAULT_REASON_NOT_MAPPED, 0);
	map(node, space, GPA, memory, PAGE, IOASID_MAP_READ);
	fault_for_good(GPA + 6, 1);
	must_be(read_record(), IOASID_FAULT_WRITE, GPA + 6, IOASID_FAULT_REASON_PERMISSION, 0);
	unmap(node, space, GPA, PAGE);
	if (fd < 0 || ftruncate(fd, PAGE) < 0)
		die("a memfd: %s", strerror(errno));
	file = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (file == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	map(node, space, GPA, file, PAGE, MAP_BOTH);
	if (ftruncate(fd, 0) < 0)
		die("ftruncate: %s", strerror(errno));
	fault_for_good(GPA + 7, 1);
	must_be(read_record(), IOASID_FAULT_WRITE, GPA + 7, IOASID_FAULT_REASON_MEMORY, 0);
	unmap(node, space, GPA, PAGE);
	munmap(file, PAGE);
	close(fd);
	ok("records say what was wrong: not mapped, not permitted, memory gone");
}

static void detached(void)
{
	struct ioasid_sim_dma unread = must_wait(WRITES, GPA, 1, 0), was_read, unattached;

	read_record();
	was_read = unread;
	unread = must_wait(WRITES, GPA + PAGE, 1, 0);
	fault_for_good(GPA + 2 * PAGE, 1);
	detach(node, device, space);
	must_be(read_record(), IOASID_FAULT_WRITE, GPA + 2 * PAGE, IOASID_FAULT_REASON_NOT_MAPPED, 0);
	if (is_readable(0))
		die("there is a record of a device that was detached");
	must_not_complete(unread.fault, IOASID_RESPONSE_SUCCESS, ENOENT,
			  "completing a fault of a device that was detached");
	must_fail(&unread, go_on(&unread), EIO, "an unread fault failed with the detach");
	must_fail(&was_read, go_on(&was_read), EIO, "a fault that was read failed with the detach");

	/* Attached to nothing, it can wait to be attached */
	unattached = must_wait(WRITES, GPA, 1, 0);
	if (read_record().ioasid)
		die("a device that is attached to nothing faults in an IOASID");
	map(node, space, GPA, memory, PAGE, MAP_BOTH);
	attach(node, device, space);
	complete(unattached.fault, IOASID_RESPONSE_SUCCESS);
	must_be_done(&unattached, go_on(&unattached));
	unmap(node, space, GPA, PAGE);
	ok("a device can wait to be attached");
}

/* DMA that is tagged with PASID 7, which is attached to an IOASID of its own */
static void tagged(void)
{
	__u32 other = alloc_ioasid(node);
	struct ioasid_attach_device at_data = attachment(device, other);
	struct ioasid_sim_dma untagged, dma = order(WRITES | WAITS | IOASID_SIM_DMA_PASID, GPA, 4);
	struct ioasid_fault fault;

	at_data.flags = IOASID_ATTACH_USER_PASID;
	at_data.user_pasid = 7;
	must(node, IOASID_ATTACH_DEVICE, &at_data, "ATTACH_DEVICE with user_pasid");
	map(node, space, GPA, memory, PAGE, MAP_BOTH);
	dma.pasid = 7;
	if (carry_out(&dma) || dma.done || !dma.fault)
		die("the tagged DMA does not wait. %s", explanation(node));
	fault = read_record();
	if (fault.flags != (IOASID_FAULT_WRITE | IOASID_FAULT_RECOVERABLE | IOASID_FAULT_PASID) ||
	    fault.pasid != 7 || fault.ioasid != other || fault.device != device ||
	    fault.cookie != COOKIE)
		die("the record is of flags %#x, pasid %u, ioasid %u, device %u", fault.flags,
		    fault.pasid, fault.ioasid, fault.device);
	map(node, other, GPA, memory + PAGE, PAGE, MAP_BOTH);
	complete(fault.id, IOASID_RESPONSE_SUCCESS);
	fill(data, 4, 3);
	untagged = dma;
	untagged.flags = (dma.flags & ~IOASID_SIM_DMA_PASID) | IOASID_SIM_DMA_CONTINUE;
	untagged.pasid = 0;
	must_refuse(node, IOASID_SIM_DMA, &untagged, EINVAL, "going on without the PASID");
	must_be_done(&dma, go_on(&dma));
	must_equal(memory + PAGE, data, 4, "what was written with the PASID");
	unmap(node, other, GPA, PAGE);
	unmap(node, space, GPA, PAGE);

	/* To detach the one or the other fails its own faults */
	for (int pasid_first = 0; pasid_first < 2; pasid_first++) {
		struct ioasid_attach_device both[2] = { attachment(device, space), at_data };

		untagged = must_wait(WRITES, GPA, 4, 0);
		dma = order(WRITES | WAITS | IOASID_SIM_DMA_PASID, GPA, 4);
		dma.pasid = 7;
		if (carry_out(&dma) || !dma.fault)
			die("the tagged DMA does not wait. %s", explanation(node));
		must(node, IOASID_DETACH_DEVICE, &both[pasid_first], "DETACH_DEVICE");
		must_not_complete(pasid_first ? dma.fault : untagged.fault, 0, ENOENT,
				  "completing a fault of what was detached");
		complete(pasid_first ? untagged.fault : dma.fault, IOASID_RESPONSE_FAIL);
		if (!pasid_first)
			attach(node, device, space);
		drain();
	}
	dma = order(WRITES | IOASID_SIM_DMA_PASID, GPA, 4);
	dma.pasid = 7;
	must_fail(&dma, carry_out(&dma), EIO, "DMA with a PASID that is attached to nothing");
	fault = read_record();
	if (fault.ioasid || fault.pasid != 7 || fault.reason != IOASID_FAULT_REASON_NOT_MAPPED)
		die("the record is of ioasid %u, pasid %u, reason %u", fault.ioasid, fault.pasid,
		    fault.reason);
	free_ioasid(node, other);
	ok("each PASID of a device waits and fails by itself");
}

static void full(void)
{
	struct ioasid_sim_dma dma, waiting[IOASID_FAULTS_MAX];
	struct ioasid_fault fault;

	fault_for_good(GPA, IOASID_FAULTS_MAX + 3);
	dma = order(WRITES | WAITS, GPA, 1);
	must_fail(&dma, carry_out(&dma), EIO, "a device does not wait where nobody reads");
	if (read(node, &fault, sizeof(fault)) != sizeof(fault) || fault.lost != 4)
		die("the next record tells of %u lost ones instead of 4", fault.lost);
	if (read(node, &fault, sizeof(fault)) != sizeof(fault) || fault.lost)
		die("the record after that tells of %u lost ones", fault.lost);
	if (drain() != IOASID_FAULTS_MAX - 2)
		die("there were not %d records", IOASID_FAULTS_MAX);
	ok("of many faults %d are kept, and the rest is counted", IOASID_FAULTS_MAX);

	for (int i = 0; i < IOASID_FAULTS_MAX; i++) {
		waiting[i] = must_wait(WRITES, GPA, 1, 0);
		read_record();
	}
	dma = order(WRITES | WAITS, GPA, 1);
	must_fail(&dma, carry_out(&dma), EIO, "no more devices wait than there may be");
	map(node, space, GPA, memory, PAGE, MAP_BOTH);
	for (int i = 0; i < IOASID_FAULTS_MAX; i++) {
		complete(waiting[i].fault, IOASID_RESPONSE_SUCCESS);
		must_be_done(&waiting[i], go_on(&waiting[i]));
	}
	unmap(node, space, GPA, PAGE);
	fault_for_good(GPA, 1);
	if (read_record().lost != 1)
		die("the fault that did not wait was not counted");
	ok("%d transfers wait at once, and all go on", IOASID_FAULTS_MAX);
}

/* ------------------------------------------------------------------ */
/* Those who wait for a record                                          */
/* ------------------------------------------------------------------ */

static void nonblocking(void)
{
	struct ioasid_fault records[4];

	set_blocking(false);
	if (read(node, records, sizeof(*records)) >= 0 || errno != EAGAIN)
		die("reading nothing without blocking: %s", strerror(errno));
	fault_for_good(GPA, 3);
	if (read(node, records, sizeof(*records) - 1) >= 0 || errno != EINVAL)
		die("reading a part of a record: %s", strerror(errno));
	if (read(node, records, 2 * sizeof(*records) + 8) != 2 * sizeof(*records))
		die("a read gives other than whole records");
	if (read(node, records, sizeof(records)) != sizeof(*records))
		die("a read does not give the rest");
	set_blocking(true);
	ok("a read gives whole records; without blocking, nothing is EAGAIN");
}

/* A thread that reads, and what it got. */
struct reader {
	pthread_t thread;
	pid_t tid;
	int fd;
	ssize_t result;
	int error;
	struct ioasid_fault record;
	bool done;
};

static void *reads_one(void *argument)
{
	struct reader *reader = argument;

	__atomic_store_n(&reader->tid, gettid(), __ATOMIC_SEQ_CST);
	reader->result = read(reader->fd, &reader->record, sizeof(reader->record));
	reader->error = errno;
	__atomic_store_n(&reader->done, true, __ATOMIC_SEQ_CST);
	return NULL;
}

/* Waits until a thread of a process sleeps, which is to be in the read that it is about to do. */
static void await_sleep(pid_t process, pid_t *tid)
{
	double give_up = now() + 20;
	char path[64], state = 0;

	while (state != 'S') {
		FILE *stat;

		if (now() > give_up)
			die("a thread does not get to wait in read");
		sleep_ms(5);
		snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", process,
			 __atomic_load_n(tid, __ATOMIC_SEQ_CST));
		stat = fopen(path, "re");
		if (stat && fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
			state = 0;
		if (stat)
			fclose(stat);
	}
}

static void start(struct reader *reader, int fd)
{
	*reader = (struct reader){ .fd = fd };
	pthread_create(&reader->thread, NULL, reads_one, reader);
	await_sleep(getpid(), &reader->tid);
}

static bool is_done(struct reader *reader)
{
	return __atomic_load_n(&reader->done, __ATOMIC_SEQ_CST);
}

static __u64 must_have_read(struct reader *reader)
{
	pthread_join(reader->thread, NULL);
	if (reader->result != sizeof(reader->record))
		die("a read that waited gave %zd: %s", reader->result, strerror(reader->error));
	return reader->record.address;
}

static void readers(void)
{
	struct reader two[2], many[40];
	double give_up;
	__u64 sum = 0;

	start(&two[0], node);
	start(&two[1], node);
	sleep_ms(50);
	if (is_done(&two[0]) || is_done(&two[1]))
		die("a read of nothing does not wait");
	fault_for_good(GPA, 1);
	give_up = now() + 10;
	while (!is_done(&two[0]) && !is_done(&two[1]) && now() < give_up)
		sleep_ms(5);
	sleep_ms(50);
	if (is_done(&two[0]) == is_done(&two[1]))
		die("one record ended the reads of %d threads", 2 * is_done(&two[0]));
	fault_for_good(GPA + PAGE, 1);
	if (must_have_read(&two[0]) + must_have_read(&two[1]) != 2 * GPA + PAGE)
		die("the two readers did not get one record each");
	ok("a read waits for a record, and two readers get one each");

	for (size_t i = 0; i < 40; i++)
		start(&many[i], node);
	for (size_t i = 0; i < 40; i++)
		fault_for_good(GPA + i * PAGE, 1);
	for (size_t i = 0; i < 40; i++)
		sum += (must_have_read(&many[i]) - GPA) / PAGE;
	if (sum != 40 * 39 / 2 || is_readable(0))
		die("40 readers did not get one record each");
	ok("40 threads wait, and each gets a record of its own");
}

static void no_action(int signal)
{
	(void)signal;
}

static void handle_alarm(int flags)
{
	struct sigaction action = { .sa_handler = no_action, .sa_flags = flags };

	sigaction(SIGALRM, &action, NULL);
}

static void set_alarm(long first_us, long interval_us)
{
	struct itimerval timer = {
		.it_value.tv_usec = first_us, .it_interval.tv_usec = interval_us,
	};

	setitimer(ITIMER_REAL, &timer, NULL);
}

static void interrupted(void)
{
	struct ioasid_fault record;

	for (int restart = 0; restart < 2; restart++) {
		handle_alarm(restart ? SA_RESTART : 0);
		set_alarm(50000, 50000);
		if (read(node, &record, sizeof(record)) >= 0 || errno != EINTR)
			die("a read that a signal interrupts: %s", strerror(errno));
	}
	/* Signals at any moment, also before the daemon has the read. */
	handle_alarm(0);
	set_alarm(200, 200);
	for (int i = 0; i < 300; i++)
		if (read(node, &record, sizeof(record)) >= 0 || errno != EINTR)
			die("a read that signals interrupt: %s", strerror(errno));
	set_alarm(0, 0);
	/* The next record is not lost to reads that have ended. */
	fault_for_good(GPA, 1);
	must_be(read_record(), IOASID_FAULT_WRITE, GPA, IOASID_FAULT_REASON_NOT_MAPPED, 0);
	ok("a signal ends a read that waits, and takes no record with it");
}

static void *faults_later(void *argument)
{
	(void)argument;
	sleep_ms(50);
	fault_for_good(GPA, 1);
	return NULL;
}

static void polled(void)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	pthread_t thread;

	if (is_readable(20))
		die("poll tells of a record that is not there");
	for (int i = 0; i < 3; i++) {
		pthread_create(&thread, NULL, faults_later, NULL);
		if (!is_readable(10000))
			die("a new record does not wake poll");
		pthread_join(thread, NULL);
		drain();
	}
	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, node, &event) < 0)
		die("epoll: %s", strerror(errno));
	/* Edges: each new record is one, read or not. */
	for (int i = 0; i < 3; i++) {
		pthread_create(&thread, NULL, faults_later, NULL);
		if (epoll_wait(epoll, &event, 1, 10000) != 1 || !(event.events & EPOLLIN))
			die("a new record does not wake epoll");
		pthread_join(thread, NULL);
	}
	close(epoll);
	if (drain() != 3)
		die("there were not 3 records");
	ok("a new record wakes poll, and epoll by its edge");
}

static __u64 counter(int fd)
{
	__u64 count = 0;

	if (read(fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		die("reading the eventfd: %s", strerror(errno));
	return count;
}

static void announced(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), full = eventfd(0, EFD_CLOEXEC), pipes[2];
	__u64 most = ~0ULL - 1;
	struct reader reader;
	double begun;

	if (fd < 0 || full < 0 || pipe(pipes) < 0)
		die("eventfd: %s", strerror(errno));
	must_refuse(node, IOASID_SET_FAULT_EVENTFD, by_value(pipes[0]), EINVAL, "a pipe as eventfd");
	must_refuse(node, IOASID_SET_FAULT_EVENTFD, by_value(1000), EBADF, "a closed descriptor");
	must_refuse(node, IOASID_SET_FAULT_EVENTFD, by_value(-2), EBADF, "a negative descriptor");
	must_refuse(node, IOASID_SET_FAULT_EVENTFD, by_value(1ULL << 32), EBADF,
		    "a descriptor of more than 32 bits");
	close(pipes[0]);
	close(pipes[1]);

	must(node, IOASID_SET_FAULT_EVENTFD, by_value(fd), "SET_FAULT_EVENTFD");
	if (counter(fd))
		die("the eventfd is signalled without a record");
	fault_for_good(GPA, 3);
	if (counter(fd) != 3)
		die("3 records did not give a count of 3");
	drain();
	start(&reader, node);
	fault_for_good(GPA, 1);
	must_have_read(&reader);
	if (counter(fd) != 1)
		die("a record that a reader waited for is not counted");
	ok("an eventfd counts every new record");

	/* The program has it blocking, and full */
	if (write(full, &most, sizeof(most)) != sizeof(most))
		die("filling an eventfd: %s", strerror(errno));
	must(node, IOASID_SET_FAULT_EVENTFD, by_value(full), "SET_FAULT_EVENTFD");
	begun = now();
	fault_for_good(GPA, 3);
	if (drain() != 3 || now() - begun > 5)
		die("a full eventfd holds records up");
	if (counter(fd))
		die("an eventfd that was replaced is signalled");
	ok("a full eventfd holds nothing up");

	/* As a program would write it that passes an int */
	must(node, IOASID_SET_FAULT_EVENTFD, by_value(fd), "SET_FAULT_EVENTFD");
	if (ioctl(node, IOASID_SET_FAULT_EVENTFD, -1) < 0)
		die("SET_FAULT_EVENTFD with -1: %s", explanation(node));
	fault_for_good(GPA, 1);
	drain();
	if (counter(fd))
		die("an eventfd that was taken away is signalled");
	must(node, IOASID_SET_FAULT_EVENTFD, by_value(0xffffffff), "SET_FAULT_EVENTFD with -1");
	close(fd);
	close(full);
	ok("without an eventfd none is signalled");
}

/* ------------------------------------------------------------------ */
/* The end of an open                                                   */
/* ------------------------------------------------------------------ */

static void closed_under_a_reader(void)
{
	int copy = dup(node);
	struct reader reader;

	start(&reader, copy);
	close(copy);
	sleep_ms(50);
	if (is_done(&reader))
		die("closing a descriptor ended a read: %s", strerror(reader.error));
	fault_for_good(GPA, 1);
	must_have_read(&reader);
	ok("a read goes on that waits by a descriptor closed since");
}

static void killed_while_it_reads(const char *path)
{
	int ready[2], status;
	pid_t child;
	double give_up = now() + 20;
	struct ioasid_bind_device again = simulated(device_name, COOKIE);

	if (pipe2(ready, O_CLOEXEC) < 0)
		die("pipe: %s", strerror(errno));
	child = fork();
	if (child == 0) {
		struct ioasid_fault record;
		int own = open_node(path);

		bind_simulated(own, device_name, COOKIE);
		if (write(ready[1], "", 1) != 1 || read(own, &record, sizeof(record)))
			_exit(1);
		_exit(2);
	}
	close(ready[1]);
	if (child < 0 || read(ready[0], &status, 1) != 1)
		die("the child does not get to read");
	await_sleep(child, &child);
	kill(child, SIGKILL);
	if (waitpid(child, &status, 0) != child || !WIFSIGNALED(status))
		die("a program that waits in read ended with status %#x", status);
	close(ready[0]);
	/* The kernel tells the daemon of the close a moment later. */
	while (ioctl(node, IOASID_BIND_DEVICE, &again) < 0) {
		if (errno != EBUSY || now() > give_up)
			die("the device of a program that was killed in read: %s. %s",
			    strerror(errno), explanation(node));
		sleep_ms(5);
	}
	ok("a program that is killed while it waits in read leaves nothing behind");
}

int main(int argc, char **argv)
{
	struct ioasid_sim_dma dma;

	if (argc < 3)
		die("usage: faults NODE DEVICE");
	device_name = argv[2];
	node = open_node(argv[1]);
	if (!has_extension(node, IOASID_EXT_FAULTS) ||
	    !has_extension(node, IOASID_EXT_RECOVERABLE_FAULTS))
		die("the node says that it has no recoverable faults");
	device = bind_simulated(node, device_name, COOKIE);
	space = alloc_ioasid(node);
	attach(node, device, space);
	memory = shared_memory(SIZE);

	page_faults();
	responses();
	wrong_ways_to_go_on();
	reasons();
	detached();
	if (has_extension(node, IOASID_EXT_USER_PASID_TABLE))
		tagged();
	full();
	nonblocking();
	readers();
	interrupted();
	polled();
	announced();
	closed_under_a_reader();

	/* A device that waits can be taken away, and its open be closed */
	dma = must_wait(WRITES, GPA, 1, 0);
	detach(node, device, space);
	must(node, IOASID_UNBIND_DEVICE, by_value(device), "UNBIND_DEVICE");
	must_not_complete(dma.fault, IOASID_RESPONSE_SUCCESS, ENOENT,
			  "completing a fault of a device that was unbound");
	killed_while_it_reads(argv[1]);
	close(node);
	return 0;
}
