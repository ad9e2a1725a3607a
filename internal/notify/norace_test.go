//go:build !race

package notify_test

const memoryFactor = 1
