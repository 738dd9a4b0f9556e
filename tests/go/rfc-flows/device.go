// SPDX-License-Identifier: MIT OR Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// QEMU's edu device, as in tests/c/edu.h: it copies between memory and a buffer of its own.
const (
	eduBuffer    = 0x40000
	eduSource    = 0x80
	eduDest      = 0x88
	eduCount     = 0x90
	eduCommand   = 0x98
	eduStart     = 1
	eduToMemory  = 2
	eduWindow    = 0x0ffff000 // the last page of its addresses
	eduTransfers = 4095       // QEMU 7.2 does not take the last byte of its buffer

	sample     = 64
	bufferRead = 1024 // where the device keeps what it has read
)

// A device is open by name, and after bind it has registers.
type device struct {
	name string
	fd   int
	bar  []byte
}

func openByName(address string) *device {
	path := "/dev/vfio/devices/" + address
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		die("cannot open %s: %v; run under ioasid-run", path, err)
	}
	return &device{name: address, fd: fd}
}

func (d *device) region(index uint32) regionInfo {
	info := regionInfo{index: index}
	info.argsz = uint32(unsafe.Sizeof(info))
	must("VFIO_DEVICE_GET_REGION_INFO", d.fd, vfioDeviceGetRegionInfo, unsafe.Pointer(&info))
	return info
}

// takeRegisters is for a descriptor that has become VFIO's own: it lets the device do DMA and maps
// its registers.
func (d *device) takeRegisters() {
	config := d.region(regionConfig)
	id := make([]byte, 6)
	if _, err := syscall.Pread(d.fd, id, int64(config.offset)); err != nil {
		die("%s has no configuration space: %v", d.name, err)
	}
	if binary.LittleEndian.Uint32(id) != 0x11e81234 {
		die("%s is %x, which is no edu device", d.name, id[:4])
	}
	command := id[configCommand:]
	command[0] |= memoryAndMasters
	if _, err := syscall.Pwrite(d.fd, command, int64(config.offset)+configCommand); err != nil {
		die("cannot enable bus mastering of %s: %v", d.name, err)
	}
	bar := d.region(regionBar0)
	registers, err := syscall.Mmap(d.fd, int64(bar.offset), int(bar.size),
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		die("cannot map the registers of %s: %v", d.name, err)
	}
	d.bar = registers
}

func (d *device) dropRegisters() {
	if d.bar != nil {
		syscall.Munmap(d.bar)
		d.bar = nil
	}
}

// The compiler must not look through these: registers are no memory.

//go:noinline
func (d *device) write64(offset int, value uint64) {
	*(*uint64)(unsafe.Pointer(&d.bar[offset])) = value
}

//go:noinline
func (d *device) read64(offset int) uint64 {
	return *(*uint64)(unsafe.Pointer(&d.bar[offset]))
}

func (d *device) transfer(source, destination uint64, count int, direction uint64) {
	d.write64(eduSource, source)
	d.write64(eduDest, destination)
	d.write64(eduCount, uint64(count))
	d.write64(eduCommand, eduStart|direction)
	giveUp := time.Now().Add(30 * time.Second)
	for d.read64(eduCommand)&eduStart != 0 {
		if time.Now().After(giveUp) {
			die("%s has not finished a transfer in 30 s", d.name)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// load fills the device's buffer through its window, which has to be mapped.
func (d *device) load() {
	copy(window, loaded)
	d.transfer(eduWindow, eduBuffer, eduTransfers, 0)
}

// mustWrite ends unless what the device writes at iova gets to `memory`, and nothing else changes.
func (d *device) mustWrite(iova uint64, memory []byte, when string) {
	before := append([]byte(nil), guest...)
	kept := append([]byte(nil), memory[:sample]...)
	d.transfer(eduBuffer, iova, sample, eduToMemory)
	if !bytes.Equal(memory[:sample], loaded[:sample]) {
		die("%s: what %s writes at %#x does not get where it should", when, d.name, iova)
	}
	copy(memory, kept)
	if !bytes.Equal(before, guest) {
		die("%s: what %s writes at %#x also changes other memory", when, d.name, iova)
	}
}

// mustRead ends unless the device gets what `memory` holds from iova. Its window must be mapped.
func (d *device) mustRead(iova uint64, memory []byte, when string) {
	fill(memory[:sample])
	d.transfer(iova, eduBuffer+bufferRead, sample, 0)
	fill(window[:sample])
	d.transfer(eduBuffer+bufferRead, eduWindow, sample, eduToMemory)
	if !bytes.Equal(window[:sample], memory[:sample]) {
		die("%s: what %s reads at %#x is not what is there", when, d.name, iova)
	}
}

func (d *device) reaches(iova uint64, memory []byte, when string) {
	d.mustRead(iova, memory, when)
	d.mustWrite(iova, memory, when)
}

// faults ends if what the device writes at iova gets anywhere.
func (d *device) faults(iova uint64, when string) {
	before := append([]byte(nil), guest...)
	d.transfer(eduBuffer, iova, sample, eduToMemory)
	if !bytes.Equal(before, guest) {
		die("%s: what %s writes at %#x gets to the guest's memory", when, d.name, iova)
	}
}

func ok(format string, arguments ...any) {
	fmt.Printf("ok: "+format+"\n", arguments...)
}

func die(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "rfc-flows (Go): "+format+"\n", arguments...)
	os.Exit(1)
}
