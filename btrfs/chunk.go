package btrfs

import (
	"encoding/binary"
	"fmt"
)

// Layout of struct btrfs_chunk, struct btrfs_stripe and struct
// btrfs_dev_extent on disk, little-endian.
const (
	chunkHeaderSize  = 48 // up to and with sub_stripes
	stripeSize       = 32 // devid, offset, device uuid
	deviceExtentSize = 48
)

// parseChunk fills in c from a chunk item, reusing its slice of stripes.
func parseChunk(logical uint64, item []byte, c *Chunk) error {
	if len(item) < chunkHeaderSize {
		return fmt.Errorf("chunk %d: item of %d bytes is too short", logical, len(item))
	}
	var err error
	c.Logical = logical
	c.Length = binary.LittleEndian.Uint64(item[0:])
	flags := binary.LittleEndian.Uint64(item[24:])
	if c.Type, err = typeOfFlags(flags); err != nil {
		return fmt.Errorf("chunk %d: %w", logical, err)
	}
	if c.Profile, err = profileOfFlags(flags); err != nil {
		return fmt.Errorf("chunk %d: %w", logical, err)
	}
	n := int(binary.LittleEndian.Uint16(item[44:]))
	if n == 0 || len(item) < chunkHeaderSize+n*stripeSize {
		return fmt.Errorf("chunk %d: item of %d bytes for %d stripes", logical, len(item), n)
	}
	c.Stripes = c.Stripes[:0]
	for i := range n {
		s := item[chunkHeaderSize+i*stripeSize:]
		c.Stripes = append(c.Stripes, Stripe{
			DevID:  binary.LittleEndian.Uint64(s[0:]),
			Offset: binary.LittleEndian.Uint64(s[8:]),
		})
	}
	return nil
}

func parseDeviceExtent(devid, offset uint64, item []byte) (DeviceExtent, error) {
	if len(item) < deviceExtentSize {
		return DeviceExtent{}, fmt.Errorf("device %d: extent %d: item of %d bytes is too short", devid, offset, len(item))
	}
	return DeviceExtent{
		DevID:  devid,
		Offset: offset,
		Chunk:  binary.LittleEndian.Uint64(item[16:]),
		Length: binary.LittleEndian.Uint64(item[24:]),
	}, nil
}

// FNV-1a over 64-bit words: enough to see that bytes of the kernel changed,
// without an allocation for each item.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func fnvAdd(h uint64, words ...uint64) uint64 {
	for _, w := range words {
		h = (h ^ w) * fnvPrime
		h ^= h >> 32
	}
	return h
}

func fnvAddBytes(h uint64, b []byte) uint64 {
	for len(b) >= 8 {
		h = fnvAdd(h, binary.LittleEndian.Uint64(b))
		b = b[8:]
	}
	for _, c := range b {
		h = fnvAdd(h, uint64(c))
	}
	return h
}
