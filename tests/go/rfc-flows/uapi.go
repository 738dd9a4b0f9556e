// SPDX-License-Identifier: MIT OR Apache-2.0

package main

// What of ioasid.h and linux/vfio.h the flows use: _IO(';', n) has neither size nor direction.
const (
	vfio   = ';'<<8 | 100
	ioasid = ';'<<8 | 0xC0

	vfioDeviceGetRegionInfo = vfio + 8
	vfioBindIoasidFd        = vfio + 22
	vfioUnbindIoasidFd      = vfio + 23
	vfioAttachIoasid        = vfio + 24
	vfioDetachIoasid        = vfio + 25

	ioasidRegisterMemory  = ioasid + 1
	ioasidAlloc           = ioasid + 3
	ioasidFree            = ioasid + 4
	ioasidDmaMap          = ioasid + 6
	ioasidDmaUnmap        = ioasid + 7
	ioasidCreateNesting   = ioasid + 8
	ioasidBindPgtable     = ioasid + 9
	ioasidInvalidateCache = ioasid + 13
	ioasidGetError        = ioasid + 24

	mapReadWrite     = 1 | 2
	formatX86Level4  = 1
	errorAnyThread   = 1
	regionBar0       = 0
	regionConfig     = 7
	configCommand    = 4
	memoryAndMasters = 2 | 4
)

type attachData struct {
	argsz, flag, ioasid, userPasid uint32
}

type registerMemory struct {
	argsz, flags uint32
	vaddr, size  uint64
}

type mapDma struct {
	argsz, flags, ioasid uint32
	fd                   int32
	vaddr, iova, size    uint64
}

type unmapDma struct {
	argsz, flags, ioasid, reserved     uint32
	iova, size                         uint64
	pageSize, bitmapPlace, bitmapBytes uint64
}

type bindPgtable struct {
	argsz, flags, ioasid, format uint32
	addr                         uint64
	addrWidth, reserved          uint32
}

type invalidateCache struct {
	argsz, flags, ioasid, reserved uint32
	iova, size                     uint64
}

type errorInfo struct {
	argsz, flags, command, error uint32
	text                         uint64
	textLen, reserved            uint32
}

type regionInfo struct {
	argsz, flags, index, capOffset uint32
	size, offset                   uint64
}
