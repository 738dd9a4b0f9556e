// SPDX-License-Identifier: MIT OR Apache-2.0

// rfc-flows DEVICE-1 DEVICE-2: what tests/c/rfc-flows.c shows of the proposal's sections 5.1 to 5.4,
// as a Go program does it. Without cgo, there is no C library in it; its threads are the Go
// runtime's, which also sends itself signals all the time; and here every step is one of a fresh
// thread, which ends with it, while another goroutine keeps the garbage collector busy.
package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

const (
	page      = 4096
	guestSize = 4 << 20    // in the proposal, 1 GB
	hva       = 0x40000000 // where the guest's memory is
)

var (
	guest, window, loaded  []byte
	ioasidFd               int
	dev1, dev2             *device
	gpaIoasid, giovaIoasid uint32
	seed                   uint32
)

func fill(memory []byte) {
	seed++
	state := seed*2654435761 + 1
	for i := range memory {
		state = state*1664525 + 1013904223
		memory[i] = byte(state >> 24)
	}
}

func sharedMemory(size int) (fd int) {
	const memfdCreate, cloexec = 319, 1
	name := []byte("guest\x00")
	number, _, errno := syscall.Syscall(memfdCreate, uintptr(unsafe.Pointer(&name[0])), cloexec, 0)
	if errno != 0 {
		die("cannot make a memfd: %v", errno)
	}
	if err := syscall.Ftruncate(int(number), int64(size)); err != nil {
		die("cannot make a memfd of %d bytes: %v", size, err)
	}
	return int(number)
}

// makeGuest makes the memory that the devices use: the guest's, where it is in the proposal, and
// their window.
func makeGuest() {
	const fixedNoReplace = 0x100000
	address, _, errno := syscall.Syscall6(syscall.SYS_MMAP, hva, guestSize,
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|fixedNoReplace,
		uintptr(sharedMemory(guestSize)), 0)
	if errno != 0 || address != hva {
		die("cannot make the guest's memory at %#x: %v", hva, errno)
	}
	guest = unsafe.Slice((*byte)(unsafe.Pointer(address)), guestSize)
	fill(guest)
	var err error
	window, err = syscall.Mmap(sharedMemory(page), 0, page,
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		die("cannot map the window: %v", err)
	}
	loaded = make([]byte, page)
	fill(loaded)
}

func addressOf(memory []byte) uint64 {
	return uint64(uintptr(unsafe.Pointer(&memory[0])))
}

// explanation gives the node's sentence about its last failure.
func explanation() string {
	text := make([]byte, 1024)
	query := errorInfo{flags: errorAnyThread, text: addressOf(text), textLen: uint32(len(text))}
	query.argsz = uint32(unsafe.Sizeof(query))
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(ioasidFd), ioasidGetError,
		uintptr(unsafe.Pointer(&query)))
	if errno != 0 {
		return ""
	}
	return string(text[:query.textLen-1])
}

// must does an ioctl that has to succeed, and gives its result.
func must(doing string, fd int, command uintptr, argument unsafe.Pointer) uint32 {
	result, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), command, uintptr(argument))
	if errno != 0 {
		die("%s: %v. %s", doing, errno, explanation())
	}
	return uint32(result)
}

// byValue is must for an argument that is no address.
func byValue(doing string, fd int, command, argument uintptr) uint32 {
	result, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), command, argument)
	if errno != 0 {
		die("%s: %v. %s", doing, errno, explanation())
	}
	return uint32(result)
}

func refused(doing string, fd int, command, argument uintptr, expected syscall.Errno) {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), command, argument)
	if errno != expected {
		die("%s gave \"%v\" instead of \"%v\"", doing, errno, expected)
	}
	ok("%s is refused (%v)", doing, expected)
}

func (d *device) bind() {
	byValue("VFIO_BIND_IOASID_FD", d.fd, vfioBindIoasidFd, uintptr(ioasidFd))
	d.takeRegisters()
}

func (d *device) attach(ioasid uint32) {
	atData := attachData{ioasid: ioasid}
	atData.argsz = uint32(unsafe.Sizeof(atData))
	must("VFIO_ATTACH_IOASID", d.fd, vfioAttachIoasid, unsafe.Pointer(&atData))
}

func (d *device) detach(ioasid uint32) {
	atData := attachData{ioasid: ioasid}
	atData.argsz = uint32(unsafe.Sizeof(atData))
	must("VFIO_DETACH_IOASID", d.fd, vfioDetachIoasid, unsafe.Pointer(&atData))
}

func mapAt(ioasid uint32, iova, vaddr, size uint64) {
	dmaMap := mapDma{flags: mapReadWrite, ioasid: ioasid, iova: iova, vaddr: vaddr, size: size}
	dmaMap.argsz = uint32(unsafe.Sizeof(dmaMap))
	must("IOASID_DMA_MAP", ioasidFd, ioasidDmaMap, unsafe.Pointer(&dmaMap))
}

func unmapAt(ioasid uint32, iova, size uint64) {
	dmaUnmap := unmapDma{ioasid: ioasid, iova: iova, size: size}
	dmaUnmap.argsz = uint32(unsafe.Sizeof(dmaUnmap))
	must("IOASID_DMA_UNMAP", ioasidFd, ioasidDmaUnmap, unsafe.Pointer(&dmaUnmap))
}

func mapGuest() {
	mapAt(gpaIoasid, eduWindow, addressOf(window), page)
	mapAt(gpaIoasid, 0 /* GPA */, hva, guestSize)
}

func alloc() uint32 { return byValue("IOASID_ALLOC", ioasidFd, ioasidAlloc, 0) }

func free(ioasid uint32) { byValue("IOASID_FREE", ioasidFd, ioasidFree, uintptr(ioasid)) }

func nestOn(parent uint32) uint32 {
	return byValue("IOASID_CREATE_NESTING", ioasidFd, ioasidCreateNesting, uintptr(parent))
}

func openNode() {
	fd, err := syscall.Open("/dev/ioasid", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		die("cannot open /dev/ioasid: %v", err)
	}
	ioasidFd = fd
}

func closeAll() {
	for _, d := range []*device{dev1, dev2} {
		if d != nil {
			d.dropRegisters()
			syscall.Close(d.fd)
		}
	}
	dev1, dev2 = nil, nil
	syscall.Close(ioasidFd)
}

func simpleExample(address string) {
	// Bind device to IOASID fd
	dev1 = openByName(address)
	openNode()
	dev1.bind()

	// Attach device to IOASID
	gpaIoasid = alloc()
	dev1.attach(gpaIoasid)

	// Setup GPA mapping
	mapGuest()
	dev1.load()
	dev1.reaches(0, guest, "5.1")
	dev1.reaches(guestSize-sample, guest[guestSize-sample:], "5.1")
	dev1.faults(guestSize, "5.1, behind the guest's memory")
	ok("5.1: a device reaches the guest's memory at guest-physical addresses")

	// Memory that Go has allocated is private. It does not move while it is in use.
	heap := make([]byte, 3*page)
	fill(heap)
	aligned := heap[(page-addressOf(heap)%page)%page:][:page]
	mapAt(gpaIoasid, 0x800000, addressOf(aligned), page)
	dev1.reaches(0x800000, aligned, "5.1, memory of the Go heap")
	unmapAt(gpaIoasid, 0x800000, page)
	runtime.KeepAlive(heap)
	ok("5.1: a device reaches memory of the Go heap")

	refused("VFIO_BIND_IOASID_FD a second time", dev1.fd, vfioBindIoasidFd, uintptr(ioasidFd),
		syscall.EBUSY)
	dev1.detach(gpaIoasid)
	dev1.faults(0, "5.1, detached")

	// The descriptor stays; the device is given back, and taken again.
	dev1.dropRegisters()
	byValue("VFIO_UNBIND_IOASID_FD", dev1.fd, vfioUnbindIoasidFd, uintptr(ioasidFd))
	dev1.bind()
	dev1.attach(gpaIoasid)
	dev1.load()
	dev1.reaches(0x2000, guest[0x2000:], "5.1, bound again")
	ok("5.1: a device that was given back can be bound again by the same descriptor")
	closeAll()
}

func bothAtGpa(address1, address2 string, preregister bool, when string) {
	dev1, dev2 = openByName(address1), openByName(address2)
	openNode()
	dev1.bind()
	dev2.bind()

	// pre-register the virtual address range for accounting
	if preregister {
		for _, memory := range [][]byte{guest, window} {
			memInfo := registerMemory{vaddr: addressOf(memory), size: uint64(len(memory))}
			memInfo.argsz = uint32(unsafe.Sizeof(memInfo))
			must("IOASID_REGISTER_MEMORY", ioasidFd, ioasidRegisterMemory,
				unsafe.Pointer(&memInfo))
		}
	}

	// Attach dev1 and dev2 to gpa_ioasid
	gpaIoasid = alloc()
	dev1.attach(gpaIoasid)
	dev2.attach(gpaIoasid)

	// Setup GPA mapping
	mapGuest()
	dev1.load()
	dev2.load()
	dev1.reaches(0, guest, when+", first device")
	dev2.reaches(0x1000, guest[0x1000:], when+", second device")
}

func multipleIoasids(address1, address2 string) {
	bothAtGpa(address1, address2, true, "5.2")

	// After boot, guest enables an GIOVA space for dev2
	giovaIoasid = alloc()

	// First detach dev2 from previous address space
	dev2.detach(gpaIoasid)
	dev2.faults(0x1000, "5.2, detached")

	// Then attach dev2 to the new address space
	dev2.attach(giovaIoasid)
	mapAt(giovaIoasid, eduWindow, addressOf(window), page)

	// Setup a shadow DMA mapping according to vIOMMU
	// GIOVA (0x2000) -> GPA (0x1000) -> HVA (0x40001000)
	mapAt(giovaIoasid, 0x2000, 0x40001000, 4096)
	dev2.reaches(0x2000, guest[0x1000:], "5.2, the shadow mapping")
	dev2.faults(0x1000, "5.2, in front of the shadow mapping")
	dev1.reaches(0x2000, guest[0x2000:], "5.2, the device that has stayed")
	ok("5.2: a device has moved to an address space of its own; the other has not noticed")
	closeAll()
}

func softwareNesting(address1, address2 string) {
	bothAtGpa(address1, address2, false, "5.3")

	// Make GIOVA space nested on GPA space
	giovaIoasid = nestOn(gpaIoasid)

	// Attach dev2 to the new address space (child)
	// Note dev2 is still attached to gpa_ioasid (parent)
	dev2.attach(giovaIoasid)
	dev2.faults(0x1000, "5.3, in an empty child")

	// Setup a GIOVA->GPA mapping for giova_ioasid, which will be
	// merged by the kernel with GPA->HVA mapping of gpa_ioasid
	// to form a shadow mapping.
	mapAt(giovaIoasid, eduWindow, eduWindow, page)
	mapAt(giovaIoasid, 0x2000, 0x1000, 4096)
	dev2.reaches(0x2000, guest[0x1000:], "5.3, the shadow mapping")
	dev2.faults(0x1000, "5.3, in front of the shadow mapping")
	dev1.reaches(0x2000, guest[0x2000:], "5.3, the device at the parent")
	ok("5.3: child and parent together give one mapping; the device at the parent has not noticed")
}

const giovaPgtable = 0x100000 // guest-physical: four levels, and a second last one

// guestMaps maps a page in the guest's own page table, as x86 has it.
func guestMaps(giova, gpa uint64) {
	table := uint64(giovaPgtable)
	entry := func(level uint) *uint64 {
		return (*uint64)(unsafe.Pointer(&guest[table+(giova>>(12+9*level)&511)*8]))
	}
	for level := uint(3); level > 0; level-- {
		next := uint64(4 - level)
		if level == 1 && giova>>21 != 0 {
			next = 4
		}
		*entry(level) = (giovaPgtable + next*page) | 7
		table = giovaPgtable + next*page
	}
	*entry(0) = gpa | 7
}

// hardwareNesting goes on where softwareNesting has ended.
func hardwareNesting() {
	dev2.detach(giovaIoasid)
	free(giovaIoasid)
	for i := range guest[giovaPgtable:][:5*page] {
		guest[giovaPgtable+i] = 0
	}
	guestMaps(0x2000, 0x1000)
	guestMaps(eduWindow, eduWindow)

	// Make GIOVA space nested on GPA space
	giovaIoasid = nestOn(gpaIoasid)

	// Attach dev2 to the new address space (child)
	dev2.attach(giovaIoasid)
	dev2.faults(0x2000, "5.4, before the bind")

	// Bind guest I/O page table
	bindData := bindPgtable{ioasid: giovaIoasid, format: formatX86Level4, addr: giovaPgtable,
		addrWidth: 48}
	bindData.argsz = uint32(unsafe.Sizeof(bindData))
	must("IOASID_BIND_PGTABLE", ioasidFd, ioasidBindPgtable, unsafe.Pointer(&bindData))
	dev2.reaches(0x2000, guest[0x1000:], "5.4")
	dev2.faults(0x1000, "5.4, what the guest does not map")

	// Invalidate IOTLB when required
	guestMaps(0x2000, 0x9000)
	dev2.reaches(0x2000, guest[0x1000:], "5.4, before the invalidation")
	invData := invalidateCache{ioasid: giovaIoasid, iova: 0x2000, size: page}
	invData.argsz = uint32(unsafe.Sizeof(invData))
	must("IOASID_INVALIDATE_CACHE", ioasidFd, ioasidInvalidateCache, unsafe.Pointer(&invData))
	dev2.reaches(0x2000, guest[0x9000:], "5.4, after the invalidation")
	ok("5.4: the guest's own page table translates for the device, as of its invalidation")

	dev2.detach(giovaIoasid)
	free(giovaIoasid)
	dev2.reaches(0, guest, "when the child is gone")
	dev2.detach(gpaIoasid)
	dev1.detach(gpaIoasid)
	dev1.faults(0, "detached at the end")
	free(gpaIoasid)
	closeAll()
	ok("all is given back")
}

// onThreadOfItsOwn runs a flow on a thread that ends with it.
func onThreadOfItsOwn(flow func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		flow()
		close(done)
	}()
	<-done
}

// collectGarbage keeps the runtime at what it does in large programs: it stops all threads with
// signals, again and again.
func collectGarbage() {
	for {
		garbage := make([][]byte, 0, 64)
		for i := 0; i < 64; i++ {
			garbage = append(garbage, make([]byte, 1024))
		}
		runtime.KeepAlive(garbage)
		runtime.GC()
		time.Sleep(5 * time.Millisecond)
	}
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: rfc-flows DEVICE-1 DEVICE-2")
		os.Exit(2)
	}
	makeGuest()
	go collectGarbage()
	onThreadOfItsOwn(func() { simpleExample(os.Args[1]) })
	onThreadOfItsOwn(func() { multipleIoasids(os.Args[1], os.Args[2]) })
	onThreadOfItsOwn(func() { softwareNesting(os.Args[1], os.Args[2]) })
	onThreadOfItsOwn(hardwareNesting)
}
